/** One row before it is looked into: its place, and its text or, of a file that is no text, its value. */
export type RawRow =
  | {
      readonly line: number;
      /** Null where the bytes are not UTF-8. */
      readonly text: string | null;
    }
  | { readonly line: number; readonly value: unknown };

/** The text of UTF-8 bytes; null where they are none. */
export function decodeUtf8(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

/** Ends of the names of files that can be read, for messages. */
export const DATA_FILE_KINDS = ".json, .jsonl, .ndjson, each also with .gz, and .parquet";

/** Names of files that can be read. */
export const DATA_FILE = /\.(?:(?:json|jsonl|ndjson)(?:\.gz)?|parquet)$/;
