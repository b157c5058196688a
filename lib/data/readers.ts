import { createHash } from "node:crypto";
import { messageOf, RlhfError } from "../errors.ts";
import { localData } from "../hub/hub.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { didYouMean } from "../suggest.ts";
import { breather } from "./breathe.ts";
import { describeType, isRecord, RowDropped, RowProblem } from "./fields.ts";
import { readRawRows } from "./raw.ts";
import type { RawRow } from "./raw-row.ts";
import type { BadRow, DataFormat, DataReport, Dataset, RowPlace } from "./types.ts";

/** What to do with a row that does not have the form it should. */
export type OnBadRow = "error" | "skip";

export interface LoadOptions<Format extends DataFormat = DataFormat> {
  /** The form of the rows; left out or "auto": detected from the first good row of each file. */
  readonly format?: Format | "auto";
  /** "error" (default) stops at the first bad row; "skip" leaves it out and counts it. */
  readonly onBadRow?: OnBadRow;
  /** Reads at most this many rows. */
  readonly limit?: number;
  /** "drop" leaves out rows that say the same as one before; one hash per row is kept. Default "keep". */
  readonly duplicates?: "keep" | "drop";
}

/** How rows of one kind of data set are recognised and read. */
export interface RowReader<Format extends DataFormat, Row extends object> {
  /** The formats in order of detection, each with its description for messages. */
  readonly formats: Readonly<Record<Format, string>>;
  /** The format of a parsed row, or null when it has none. */
  readonly detect: (value: unknown) => Format | null;
  /** The row, or the rows it stands for. A thrown `RowProblem` makes it a bad row, `RowDropped` leaves it out. */
  readonly read: (value: unknown, format: Format) => Row | readonly Row[];
  /** Adds to the report. */
  readonly report?: () => Partial<DataReport>;
}

const KEPT_ROWS_OF_REPORT = 20;

const places = new WeakMap<object, RowPlace>();

/** Where a row was read, as long as it is the object that a reader gave. */
export function placeOf(row: object): RowPlace | undefined {
  return places.get(row);
}

/** "file:line", of a parquet file "file: row n". */
export function describePlace({ file, line }: RowPlace): string {
  return file.endsWith(".parquet") ? `${file}: row ${line}` : `${file}:${line}`;
}

function parseRow(raw: RawRow): unknown {
  if ("value" in raw) return raw.value;
  if (raw.text === null) throw new RowProblem("is not UTF-8 text");
  try {
    return JSON.parse(raw.text) as unknown;
  } catch (error) {
    throw new RowProblem(`is not JSON: ${messageOf(error)}`);
  }
}

function unknownFormat(value: unknown, formats: Readonly<Record<string, string>>): RowProblem {
  const keys = isRecord(value) ? Object.keys(value).map((key) => `"${key}"`) : [];
  const found = isRecord(value) ? `keys ${keys.join(", ") || "(none)"}` : describeType(value);
  return new RowProblem(`has ${found}; expected one of: ${Object.values(formats).join("; ")}`);
}

function checkFormat(format: string | undefined, known: readonly string[]): void {
  if (format === undefined || format === "auto" || known.includes(format)) return;
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    `unknown format "${format}"${didYouMean(format, known)}; expected auto, ${known.join(", ")}`,
    { format },
  );
}

/** Of all readers; `ties` is for those of pairs. */
const LOAD_OPTIONS: NamesOf<LoadOptions & { readonly ties?: unknown }> = {
  format: true,
  onBadRow: true,
  limit: true,
  duplicates: true,
  ties: true,
};

function checkOptions({ onBadRow = "error", duplicates = "keep", limit = 1 }: LoadOptions): void {
  const fail = (name: string, expected: string, value: unknown): never => {
    throw new RlhfError("ERR_RLHF_ARGUMENT", `${name} must be ${expected}, got ${JSON.stringify(value)}`);
  };
  if (onBadRow !== "error" && onBadRow !== "skip") fail("onBadRow", '"error" or "skip"', onBadRow);
  if (duplicates !== "keep" && duplicates !== "drop") fail("duplicates", '"keep" or "drop"', duplicates);
  if (!(limit === Number.POSITIVE_INFINITY || (Number.isInteger(limit) && limit > 0)))
    fail("limit", "a positive integer", limit);
}

/** Drops rows of which the same were seen; a hash stands for each. */
function checkNew(rows: readonly object[], seen: Set<string>): void {
  const key = createHash("sha256").update(JSON.stringify(rows)).digest("base64").slice(0, 24);
  if (seen.has(key)) throw new RowDropped("says the same as a row before");
  seen.add(key);
}

/** Counts of one reading, and the first rows that were not kept. */
class Tally {
  readonly badRows: BadRow[] = [];
  readonly droppedRows: BadRow[] = [];
  readonly formats = new Set<DataFormat>();
  rowsRead = 0;
  rowsKept = 0;
  bad = 0;
  dropped = 0;

  addBad(row: BadRow): void {
    this.bad++;
    if (this.badRows.length < KEPT_ROWS_OF_REPORT) this.badRows.push(row);
  }

  addDropped(row: BadRow): void {
    this.dropped++;
    if (this.droppedRows.length < KEPT_ROWS_OF_REPORT) this.droppedRows.push(row);
  }
}

