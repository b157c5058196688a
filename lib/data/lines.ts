import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import { messageOf, RlhfError } from "../errors.ts";

/** The text of one row and the line it starts on, counted from 1. */
export interface RawRow {
  readonly line: number;
  /** Null where the bytes are not UTF-8. */
  readonly text: string | null;
}

const NEWLINE = 0x0a;

function decodeUtf8(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

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

/**
 * The lines of a .jsonl or .jsonl.gz file, one at a time, blank ones left out. Lines are split at byte 0x0A only: node:readline
 * also splits at U+2028, which JSON strings may hold.
 */
export async function* readLines(file: string): AsyncGenerator<RawRow> {
  const { stream, finished } = openBytes(file);
  // The stream reports the same failure; this keeps the second report from being an unhandled rejection.
  finished.catch(() => undefined);
  let line = 0;
  let pending: Buffer[] = [];
  const finish = (last: Buffer): RawRow | null => {
    line++;
    const bytes = pending.length === 0 ? last : Buffer.concat([...pending, last]);
    pending = [];
    const text = decodeUtf8(bytes);
    return text?.trim() === "" ? null : { line, text };
  };
  try {
    for await (const chunk of stream) {
      const bytes = chunk as Buffer;
      let start = 0;
      for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
        const row = finish(bytes.subarray(start, end));
        start = end + 1;
        if (row) yield row;
      }
      if (start < bytes.length) pending.push(bytes.subarray(start));
    }
  } catch (error) {
    throw cannotRead(file, error);
  }
  if (pending.length > 0) {
    const row = finish(Buffer.alloc(0));
    if (row) yield row;
  }
}

/** Position just after the JSON value that starts at `start`: the next comma or bracket outside strings and nesting. */
function endOfElement(text: string, start: number): number {
  let depth = 0;
  for (let at = start; at < text.length; at++) {
    const character = text[at];
    if (character === '"') {
      at++;
      while (at < text.length && text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
    } else if (character === "[" || character === "{") {
      depth++;
    } else if (depth > 0 && (character === "]" || character === "}")) {
      depth--;
    } else if (depth === 0 && (character === "," || character === "]")) {
      return at;
    }
  }
  return text.length;
}

function lineBreaks(text: string): number {
  return text.split("\n").length - 1;
}

/** The elements of a JSON array's text, each with the line it starts on; what stands between them is left to JSON.parse. */
function* splitArray(text: string, file: string): Generator<RawRow> {
  const problem = (line: number, what: string): RlhfError =>
    new RlhfError("ERR_RLHF_DATA", `${file}:${line}: ${what}`, { file, line });
  const open = text.search(/\S/);
  if (text[open] !== "[") {
    throw problem(1, "a .json data file must hold an array of rows; for one row per line, name it .jsonl");
  }
  let line = 1 + lineBreaks(text.slice(0, open));
  let at = open + 1;
  while (text[at - 1] !== "]") {
    const end = endOfElement(text, at);
    if (end >= text.length) throw problem(line, "the array is not closed: the file ends too early");
    const raw = text.slice(at, end);
    const row = raw.trim();
    const isLast = text[end] === "]";
    if (row !== "" || !isLast) yield { line: line + lineBreaks(raw.slice(0, raw.indexOf(row))), text: row };
    line += lineBreaks(raw);
    at = end + 1;
  }
  if (text.slice(at).trim() !== "") throw problem(line, "there is more after the end of the array");
}

/**
 * The elements of a .json file that holds an array, each as text with the line it starts on, so that one bad element is
 * reported by its line and does not spoil the others.
 */
export async function* readArrayElements(file: string): AsyncGenerator<RawRow> {
  let bytes: Buffer;
  try {
    bytes = await readFile(file);
  } catch (error) {
    throw cannotRead(file, error);
  }
  const text = decodeUtf8(bytes);
  if (text === null) throw new RlhfError("ERR_RLHF_DATA", `${file}: is not UTF-8 text`, { file });
  yield* splitArray(text, file);
}

/** The rows of a data file by its name: .json, .jsonl, .jsonl.gz (also .ndjson). */
export function readRawRows(file: string): AsyncGenerator<RawRow> {
  if (/\.(jsonl|ndjson)(\.gz)?$/.test(file)) return readLines(file);
  if (file.endsWith(".json")) return readArrayElements(file);
  throw new RlhfError(
    "ERR_RLHF_DATA",
    `${file}: unknown kind of data file; expected a name in .json, .jsonl or .jsonl.gz`,
    { file },
  );
}
