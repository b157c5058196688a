import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { throwIfAborted } from "../errors.ts";
import { isRunning } from "../model/files.ts";

/** Milliseconds between looks at a lock that another one holds. */
const WAIT = 100;

async function take(path: string): Promise<boolean> {
  try {
    await writeFile(path, String(process.pid), { flag: "wx" });
    return true;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST") return false;
    throw error;
  }
}

/** Whether the process that made a lock has ended without removing it. */
async function isAbandoned(path: string): Promise<boolean> {
  const owner = Number(await readFile(path, "utf8").catch(() => "0"));
  // An empty file is about to be written.
  return owner > 0 && !isRunning(owner);
}

/**
 * Does something while no other call, of this process or of another on this machine, does it under the same path. Throws
 * ERR_RLHF_ABORTED when the signal is raised while it waits.
 */
export async function withLock<Result>(
  path: string,
  signal: AbortSignal | undefined,
  body: () => Promise<Result>,
): Promise<Result> {
  await mkdir(dirname(path), { recursive: true });
  while (!(await take(path))) {
    throwIfAborted(signal, "waiting for a download by another process");
    if (await isAbandoned(path)) await rm(path, { force: true });
    else await sleep(WAIT);
  }
  try {
    return await body();
  } finally {
    await rm(path, { force: true });
  }
}
