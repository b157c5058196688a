import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** The folder of models and data beside the project, which is absent outside its development. */
export const sharedDirectory = fileURLToPath(new URL("../../../shared", import.meta.url));

const hasShared = existsSync(sharedDirectory);

/** A file of that folder. Tests that read one are defined by the functions below; where the folder is, a missing file is a failure. */
export function sharedFile(path: string): string {
  return join(sharedDirectory, path);
}

/** `it` where ../shared is; nothing elsewhere. */
export function itWithShared(title: string, body: () => Promise<void>): void {
  if (hasShared) it(title, body);
}

/** `describe` where ../shared is; nothing elsewhere. */
export function describeWithShared(title: string, body: (this: Mocha.Suite) => void): void {
  if (hasShared) describe(title, body);
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
