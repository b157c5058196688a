import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";
import { isMember } from "../rewards/ensemble-files.ts";
import { LOCK_FILE } from "../trainers/run-lock.ts";

/** Files that a run writes about itself; they are no part of the result. */
export const RUN_FILES: ReadonlySet<string> = new Set(["stage.json", "metrics.jsonl", LOCK_FILE]);

/** SHA-256 of a value's JSON with its keys sorted, so that order in the source does not matter. */
export function hashOfValue(value: unknown): string {
  const sorted = (_key: string, entry: unknown): unknown =>
    typeof entry === "object" && entry !== null && !Array.isArray(entry)
      ? Object.fromEntries(Object.entries(entry).sort(([a], [b]) => (a < b ? -1 : 1)))
      : entry;
  return createHash("sha256").update(JSON.stringify(value, sorted)).digest("hex");
}

async function hashOfFile(file: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}

/**
 * SHA-256 of what a path holds: a file's bytes, or the names and bytes of the files directly in a directory (a model; its
 * subdirectories hold checkpoints) and in those of an ensemble's members. Throws ERR_RLHF_IO, with the setting's name, when there is nothing to read.
 */
export async function fingerprint(path: string, setting: string): Promise<string> {
  try {
    if ((await stat(path)).isFile()) return await hashOfFile(path);
    const entries = await readdir(path, { withFileTypes: true });
    const names = entries.filter(
      (entry) => entry.isFile() && !RUN_FILES.has(entry.name) && !entry.name.startsWith("."),
    );
    const hash = createHash("sha256");
    for (const name of names.map((entry) => entry.name).sort())
      hash.update(`${name}\0${await hashOfFile(join(path, name))}\n`);
    const members = entries.filter((entry) => entry.isDirectory() && isMember(entry.name));
    for (const name of members.map((entry) => entry.name).sort())
      hash.update(`${name}\0${await fingerprint(join(path, name), setting)}\n`);
    return hash.digest("hex");
  } catch (error) {
    if (isRlhfError(error)) throw error;
    throw new RlhfError(
      "ERR_RLHF_IO",
      `${setting}: ${path}: cannot be read: ${messageOf(error)}`,
      { path },
      { cause: error },
    );
  }
}
