import { rm } from "node:fs/promises";
import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";

/** Mean and deviation of a reward model's raw scores, usually over the answers it was trained on. */
export interface RewardStatistics {
  readonly mean: number;
  /** Standard deviation, over 0. */
  readonly deviation: number;
  /** Scores they were measured on. */
  readonly count: number;
}

/** Beside the weights and apart from them: transformers and peft leave it alone, so that they give the raw scores. */
const FILE = "reward_statistics.json";

function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/** The statistics of a reward model's directory; null where there are none. Throws ERR_RLHF_MODEL for a damaged file. */
export async function readRewardStatistics(directory: string): Promise<RewardStatistics | null> {
  const path = join(directory, FILE);
  const found = await readJsonIfPresent(path, "ERR_RLHF_MODEL");
  if (found === null) return null;
  const { mean, deviation, count } = found;
  if (!isNumber(mean) || !isNumber(deviation) || deviation <= 0 || !isNumber(count))
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${path}: mean, deviation and count must be numbers, the deviation over 0; delete the file to do without`,
      { path },
    );
  return { mean, deviation, count };
}

/** Writes the statistics, or removes those of a model that was there before. */
export async function writeRewardStatistics(
  directory: string,
  statistics: RewardStatistics | null,
): Promise<void> {
  const path = join(directory, FILE);
  if (statistics === null) await rm(path, { force: true });
  else await writeJson(path, statistics);
}

/**
 * Mean and (unbiased) deviation of raw scores. Null when they do not tell a scale: fewer than two, all alike, or not finite.
 */
export function statisticsOf(scores: ArrayLike<number>): RewardStatistics | null {
  const values = Array.from(scores);
  const count = values.length;
  const mean = values.reduce((sum, score) => sum + score, 0) / count;
  const squares = values.reduce((sum, score) => sum + (score - mean) ** 2, 0);
  const deviation = Math.sqrt(squares / (count - 1));
  return Number.isFinite(deviation) && deviation > 0 ? { mean, deviation, count } : null;
}
