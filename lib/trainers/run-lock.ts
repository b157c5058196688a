import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";
import { isRunning } from "../model/files.ts";

/** The file that marks an output directory as written to by a process; gone when that process ends by itself. */
export const LOCK_FILE = ".run.lock";

/** The process that holds a lock. */
interface Holder {
  readonly pid: number;
  /** The kernel's start time of the process, which tells it from a later one with its id; null where there is none to read. */
  readonly started: string | null;
  readonly host: string;
  /** When it took the lock, for people. */
  readonly since: string;
}

/** A lock file without content is one that is being written, or, when it is older than this, what a crash of the machine left. */
const WRITTEN_WITHIN_MS = 10_000;

/** How often this process holds each lock. */
const held = new Map<string, number>();

/**
 * Keeps other processes out of an output directory, so that two runs do not mix their checkpoints. Within one process it may be
 * held several times: by a pipeline and by the trainer of its stage. What a killed process left is taken over.
 */
export class RunLock implements Disposable {
  readonly #file: string;
  readonly #text: string;
  #released = false;

  private constructor(file: string, text: string) {
    this.#file = file;
    this.#text = text;
  }

  /** Throws ERR_RLHF_LOCKED, naming the process, when another one holds the lock, and ERR_RLHF_IO when it cannot be written. */
  static acquire(outputDir: string): RunLock {
    try {
      mkdirSync(outputDir, { recursive: true });
      const file = join(realpathSync(outputDir), LOCK_FILE);
      const count = held.get(file) ?? 0;
      const text = count === 0 ? take(file, outputDir) : readFileSync(file, "utf8");
      held.set(file, count + 1);
      return new RunLock(file, text);
    } catch (error) {
      if (isRlhfError(error)) throw error;
      throw new RlhfError(
        "ERR_RLHF_IO",
        `${outputDir}: cannot be locked: ${messageOf(error)}`,
        { outputDir },
        { cause: error },
      );
    }
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    const count = (held.get(this.#file) ?? 1) - 1;
    if (count > 0) {
      held.set(this.#file, count);
      return;
    }
    held.delete(this.#file);
    // Someone may have deleted the file by hand, and another process made its own.
    if (read(this.#file) === this.#text) rmSync(this.#file, { force: true });
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** Writes the lock file, and returns its content. */
function take(file: string, outputDir: string): string {
  const { pid } = process;
  const own: Holder = { pid, started: startOf(pid), host: hostname(), since: new Date().toISOString() };
  const text = JSON.stringify(own);
  for (;;) {
    if (create(file, text)) return text;
    const found = read(file);
    if (found === null) continue;
    if (!isStale(file, found)) throw locked(file, found, outputDir);
    removeStale(file, found, outputDir);
  }
}

/** False when there is such a file already. */
function create(file: string, text: string): boolean {
  let descriptor: number;
  try {
    descriptor = openSync(file, "wx");
  } catch (error) {
    if (hasCode(error, "EEXIST")) return false;
    throw error;
  }
  try {
    writeFileSync(descriptor, text);
    fsyncSync(descriptor);
  } catch (error) {
    rmSync(file, { force: true });
    throw error;
  } finally {
    closeSync(descriptor);
  }
  return true;
}

/** Takes a stale lock file away; one that another process has put in its place meanwhile goes back. */
function removeStale(file: string, stale: string, outputDir: string): void {
  const aside = `${file}.${process.pid}`;
  try {
    renameSync(file, aside);
  } catch (error) {
    if (hasCode(error, "ENOENT")) return;
    throw error;
  }
  const found = readFileSync(aside, "utf8");
  if (found !== stale) {
    renameSync(aside, file);
    throw locked(file, found, outputDir);
  }
  rmSync(aside, { force: true });
}

function isStale(file: string, text: string): boolean {
  const holder = parse(text);
  if (holder === null) {
    const written = statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    return Date.now() - written > WRITTEN_WITHIN_MS;
  }
  // Of processes elsewhere nothing can be known.
  if (holder.host !== hostname()) return false;
  if (!isRunning(holder.pid)) return true;
  const started = startOf(holder.pid);
  return started !== null && holder.started !== null && started !== holder.started;
}

function locked(file: string, text: string, outputDir: string): RlhfError {
  const holder = parse(text);
  const here = holder?.host === hostname();
  const who =
    holder === null
      ? "another process"
      : `process ${holder.pid}${here ? "" : ` of ${holder.host}`}, since ${holder.since},`;
  const cure = here
    ? "wait until it ends, or name another output directory"
    : `name another output directory, or, if that process no longer runs, delete ${file}`;
  return new RlhfError("ERR_RLHF_LOCKED", `${outputDir}: ${who} is writing to it; ${cure}`, {
    outputDir,
    file,
    ...(holder ? { pid: holder.pid, host: holder.host } : {}),
  });
}

function read(file: string): string | null {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if (hasCode(error, "ENOENT")) return null;
    throw error;
  }
}

function parse(text: string): Holder | null {
  try {
    const holder = JSON.parse(text) as Partial<Holder> | null;
    return typeof holder?.pid === "number" && typeof holder.host === "string" ? (holder as Holder) : null;
  } catch {
    return null;
  }
}

/** The start time of a process, in the kernel's ticks; null where /proc does not tell. */
function startOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The second field, the command in brackets, may hold spaces; the start time is the 22nd.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? null;
  } catch {
    return null;
  }
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
