import { writeAtomically } from "../model/files.ts";

/** Writes rows as JSON lines; the file appears when all are written, so that it is complete or absent. */
export function writeJsonLines(
  file: string,
  rows: AsyncIterable<unknown> | Iterable<unknown>,
): Promise<void> {
  return writeAtomically(file, async (handle) => {
    for await (const row of rows) await handle.write(`${JSON.stringify(row)}\n`);
  });
}
