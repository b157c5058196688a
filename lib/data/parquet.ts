import { asyncBufferFromFile, type FileMetaData, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";
import type { RawRow } from "./raw-row.ts";

function unreadable(file: string, error: unknown): RlhfError {
  if (isRlhfError(error)) return error;
  return new RlhfError(
    "ERR_RLHF_DATA",
    `${file}: cannot be read as a parquet file: ${messageOf(error)}`,
    { file },
    { cause: error },
  );
}

/** Values as JSON would hold them: 64-bit integers as numbers where they are exact, else as text. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : String(value);
  }
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype)
    return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
}

/** Null stands for a key that a row does not have: columns of a table are there for every row. */
function withoutNulls(row: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== null && value !== undefined));
}

/**
 * The rows of a .parquet file (uncompressed, snappy, gzip, zstd, brotli or lz4), numbered from 1. One row group is in memory at a
 * time. Throws ERR_RLHF_DATA.
 */
export async function* readParquet(file: string): AsyncGenerator<RawRow> {
  let buffer: Awaited<ReturnType<typeof asyncBufferFromFile>>;
  let metadata: FileMetaData;
  try {
    buffer = await asyncBufferFromFile(file);
    metadata = await parquetMetadataAsync(buffer);
  } catch (error) {
    throw unreadable(file, error);
  }
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows);
    let rows: Record<string, unknown>[];
    try {
      rows = await parquetReadObjects({ file: buffer, metadata, compressors, rowStart, rowEnd });
    } catch (error) {
      throw unreadable(file, error);
    }
    for (const [index, row] of rows.entries())
      yield { line: rowStart + index + 1, value: plain(withoutNulls(row)) };
    rowStart = rowEnd;
  }
}
