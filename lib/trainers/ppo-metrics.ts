import type { PpoPolicyStat, PpoValueStat } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { AnswerScores } from "../rewards/reward.ts";
import type { Experience } from "./experience.ts";

/** Sums over the response tokens of a minibatch. */
export interface MinibatchSums {
  readonly policy: Readonly<Record<PpoPolicyStat, number>>;
  readonly value: Readonly<Record<PpoValueStat, number>>;
}

function add<Sums extends Readonly<Record<string, number>>>(a: Sums, b: Sums): Sums {
  return Object.fromEntries(
    Object.entries(a).map(([name, sum]) => [name, sum + (b[name] as number)]),
  ) as Sums;
}

/** The sums of two micro-batches together. */
export function addSums(a: MinibatchSums, b: MinibatchSums): MinibatchSums {
  return { policy: add(a.policy, b.policy), value: add(a.value, b.value) };
}

/** One minibatch of an update, in means over its response tokens before its optimizer step. */
export interface PpoMinibatch {
  /** Rollouts, by their index in the batch. */
  readonly rollouts: Int32Array;
  readonly tokens: number;
  readonly policyLoss: number;
  readonly valueLoss: number;
  readonly entropy: number;
  /** Mean of ½·(log ratio)². */
  readonly approxKl: number;
  readonly clipFraction: number;
  /** Share of tokens whose loss `dualClip` bounds. */
  readonly dualClipFraction: number;
  readonly valueClipFraction: number;
  readonly ratio: number;
  readonly ratioSquared: number;
  /** Norm before clipping; null when the minibatch was not applied because of targetKl. */
  readonly gradNorm: number | null;
  /** Of a value function with an optimizer of its own. */
  readonly valueGradNorm?: number;
}

/** Means from a minibatch's sums. */
export function summarizeMinibatch(
  rollouts: Int32Array,
  { policy, value }: MinibatchSums,
  norms: Pick<PpoMinibatch, "gradNorm" | "valueGradNorm">,
): PpoMinibatch {
  const { tokens } = policy;
  return {
    rollouts,
    tokens,
    policyLoss: policy.loss / tokens,
    valueLoss: value.loss / tokens,
    entropy: policy.entropy / tokens,
    approxKl: policy.approxKl / tokens,
    clipFraction: policy.clipped / tokens,
    dualClipFraction: policy.dualClipped / tokens,
    valueClipFraction: value.clipped / tokens,
    ratio: policy.ratio / tokens,
    ratioSquared: policy.ratioSquared / tokens,
    ...norms,
  };
}

function mean(values: readonly number[] | Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / Math.max(1, values.length);
}

/** What the objective is made of. */
export interface Objective extends Pick<Experience, "batch" | "scores" | "logProb" | "kl"> {
  /** The source's own scores, before they were shaped. */
  readonly raw: AnswerScores;
  readonly diversity: Float32Array | null;
}

/** The metrics of a batch of rollouts under TRL's names: means over its answers. */
export function objectiveMetrics(
  { batch, scores, logProb, kl, raw, diversity }: Objective,
  klCoefficient: number,
): Metrics {
  const meanScore = mean(scores);
  const nonScoreReward = -klCoefficient * kl;
  return {
    "objective/scores": meanScore,
    "objective/raw_scores": mean(raw.scores),
    "objective/kl": kl,
    "objective/entropy": -batch.meanPerAnswer(logProb),
    "objective/non_score_reward": nonScoreReward,
    "objective/rlhf_reward": meanScore + nonScoreReward,
    "objective/response_length": batch.responseTokens() / batch.size,
    ...(raw.spread ? { "objective/reward_spread": mean(raw.spread) } : {}),
    ...(diversity ? { "objective/diversity": mean(diversity) } : {}),
    "val/num_eos_tokens": batch.rollouts.filter((rollout) => rollout.finishReason === "stop").length,
    kl_coef: klCoefficient,
  };
}

/** The metrics of an iteration's updates under TRL's names: means over its minibatches. */
export function updateMetrics(minibatches: readonly PpoMinibatch[]): Metrics {
  const over = (read: (minibatch: PpoMinibatch) => number): number => mean(minibatches.map(read));
  const applied = minibatches.filter((minibatch) => minibatch.gradNorm !== null);
  const ratio = over((minibatch) => minibatch.ratio);
  const ownNorms = applied.filter((minibatch) => minibatch.valueGradNorm !== undefined);
  return {
    "policy/approxkl_avg": over((minibatch) => minibatch.approxKl),
    "policy/clipfrac_avg": over((minibatch) => minibatch.clipFraction),
    "policy/dual_clipfrac_avg": over((minibatch) => minibatch.dualClipFraction),
    "policy/entropy_avg": over((minibatch) => minibatch.entropy),
    "loss/policy_avg": over((minibatch) => minibatch.policyLoss),
    "loss/value_avg": over((minibatch) => minibatch.valueLoss),
    "val/clipfrac_avg": over((minibatch) => minibatch.valueClipFraction),
    "val/ratio": ratio,
    "val/ratio_var": Math.max(0, over((minibatch) => minibatch.ratioSquared) - ratio ** 2),
    gradNorm: mean(applied.map((minibatch) => minibatch.gradNorm as number)),
    ...(ownNorms.length > 0
      ? { valueGradNorm: mean(ownNorms.map((minibatch) => minibatch.valueGradNorm as number)) }
      : {}),
    updates: applied.length,
  };
}
