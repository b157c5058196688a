import type { Metrics } from "../monitor/metrics.ts";
import type { RolloutBatch } from "./rollouts.ts";
import type { ScoredRollouts } from "./score-shaping.ts";

/** 0 of nothing. */
export function meanOf(values: readonly number[] | Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / Math.max(1, values.length);
}

/** The sums of two micro-batches together. */
export function addSums<Sums extends Readonly<Record<string, number>>>(a: Sums, b: Sums): Sums {
  return Object.fromEntries(
    Object.entries(a).map(([name, sum]) => [name, sum + (b[name] as number)]),
  ) as Sums;
}

/**
 * What sampled answers are like, under TRL's names: means over them.
 *
 * @param logProb of the policy, Float32Array[N] over `batch.packed`
 * @param kl to the reference per answer; null where no reference is kept
 */
export function answerMetrics(
  batch: RolloutBatch,
  { raw, scores, diversity }: ScoredRollouts,
  logProb: Float32Array,
  kl: number | null,
): Metrics {
  return {
    "objective/scores": meanOf(scores),
    "objective/raw_scores": meanOf(raw.scores),
    ...(kl === null ? {} : { "objective/kl": kl }),
    "objective/entropy": -batch.meanPerAnswer(logProb),
    "objective/response_length": batch.responseTokens() / batch.size,
    ...(raw.spread ? { "objective/reward_spread": meanOf(raw.spread) } : {}),
    ...(diversity ? { "objective/diversity": meanOf(diversity) } : {}),
    "val/num_eos_tokens": batch.rollouts.filter((rollout) => rollout.finishReason === "stop").length,
  };
}

/** What a minibatch says of how far the policy is from the one that sampled, in means over its response tokens. */
export interface RatioMeans {
  /** Mean of ½·(log ratio)². */
  readonly approxKl: number;
  readonly ratio: number;
  readonly ratioSquared: number;
}

/** From the sums that a policy loss gives. */
export function ratioMeans({
  tokens,
  approxKl,
  ratio,
  ratioSquared,
}: RatioMeans & { readonly tokens: number }): RatioMeans {
  return { approxKl: approxKl / tokens, ratio: ratio / tokens, ratioSquared: ratioSquared / tokens };
}

/** Means over minibatches, under TRL's names. */
export function ratioMetrics(minibatches: readonly RatioMeans[]): Metrics {
  const over = (read: (minibatch: RatioMeans) => number): number => meanOf(minibatches.map(read));
  const ratio = over((minibatch) => minibatch.ratio);
  return {
    "policy/approxkl_avg": over((minibatch) => minibatch.approxKl),
    "val/ratio": ratio,
    "val/ratio_var": Math.max(0, over((minibatch) => minibatch.ratioSquared) - ratio ** 2),
  };
}
