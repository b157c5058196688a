import { RlhfError } from "../errors.ts";
import { decodeUtf8, type RawRow } from "./raw-row.ts";

const [QUOTE, COMMA, OPEN, CLOSE, BRACE, END_BRACE, BACKSLASH, NEWLINE] = Buffer.from('",[]{}\\\n');

/** The byte order mark that some editors write before UTF-8. */
const MARK = Buffer.from("\ufeff");

function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

/**
 * Cuts the bytes of a JSON array into its elements without holding more than one of them. What stands between the commas is left
 * to JSON.parse, so that one bad element is reported by its line and does not spoil the others.
 */
export class ArraySplitter {
  readonly #file: string;
  #state: "before" | "inside" | "after" = "before";
  /** Bytes of a byte order mark that have been met. */
  #mark = 0;
  #line = 1;
  /** Bytes of the current element that came in earlier chunks. */
  #pending: Buffer[] = [];
  #elementLine = 0;
  #depth = 0;
  #inString = false;
  #escaped = false;

  constructor(file: string) {
    this.#file = file;
  }

  #problem(what: string): RlhfError {
    return new RlhfError("ERR_RLHF_DATA", `${this.#file}:${this.#line}: ${what}`, {
      file: this.#file,
      line: this.#line,
    });
  }

  #element(last: Buffer): RawRow {
    const bytes = Buffer.concat([...this.#pending, last]);
    const line = this.#elementLine || this.#line;
    this.#pending = [];
    this.#elementLine = 0;
    return { line, text: decodeUtf8(bytes) };
  }

  /** The elements that end in this chunk. */
  *push(chunk: Buffer): Generator<RawRow> {
    let start = 0;
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at] as number;
      if (byte === NEWLINE) this.#line++;
      if (this.#state === "inside") {
        const ended = this.#inElement(byte);
        if (!ended) continue;
        const last = chunk.subarray(start, at);
        start = at + 1;
        // "[]" has no element, and a comma before the end adds none.
        if (byte === COMMA || this.#elementLine !== 0) yield this.#element(last);
        else this.#pending = [];
        if (byte === CLOSE) this.#state = "after";
      } else if (this.#state === "before" && byte === MARK[this.#mark]) {
        this.#mark++;
      } else if (!isSpace(byte)) {
        if (this.#state === "after") throw this.#problem("there is more after the end of the array");
        if (byte !== OPEN)
          throw this.#problem(
            "a .json data file must hold an array of rows; for one row per line, name it .jsonl",
          );
        this.#state = "inside";
        start = at + 1;
      }
    }
    if (this.#state === "inside" && start < chunk.length) this.#pending.push(chunk.subarray(start));
  }

  /** Follows one byte of an element; true for the comma or bracket that ends it. */
  #inElement(byte: number): boolean {
    if (this.#inString) {
      if (this.#escaped) this.#escaped = false;
      else if (byte === BACKSLASH) this.#escaped = true;
      else if (byte === QUOTE) this.#inString = false;
      return false;
    }
    if (this.#depth === 0 && (byte === COMMA || byte === CLOSE)) return true;
    if (this.#elementLine === 0 && !isSpace(byte)) this.#elementLine = this.#line;
    if (byte === QUOTE) this.#inString = true;
    else if (byte === OPEN || byte === BRACE) this.#depth++;
    else if (this.#depth > 0 && (byte === CLOSE || byte === END_BRACE)) this.#depth--;
    return false;
  }

  /** Throws ERR_RLHF_DATA when the array has not been closed. */
  end(): void {
    if (this.#state === "before") throw this.#problem("the file is empty; expected an array of rows");
    if (this.#state === "inside") throw this.#problem("the array is not closed: the file ends too early");
  }
}
