import { type FileHandle, mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";

/** Makes a rename durable: without it a crash may bring the old directory entry back. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Whether a process of this machine is alive. */
export function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return !(error instanceof Error && "code" in error && error.code === "ESRCH");
  }
}

/** Removes what processes that were killed while they wrote `path` left beside it; weights are large. */
async function removeAbandoned(path: string): Promise<void> {
  const begin = `${basename(path)}.`;
  for (const name of await readdir(dirname(path))) {
    const writer = name.startsWith(begin) ? /^(\d+)\.\d+\.tmp$/.exec(name.slice(begin.length)) : null;
    if (writer && !isRunning(Number(writer[1]))) await rm(join(dirname(path), name), { force: true });
  }
}

/** Tells apart the files that one process writes at the same time. */
let written = 0;

/**
 * Writes a file beside its place, syncs it and renames it into place: a reader finds the old file or the whole new one, never a
 * part, also after a crash or on a full disk. Throws ERR_RLHF_IO with the path.
 */
export async function writeAtomically(
  path: string,
  write: (file: FileHandle) => Promise<void>,
): Promise<void> {
  const temporary = `${path}.${process.pid}.${written++}.tmp`;
  try {
    await mkdir(dirname(path), { recursive: true });
    await removeAbandoned(path);
    const file = await open(temporary, "w");
    try {
      await write(file);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    if (isRlhfError(error)) throw error;
    throw new RlhfError(
      "ERR_RLHF_IO",
      `${path}: cannot be written: ${messageOf(error)}`,
      { path },
      { cause: error },
    );
  }
}

/** Writes a small file atomically. */
export function writeFileAtomically(path: string, data: string | Uint8Array): Promise<void> {
  return writeAtomically(path, async (file) => {
    await file.writeFile(data);
  });
}

/** Writes a value as indented JSON, atomically. */
export function writeJson(path: string, value: unknown): Promise<void> {
  return writeFileAtomically(path, `${JSON.stringify(value, null, 2)}\n`);
}

/** Reads a JSON object; null where the file does not exist. Throws `code` for anything that is not a JSON object. */
export async function readJsonIfPresent(
  path: string,
  code: "ERR_RLHF_MODEL" | "ERR_RLHF_WEIGHTS" | "ERR_RLHF_CHECKPOINT",
): Promise<Record<string, unknown> | null> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return null;
    throw new RlhfError(code, `${path}: cannot be read: ${messageOf(error)}`, { path }, { cause: error });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new RlhfError(code, `${path}: is not valid JSON: ${messageOf(error)}`, { path }, { cause: error });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new RlhfError(
      code,
      `${path}: holds ${JSON.stringify(value)?.slice(0, 40)}, expected a JSON object`,
      {
        path,
      },
    );
  return value as Record<string, unknown>;
}
