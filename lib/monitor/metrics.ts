import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";

/** Named numbers of one step, in TRL's names: "loss", "eval/loss", "objective/kl". */
export type Metrics = Readonly<Record<string, number>>;

/** One line of a metrics file. */
export interface MetricsRecord {
  readonly step: number;
  readonly metrics: Metrics;
}

function ioError(file: string, error: unknown, action = "written"): RlhfError {
  return new RlhfError(
    "ERR_RLHF_IO",
    `${file}: cannot be ${action}: ${messageOf(error)}`,
    { file },
    { cause: error },
  );
}

/**
 * Reads a metrics file. A last line that was cut off by a killed process is left out; numbers that JSON cannot hold were
 * written as null and are NaN here. Throws ERR_RLHF_IO.
 */
export function readMetrics(file: string): MetricsRecord[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw ioError(file, error, "read");
  }
  const records: MetricsRecord[] = [];
  for (const line of text.split("\n")) {
    if (line === "") continue;
    let row: Record<string, number | null>;
    try {
      row = JSON.parse(line) as Record<string, number | null>;
    } catch {
      continue;
    }
    const { step, ...values } = row;
    if (typeof step !== "number") continue;
    records.push({
      step,
      metrics: Object.fromEntries(Object.entries(values).map(([key, value]) => [key, value ?? Number.NaN])),
    });
  }
  return records;
}

/** Appends metrics to a JSON-lines file, one object {"step": …, name: value, …} per line, readable while the run goes on. */
export class MetricsWriter implements Disposable {
  readonly file: string;
  #descriptor: number | null;

  /**
   * @param file created with its directory
   * @param resumeAtStep keeps the records up to this step of an earlier, interrupted run; left out: starts the file anew
   */
  constructor(file: string, resumeAtStep?: number) {
    this.file = file;
    try {
      mkdirSync(dirname(file), { recursive: true });
      const kept = resumeAtStep === undefined ? [] : recordsUpTo(file, resumeAtStep);
      // A run has its directory to itself: what a killed one left here is overwritten.
      const temporary = `${file}.tmp`;
      writeDurably(temporary, kept.map(toLine).join(""));
      renameSync(temporary, file);
      this.#descriptor = openSync(file, "a");
    } catch (error) {
      throw ioError(file, error);
    }
  }

  write(step: number, metrics: Metrics): void {
    this.#try((descriptor) => writeFileSync(descriptor, toLine({ step, metrics })));
  }

  /** Makes what was written durable. */
  sync(): void {
    this.#try(fsyncSync);
  }

  /** Syncs and closes the file; later writes are errors. */
  close(): void {
    if (this.#descriptor === null) return;
    try {
      this.sync();
    } finally {
      closeSync(this.#descriptor);
      this.#descriptor = null;
    }
  }

  #try(action: (descriptor: number) => void): void {
    if (this.#descriptor === null)
      throw new RlhfError("ERR_RLHF_DISPOSED", `${this.file}: the metrics file is closed`, {
        file: this.file,
      });
    try {
      action(this.#descriptor);
    } catch (error) {
      throw ioError(this.file, error);
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function writeDurably(file: string, text: string): void {
  const descriptor = openSync(file, "w");
  try {
    writeFileSync(descriptor, text);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function toLine(record: MetricsRecord): string {
  return `${JSON.stringify({ step: record.step, ...record.metrics })}\n`;
}

function recordsUpTo(file: string, step: number): MetricsRecord[] {
  return existsSync(file) ? readMetrics(file).filter((record) => record.step <= step) : [];
}