/**
 * The rows of one or more files, read when they are asked for: `for await (const row of stream)`. No more than a row (of .parquet:
 * a row group) is held in memory. Each pass over a stream reads the files again. Iterating throws ERR_RLHF_DATA when a file cannot
 * be read, when a row is bad and `onBadRow` is "error", and at the end when there was no good row.
 */
export class RowStream<Row extends object, Format extends DataFormat = DataFormat>
  implements AsyncIterable<Row>
{
  readonly files: readonly string[];
  readonly #makeReader: () => RowReader<Format, Row>;
  readonly #options: LoadOptions<Format>;
  #reader: RowReader<Format, Row>;
  #tally = new Tally();

  constructor(
    paths: string | readonly string[],
    makeReader: () => RowReader<Format, Row>,
    options: LoadOptions<Format>,
  ) {
    this.files = typeof paths === "string" ? [paths] : [...paths];
    this.#makeReader = makeReader;
    this.#reader = makeReader();
    this.#options = options;
    checkFormat(options.format, Object.keys(this.#reader.formats));
    if (this.files.length === 0)
      throw new RlhfError("ERR_RLHF_ARGUMENT", "no data file was given: the list is empty");
    refuseUnknownOptions("a reader of data", options, LOAD_OPTIONS);
    checkOptions(options);
  }

  /** What the pass that was begun last has found so far. */
  get report(): DataReport {
    const tally = this.#tally;
    return {
      files: this.files,
      formats: [...tally.formats],
      rowsRead: tally.rowsRead,
      rowsKept: tally.rowsKept,
      badRows: tally.bad,
      firstBadRows: tally.badRows,
      droppedRows: tally.dropped,
      firstDroppedRows: tally.droppedRows,
      ...this.#reader.report?.(),
    };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Row> {
    this.#reader = this.#makeReader();
    this.#tally = new Tally();
    const seen = this.#options.duplicates === "drop" ? new Set<string>() : null;
    for (const file of await localData(this.files)) {
      if (this.#full) break;
      yield* this.#readFile(file, seen);
    }
    if (this.#tally.rowsKept === 0) throw this.#nothingRead();
  }

  get #full(): boolean {
    return this.#tally.rowsRead >= (this.#options.limit ?? Number.POSITIVE_INFINITY);
  }

  async *#readFile(file: string, seen: Set<string> | null): AsyncGenerator<Row> {
    const named = this.#options.format;
    let format: Format | null = named === undefined || named === "auto" ? null : named;
    const breathe = breather();
    let rows: readonly Row[];
    for await (const raw of readRawRows(file)) {
      if (this.#full) return;
      await breathe();
      this.#tally.rowsRead++;
      const place = { file, line: raw.line };
      try {
        const value = parseRow(raw);
        const rowFormat: Format | null = format ?? this.#reader.detect(value);
        if (rowFormat === null) throw unknownFormat(value, this.#reader.formats);
        rows = this.#readRow(value, rowFormat, seen, place);
        format = rowFormat;
      } catch (error) {
        if (!(error instanceof RowProblem)) throw error;
        this.#addBadRow({ ...place, reason: error.message });
        continue;
      }
      this.#tally.rowsKept += rows.length;
      yield* rows;
    }
  }

  /** The rows that one entry of a file stands for, none where it is left out. */
  #readRow(value: unknown, format: Format, seen: Set<string> | null, place: RowPlace): readonly Row[] {
    try {
      const read = this.#reader.read(value, format);
      const rows: readonly Row[] = Array.isArray(read) ? (read as readonly Row[]) : [read as Row];
      if (seen !== null) checkNew(rows, seen);
      for (const row of rows) places.set(row, place);
      return rows;
    } catch (error) {
      if (!(error instanceof RowDropped)) throw error;
      this.#tally.addDropped({ ...place, reason: error.message });
      return [];
    } finally {
      this.#tally.formats.add(format);
    }
  }

  #addBadRow(bad: BadRow): void {
    if (this.#options.onBadRow !== "skip") {
      throw new RlhfError(
        "ERR_RLHF_DATA",
        `${describePlace(bad)}: row ${bad.reason} (set onBadRow / on_bad_row to "skip" to leave such rows out)`,
        { ...bad },
      );
    }
    this.#tally.addBad(bad);
  }

  #nothingRead(): RlhfError {
    const first = this.#tally.badRows[0] ?? this.#tally.droppedRows[0];
    const kind = this.#tally.badRows[0] ? "bad" : "dropped";
    const why = first ? `; the first ${kind} row is ${describePlace(first)}: ${first.reason}` : "";
    return new RlhfError(
      "ERR_RLHF_DATA",
      `${this.files.join(", ")}: no usable row among ${this.#tally.rowsRead} read${why}`,
      { files: this.files },
    );
  }
}

/** All rows of a stream in memory, with its report. */
export async function collectRows<Row extends object, Format extends DataFormat>(
  stream: RowStream<Row, Format>,
): Promise<Dataset<Row>> {
  const rows: Row[] = [];
  for await (const row of stream) rows.push(row);
  return Object.assign(rows, { report: stream.report });
}
