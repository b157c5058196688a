import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";
import { ArraySplitter } from "./json-array.ts";
import { DATA_FILE_KINDS, decodeUtf8, type RawRow } from "./raw-row.ts";

const NEWLINE = 0x0a;

function cannotRead(file: string, cause: unknown): RlhfError {
  return new RlhfError("ERR_RLHF_DATA", `${file}: cannot be read: ${messageOf(cause)}`, { file }, { cause });
}

/** The bytes of a file, unpacked when its name ends in .gz. */
function openBytes(file: string): { stream: Readable; finished: Promise<void> } {
  const source = createReadStream(file);
  if (!file.endsWith(".gz")) return { stream: source, finished: Promise.resolve() };
  const gunzip = createGunzip();
  return { stream: gunzip, finished: pipeline(source, gunzip) };
}

async function* readChunks(file: string): AsyncGenerator<Buffer> {
  const { stream, finished } = openBytes(file);
  // The stream reports the same failure; this keeps the second report from being an unhandled rejection.
  finished.catch(() => undefined);
  try {
    for await (const chunk of stream) yield chunk as Buffer;
  } catch (error) {
    throw isRlhfError(error) ? error : cannotRead(file, error);
  }
}

/**
 * The lines of a .jsonl or .jsonl.gz file, one at a time, blank ones left out. Lines are split at byte 0x0A only: node:readline
 * also splits at U+2028, which JSON strings may hold.
 */
async function* readLines(file: string): AsyncGenerator<RawRow> {
  let line = 0;
  let pending: Buffer[] = [];
  const finish = (last: Buffer): RawRow | null => {
    line++;
    const bytes = pending.length === 0 ? last : Buffer.concat([...pending, last]);
    pending = [];
    const text = decodeUtf8(bytes);
    return text?.trim() === "" ? null : { line, text };
  };
  for await (const bytes of readChunks(file)) {
    let start = 0;
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
      const row = finish(bytes.subarray(start, end));
      start = end + 1;
      if (row) yield row;
    }
    if (start < bytes.length) pending.push(bytes.subarray(start));
  }
  if (pending.length > 0) {
    const row = finish(Buffer.alloc(0));
    if (row) yield row;
  }
}

/** The elements of a .json or .json.gz file that holds an array, one at a time. */
async function* readArrayElements(file: string): AsyncGenerator<RawRow> {
  const splitter = new ArraySplitter(file);
  for await (const chunk of readChunks(file)) yield* splitter.push(chunk);
  splitter.end();
}

/** Who reads no .parquet file does not wait for its library, a quarter of the package's start-up. */
async function* readParquetRows(file: string): AsyncGenerator<RawRow> {
  const { readParquet } = await import("./parquet.ts");
  yield* readParquet(file);
}

/** The rows of a data file by its name, with no more of the file in memory than a row or a row group takes. */
export function readRawRows(file: string): AsyncGenerator<RawRow> {
  if (/\.(jsonl|ndjson)(\.gz)?$/.test(file)) return readLines(file);
  if (/\.json(\.gz)?$/.test(file)) return readArrayElements(file);
  if (file.endsWith(".parquet")) return readParquetRows(file);
  throw new RlhfError(
    "ERR_RLHF_DATA",
    `${file}: unknown kind of data file; expected a name in ${DATA_FILE_KINDS}`,
    { file },
  );
}
