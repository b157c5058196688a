import type { PpoPolicyStat, PpoValueStat } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Experience } from "./experience.ts";
import {
  addSums,
  answerMetrics,
  meanOf,
  type RatioMeans,
  ratioMeans,
  ratioMetrics,
} from "./rollout-metrics.ts";
import type { ScoredRollouts } from "./score-shaping.ts";

/** Sums over the response tokens of a minibatch. */
export interface MinibatchSums {
  readonly policy: Readonly<Record<PpoPolicyStat, number>>;
  readonly value: Readonly<Record<PpoValueStat, number>>;
  /** Of the divergence from the reference, and of its part in the loss; 0 where it has none. */
  readonly kl: Readonly<Record<"loss" | "divergence", number>>;
}

/** The sums of two micro-batches together. */
export function addMinibatchSums(a: MinibatchSums, b: MinibatchSums): MinibatchSums {
  return {
    policy: addSums(a.policy, b.policy),
    value: addSums(a.value, b.value),
    kl: addSums(a.kl, b.kl),
  };
}

/**
 * One minibatch of an update, in means over its response tokens before its optimizer step; what is of values also over the places after
 * ends, where the score is given there.
 */
export interface PpoMinibatch extends RatioMeans {
  /** Rollouts, by their index in the batch. */
  readonly rollouts: Int32Array;
  readonly tokens: number;
  readonly policyLoss: number;
  readonly valueLoss: number;
  readonly entropy: number;
  readonly clipFraction: number;
  /** Share of tokens whose loss `dualClip` bounds. */
  readonly dualClipFraction: number;
  readonly valueClipFraction: number;
  /** Of the policy from the reference, over the whole vocabulary; 0 where it is no part of the loss. */
  readonly divergence: number;
  /** Norm before clipping; null when the minibatch was not applied because of targetKl. */
  readonly gradNorm: number | null;
  /** Of a value function with an optimizer of its own. */
  readonly valueGradNorm?: number;
}

/** Means from a minibatch's sums. */
export function summarizeMinibatch(
  rollouts: Int32Array,
  { policy, value, kl }: MinibatchSums,
  norms: Pick<PpoMinibatch, "gradNorm" | "valueGradNorm">,
): PpoMinibatch {
  const { tokens } = policy;
  return {
    rollouts,
    tokens,
    policyLoss: policy.loss / tokens,
    valueLoss: value.loss / value.tokens,
    entropy: policy.entropy / tokens,
    ...ratioMeans(policy),
    clipFraction: policy.clipped / tokens,
    dualClipFraction: policy.dualClipped / tokens,
    valueClipFraction: value.clipped / value.tokens,
    divergence: kl.divergence / tokens,
    ...norms,
  };
}

/** The metrics of a batch of rollouts under TRL's names: means over its answers. */
export function objectiveMetrics(
  { batch, logProb, kl }: Pick<Experience, "batch" | "logProb" | "kl">,
  scored: ScoredRollouts,
  klCoefficient: number,
): Metrics {
  const nonScoreReward = -klCoefficient * kl;
  return {
    ...answerMetrics(batch, scored, logProb, kl),
    "objective/non_score_reward": nonScoreReward,
    "objective/rlhf_reward": meanOf(scored.scores) + nonScoreReward,
    kl_coef: klCoefficient,
  };
}

/**
 * The metrics of an iteration's updates under TRL's names: means over its minibatches.
 *
 * @param measured whether the divergence from the reference is part of the loss
 */
export function updateMetrics(
  minibatches: readonly PpoMinibatch[],
  measured: { readonly divergence: boolean },
): Metrics {
  const over = (read: (minibatch: PpoMinibatch) => number): number => meanOf(minibatches.map(read));
  const applied = minibatches.filter((minibatch) => minibatch.gradNorm !== null);
  const ownNorms = applied.filter((minibatch) => minibatch.valueGradNorm !== undefined);
  return {
    ...ratioMetrics(minibatches),
    "policy/clipfrac_avg": over((minibatch) => minibatch.clipFraction),
    "policy/dual_clipfrac_avg": over((minibatch) => minibatch.dualClipFraction),
    "policy/entropy_avg": over((minibatch) => minibatch.entropy),
    ...(measured.divergence ? { "policy/kl_avg": over((minibatch) => minibatch.divergence) } : {}),
    "loss/policy_avg": over((minibatch) => minibatch.policyLoss),
    "loss/value_avg": over((minibatch) => minibatch.valueLoss),
    "val/clipfrac_avg": over((minibatch) => minibatch.valueClipFraction),
    gradNorm: meanOf(applied.map((minibatch) => minibatch.gradNorm as number)),
    ...(ownNorms.length > 0
      ? { valueGradNorm: meanOf(ownNorms.map((minibatch) => minibatch.valueGradNorm as number)) }
      : {}),
    updates: applied.length,
  };
}
