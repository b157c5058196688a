import { existsSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, syncDirectory, writeJson } from "../model/files.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { didYouMean } from "../suggest.ts";

/** The model of the best evaluation so far, in a run's output directory. */
export const BEST = "best";
const RECORD = "best.json";
const TEMPORARY = ".best.tmp";
const PREVIOUS = ".best.old";

/** Which evaluation is the best one. */
export interface BestGoal {
  /** A metric of steps with an evaluation, such as "eval/loss". */
  readonly metric: string;
  readonly goal: "min" | "max";
}

/** What best/best.json holds. */
interface BestRecord {
  readonly metric: string;
  readonly value: number;
  readonly step: number;
}

/** Less of a loss is better, and more of anything else unless it is said. */
export function bestGoal(metric: string, goal: "min" | "max" | undefined): BestGoal {
  return { metric, goal: goal ?? (metric.endsWith("loss") ? "min" : "max") };
}

/**
 * Keeps the model of the best evaluation in `best`. What is the best so far is known from the directory itself: it is exchanged as
 * a whole, and a resumed run, whose evaluations are those of the run before, finds it as good as it left it.
 */
export class BestModel {
  readonly #outputDir: string;
  readonly #goal: BestGoal;
  #record: BestRecord | null;

  private constructor(outputDir: string, goal: BestGoal, record: BestRecord | null) {
    this.#outputDir = outputDir;
    this.#goal = goal;
    this.#record = record;
  }

  /** With `afresh`, what an earlier run left goes. Throws ERR_RLHF_CHECKPOINT when best/best.json is damaged. */
  static async open(outputDir: string, goal: BestGoal, afresh: boolean): Promise<BestModel> {
    const [best, previous] = [BEST, PREVIOUS].map((name) => join(outputDir, name)) as [string, string];
    if (afresh) await rm(best, { recursive: true, force: true });
    // A process was killed while it exchanged the two.
    else if (existsSync(previous) && !existsSync(best)) await rename(previous, best);
    for (const name of [TEMPORARY, PREVIOUS])
      await rm(join(outputDir, name), { recursive: true, force: true });
    const record = await readJsonIfPresent(join(best, RECORD), "ERR_RLHF_CHECKPOINT");
    return new BestModel(outputDir, goal, record as BestRecord | null);
  }

  /**
   * Saves the model when an evaluation was better than all before. Throws ERR_RLHF_ARGUMENT when it has no such metric, and ERR_RLHF_IO,
   * with the best model before left as it was, when it cannot be written.
   */
  async keep(step: number, metrics: Metrics, save: (directory: string) => Promise<void>): Promise<boolean> {
    const { metric } = this.#goal;
    const value = metrics[metric];
    if (value === undefined) {
      const names = Object.keys(metrics);
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `config.bestMetric: an evaluation has no metric "${metric}"${didYouMean(metric, names)}; it has: ${names.join(", ")}`,
        { metric },
      );
    }
    if (!this.#isBetter(value)) return false;
    const [best, temporary, previous] = [BEST, TEMPORARY, PREVIOUS].map((name) =>
      join(this.#outputDir, name),
    ) as [string, string, string];
    const record = { metric, value, step };
    try {
      await save(temporary);
      await writeJson(join(temporary, RECORD), record);
    } catch (error) {
      // On a full disk the room is needed; the first error is the one to tell.
      await rm(temporary, { recursive: true, force: true }).catch(() => undefined);
      throw error;
    }
    if (existsSync(best)) await rename(best, previous);
    await rename(temporary, best);
    await syncDirectory(this.#outputDir);
    await rm(previous, { recursive: true, force: true });
    this.#record = record;
    return true;
  }

  #isBetter(value: number): boolean {
    if (!Number.isFinite(value)) return false;
    if (this.#record === null) return true;
    return this.#goal.goal === "min" ? value < this.#record.value : value > this.#record.value;
  }
}
