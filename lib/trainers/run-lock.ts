import {
  closeSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
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
  /** The boot of the machine and the space of process ids: only within one do ids tell which processes run. */
  readonly place: string;
  /** When it took the lock, for people. */
  readonly since: string;
}

/** How often a process that holds a lock shows that it runs, by writing the file anew. */
const BEAT_MS = 10_000;

/** A lock file that was not written for so long is no longer held, where nothing better is known of its process. */
const SILENT_MS = 120_000;

/** A lock file whose content is cut off is being written, or, when it is older than this, what a crash of the machine left. */
const WRITTEN_WITHIN_MS = 10_000;

/** A lock of this process, held `count` times. */
interface Held {
  count: number;
  readonly text: string;
  readonly beat: NodeJS.Timeout;
}

const held = new Map<string, Held>();

/**
 * Keeps other processes out of an output directory, so that two runs do not mix their checkpoints. Within one process it may be
 * held several times: by a pipeline and by the trainer of its stage. What a killed process left is taken over: at once where its id says
 * that it is gone, and where it ran on another machine or in another container, once it has shown no sign of life for two minutes.
 */
export class RunLock implements Disposable {
  readonly #file: string;
  readonly #outputDir: string;
  #released = false;

  private constructor(file: string, outputDir: string) {
    this.#file = file;
    this.#outputDir = outputDir;
  }

  /** Throws ERR_RLHF_LOCKED, naming the process, when another one holds the lock, and ERR_RLHF_IO when it cannot be written. */
  static acquire(outputDir: string): RunLock {
    try {
      mkdirSync(outputDir, { recursive: true });
      const file = join(realpathSync(outputDir), LOCK_FILE);
      const holding = held.get(file);
      if (holding === undefined) {
        const text = take(file, outputDir);
        const beat = setInterval(() => showLife(file, text), BEAT_MS);
        held.set(file, { count: 1, text, beat: beat.unref() });
      } else {
        holding.count++;
      }
      return new RunLock(file, outputDir);
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

  /**
   * Throws ERR_RLHF_LOCKED where another process has taken the lock over, because this one was stopped for long: it must write
   * nothing more.
   */
  requireHeld(): void {
    const found = read(this.#file);
    if (found !== null && found.text !== held.get(this.#file)?.text)
      throw locked(this.#file, found, this.#outputDir);
  }

  release(): void {
    if (this.#released) return;
    this.#released = true;
    const holding = held.get(this.#file);
    if (holding === undefined || --holding.count > 0) return;
    clearInterval(holding.beat);
    held.delete(this.#file);
    // Someone may have deleted the file by hand, and another process made its own.
    if (read(this.#file)?.text === holding.text) rmSync(this.#file, { force: true });
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

/** Writes the file anew with what it holds, if it is still this process's: that sets its time, by the clock of the file system. */
function showLife(file: string, text: string): void {
  try {
    const descriptor = openSync(file, "r+");
    try {
      if (readFileSync(descriptor, "utf8") === text) writeSync(descriptor, text, 0);
    } finally {
      closeSync(descriptor);
    }
  } catch {
    // A sign that is missing now and then does no harm, and what is wrong with the directory shows when a checkpoint is written.
  }
}

/** Writes the lock file, and returns its content. */
function take(file: string, outputDir: string): string {
  const { pid } = process;
  const since = new Date().toISOString();
  const own: Holder = { pid, started: startOf(pid), host: hostname(), place: placeOfProcesses(), since };
  const text = JSON.stringify(own);
  for (;;) {
    if (create(file, text)) return text;
    const found = read(file);
    if (found === null) continue;
    if (!isStale(file, found)) throw locked(file, found, outputDir);
    removeStale(file, found.text, outputDir);
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
  const found = read(aside);
  if (found !== null && found.text !== stale) {
    renameSync(aside, file);
    throw locked(file, found, outputDir);
  }
  rmSync(aside, { force: true });
}

/** The content of a lock file, and when it was written, by the clock of the file system. */
interface LockFile {
  readonly text: string;
  readonly writtenMs: number;
}

function isStale(file: string, { text, writtenMs }: LockFile): boolean {
  const holder = parse(text);
  const silentMs = nowAt(file) - writtenMs;
  if (holder === null) return silentMs > WRITTEN_WITHIN_MS;
  if (holder.place !== placeOfProcesses()) return silentMs > SILENT_MS;
  if (!isRunning(holder.pid)) return true;
  const started = startOf(holder.pid);
  return started !== null && holder.started !== null && started !== holder.started;
}

function locked(file: string, { text, writtenMs }: LockFile, outputDir: string): RlhfError {
  const holder = parse(text);
  const here = holder?.place === placeOfProcesses();
  const who =
    holder === null
      ? "another process"
      : `process ${holder.pid}${here ? "" : ` of ${holder.host}`}, since ${holder.since},`;
  const silent = Math.max(0, Math.round((nowAt(file) - writtenMs) / 1000));
  const cure = here
    ? "wait until it ends, or name another output directory"
    : `its last sign of life is ${silent} s old. Wait until it ends, or name another output directory; if it was killed, run this again ` +
      `when the sign is older than ${SILENT_MS / 1000} s, or delete ${file}`;
  return new RlhfError("ERR_RLHF_LOCKED", `${outputDir}: ${who} is writing to it; ${cure}`, {
    outputDir,
    file,
    ...(holder ? { pid: holder.pid, host: holder.host } : {}),
  });
}

function read(file: string): LockFile | null {
  let descriptor: number;
  try {
    // Opened first: network file systems may know an older time of a file that is not open.
    descriptor = openSync(file, "r");
  } catch (error) {
    if (hasCode(error, "ENOENT")) return null;
    throw error;
  }
  try {
    return { text: readFileSync(descriptor, "utf8"), writtenMs: fstatSync(descriptor).mtimeMs };
  } finally {
    closeSync(descriptor);
  }
}

/** The time by the clock of the file system that a lock file lies on, which may be another machine's. */
function nowAt(file: string): number {
  const probe = `${file}.${process.pid}.now`;
  const descriptor = openSync(probe, "w");
  try {
    return fstatSync(descriptor).mtimeMs;
  } finally {
    closeSync(descriptor);
    rmSync(probe, { force: true });
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

/** See `Holder.place`; where the system does not tell, the name of the machine. */
function placeOfProcesses(): string {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    return `${boot} ${readlinkSync("/proc/self/ns/pid")}`;
  } catch {
    return hostname();
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
