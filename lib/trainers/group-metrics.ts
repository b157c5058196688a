import type { GroupPolicyStat } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";

export type GroupSums = Readonly<Record<GroupPolicyStat, number>>;

/** One minibatch of an update, in means over its response tokens before its optimizer step. */
export interface GroupMinibatch {
  /** Rollouts, by their index in the batch. */
  readonly rollouts: Int32Array;
  readonly tokens: number;
  /** As it is averaged by the settings, the KL's share included. */
  readonly loss: number;
  /** Mean of ½·(log ratio)². */
  readonly approxKl: number;
  /** Tokens whose ratio was clipped below, and above. */
  readonly clipFractionLow: number;
  readonly clipFractionHigh: number;
  readonly ratio: number;
  readonly ratioSquared: number;
  /** k3 to the reference; 0 where none is kept. */
  readonly kl: number;
  /** Norm before clipping. */
  readonly gradNorm: number;
}

export function summarizeGroupMinibatch(
  rollouts: Int32Array,
  sums: GroupSums,
  gradNorm: number,
): GroupMinibatch {
  const { tokens, loss } = sums;
  return {
    rollouts,
    tokens,
    loss,
    approxKl: sums.approxKl / tokens,
    clipFractionLow: sums.clippedLow / tokens,
    clipFractionHigh: sums.clippedHigh / tokens,
    ratio: sums.ratio / tokens,
    ratioSquared: sums.ratioSquared / tokens,
    kl: sums.kl / tokens,
    gradNorm,
  };
}

/** The metrics of an iteration's updates: means over its minibatches. */
export function groupUpdateMetrics(minibatches: readonly GroupMinibatch[]): Metrics {
  const over = (read: (minibatch: GroupMinibatch) => number): number =>
    minibatches.reduce((sum, minibatch) => sum + read(minibatch), 0) / minibatches.length;
  const ratio = over((minibatch) => minibatch.ratio);
  return {
    "policy/approxkl_avg": over((minibatch) => minibatch.approxKl),
    "policy/clipfrac_low_avg": over((minibatch) => minibatch.clipFractionLow),
    "policy/clipfrac_high_avg": over((minibatch) => minibatch.clipFractionHigh),
    "loss/policy_avg": over((minibatch) => minibatch.loss),
    "val/ratio": ratio,
    "val/ratio_var": Math.max(0, over((minibatch) => minibatch.ratioSquared) - ratio ** 2),
    gradNorm: over((minibatch) => minibatch.gradNorm),
    updates: minibatches.length,
  };
}
