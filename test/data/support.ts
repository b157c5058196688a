import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** The folder of models and data beside the project, which is absent outside its development. */
export const sharedDirectory = fileURLToPath(new URL("../../../shared", import.meta.url));

/** Skips the running test, with the reason, where a file of ../shared is missing. */
export function needsShared(context: Mocha.Context, path: string): string {
  const file = join(sharedDirectory, path);
  if (!existsSync(file)) {
    console.log(`      skipped: ${file} is not here`);
    context.skip();
  }
  return file;
}

/** A directory that is removed when the block of tests ends. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "node-rlhf-test-"));
  after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Writes a text file, packed when its name ends in .gz, and returns its path. */
export function writeText(directory: string, name: string, text: string | Uint8Array): string {
  const file = join(directory, name);
  writeFileSync(file, name.endsWith(".gz") ? gzipSync(text) : text);
  return file;
}

/** Rows as JSON lines. */
export function jsonLines(rows: readonly unknown[]): string {
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}
