import { messageOf, RlhfError } from "../errors.ts";
import { didYouMean } from "../suggest.ts";
import { readRawRows } from "./lines.ts";
import type { BadRow, DataFormat, DataReport, Dataset } from "./types.ts";

/** What to do with a row that does not have the form it should. */
export type OnBadRow = "error" | "skip";

export interface LoadOptions<Format extends DataFormat = DataFormat> {
  /** The form of the rows; left out or "auto": detected from the first good row of each file. */
  readonly format?: Format | "auto";
  /** "error" (default) stops at the first bad row; "skip" leaves it out and counts it. */
  readonly onBadRow?: OnBadRow;
  /** Reads at most this many rows. */
  readonly limit?: number;
}

/** How rows of one kind of data set are recognised and read. */
export interface RowReader<Format extends DataFormat, Row> {
  /** The formats in order of detection, each with its description for messages. */
  readonly formats: Readonly<Record<Format, string>>;
  /** The format of a parsed row, or null when it has none. */
  readonly detect: (value: unknown) => Format | null;
  /** Reads a row; null drops it (and the reader counts why); a thrown `RowProblem` makes it a bad row. */
  readonly read: (value: unknown, format: Format) => Row | null;
}

/** What is wrong with one row; becomes a bad row with file and line. */
export class RowProblem extends Error {}

const KEPT_BAD_ROWS = 20;

/** The string under a key; anything else is a problem of the row. */
export function stringField(row: Readonly<Record<string, unknown>>, key: string): string {
  const value = row[key];
  if (value === undefined) throw new RowProblem(`"${key}" is missing`);
  if (typeof value !== "string")
    throw new RowProblem(`"${key}" must be a string, got ${describeType(value)}`);
  return value;
}

/** The name of a value's type as JSON knows it. */
export function describeType(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "an array" : typeof value;
}

/** True for JSON objects. */
export function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseRow(text: string | null): unknown {
  if (text === null) throw new RowProblem("is not UTF-8 text");
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new RowProblem(`is not JSON: ${messageOf(error)}`);
  }
}

function unknownFormat(value: unknown, formats: Readonly<Record<string, string>>): RowProblem {
  const found = isRecord(value)
    ? `keys ${
        Object.keys(value)
          .map((key) => `"${key}"`)
          .join(", ") || "(none)"
      }`
    : describeType(value);
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

/** Gathers rows and problems over the files of one data set. */
class Collector<Format extends DataFormat, Row> {
  readonly rows: Row[] = [];
  readonly badRows: BadRow[] = [];
  readonly formats = new Set<Format>();
  rowsRead = 0;
  badCount = 0;
  readonly reader: RowReader<Format, Row>;
  readonly options: LoadOptions<Format>;

  constructor(reader: RowReader<Format, Row>, options: LoadOptions<Format>) {
    this.reader = reader;
    this.options = options;
  }

  get full(): boolean {
    return this.rowsRead >= (this.options.limit ?? Number.POSITIVE_INFINITY);
  }

  async readFile(file: string): Promise<void> {
    const named = this.options.format;
    let format: Format | null = named === undefined || named === "auto" ? null : named;
    for await (const raw of readRawRows(file)) {
      if (this.full) return;
      this.rowsRead++;
      try {
        const value = parseRow(raw.text);
        const rowFormat: Format | null = format ?? this.reader.detect(value);
        if (rowFormat === null) throw unknownFormat(value, this.reader.formats);
        const row = this.reader.read(value, rowFormat);
        format = rowFormat;
        this.formats.add(rowFormat);
        if (row !== null) this.rows.push(row);
      } catch (error) {
        if (!(error instanceof RowProblem)) throw error;
        this.addBadRow({ file, line: raw.line, reason: error.message });
      }
    }
  }

  addBadRow(bad: BadRow): void {
    if (this.options.onBadRow !== "skip") {
      throw new RlhfError(
        "ERR_RLHF_DATA",
        `${bad.file}:${bad.line}: row ${bad.reason} (set onBadRow / on_bad_row to "skip" to leave such rows out)`,
        { ...bad },
      );
    }
    this.badCount++;
    if (this.badRows.length < KEPT_BAD_ROWS) this.badRows.push(bad);
  }
}

/**
 * Reads the rows of one or more files. Throws ERR_RLHF_DATA when a file cannot be read, when a row is bad and `onBadRow` is
 * "error", and when no good row is left.
 */
export async function loadRows<Format extends DataFormat, Row>(
  paths: string | readonly string[],
  reader: RowReader<Format, Row>,
  options: LoadOptions<Format>,
  extraReport?: () => Partial<DataReport>,
): Promise<Dataset<Row>> {
  const files = typeof paths === "string" ? [paths] : [...paths];
  checkFormat(options.format, Object.keys(reader.formats));
  const collector = new Collector(reader, options);
  for (const file of files) {
    if (!collector.full) await collector.readFile(file);
  }
  if (collector.rows.length === 0) {
    const first = collector.badRows[0];
    const why = first ? `; the first bad row is ${first.file}:${first.line}: ${first.reason}` : "";
    throw new RlhfError(
      "ERR_RLHF_DATA",
      `${files.join(", ")}: no usable row among ${collector.rowsRead} read${why}`,
      { files },
    );
  }
  const report: DataReport = {
    files,
    formats: [...collector.formats],
    rowsRead: collector.rowsRead,
    rowsKept: collector.rows.length,
    badRows: collector.badCount,
    firstBadRows: collector.badRows,
    ...extraReport?.(),
  };
  return Object.assign(collector.rows, { report });
}
