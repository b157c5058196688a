import { mkdir, open, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";

/**
 * Writes rows as JSON lines under a temporary name and renames the file when all are written, so that the output is complete
 * or absent.
 */
export async function writeJsonLines(file: string, rows: AsyncIterable<unknown> | Iterable<unknown>): Promise<void> {
  const temporary = `${file}.${process.pid}.tmp`;
  try {
    await mkdir(dirname(file), { recursive: true });
    const handle = await open(temporary, "w");
    try {
      for await (const row of rows) await handle.write(`${JSON.stringify(row)}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    if (error instanceof RlhfError) throw error;
    throw new RlhfError("ERR_RLHF_IO", `${file}: cannot be written: ${messageOf(error)}`, { file }, { cause: error });
  }
}
