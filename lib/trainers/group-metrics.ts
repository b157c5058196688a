import type { GroupPolicyStat } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { meanOf, type RatioMeans, ratioMeans, ratioMetrics } from "./rollout-metrics.ts";

/** The loss holds all its parts; `divergence` is the sum of the KL over the whole vocabulary, 0 where it is no part of the loss. */
export type GroupSums = Readonly<Record<GroupPolicyStat | "divergence", number>>;

/** One minibatch of an update, in means over its response tokens before its optimizer step. */
export interface GroupMinibatch extends RatioMeans {
  /** Rollouts, by their index in the batch. */
  readonly rollouts: Int32Array;
  readonly tokens: number;
  /** As it is averaged by the settings, the KL's share included. */
  readonly loss: number;
  /** Tokens whose ratio was clipped below, and above. */
  readonly clipFractionLow: number;
  readonly clipFractionHigh: number;
  /** k3 to the reference; 0 where none is kept. */
  readonly kl: number;
  /** From the reference, over the whole vocabulary; 0 where it is no part of the loss. */
  readonly divergence: number;
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
    ...ratioMeans(sums),
    clipFractionLow: sums.clippedLow / tokens,
    clipFractionHigh: sums.clippedHigh / tokens,
    kl: sums.kl / tokens,
    divergence: sums.divergence / tokens,
    gradNorm,
  };
}

/**
 * The metrics of an iteration's updates: means over its minibatches.
 *
 * @param measured whether the divergence from the reference is part of the loss
 */
export function groupUpdateMetrics(
  minibatches: readonly GroupMinibatch[],
  measured: { readonly divergence: boolean },
): Metrics {
  const over = (read: (minibatch: GroupMinibatch) => number): number => meanOf(minibatches.map(read));
  return {
    ...ratioMetrics(minibatches),
    "policy/clipfrac_low_avg": over((minibatch) => minibatch.clipFractionLow),
    "policy/clipfrac_high_avg": over((minibatch) => minibatch.clipFractionHigh),
    ...(measured.divergence ? { "policy/kl_avg": over((minibatch) => minibatch.divergence) } : {}),
    "loss/policy_avg": over((minibatch) => minibatch.loss),
    gradNorm: over((minibatch) => minibatch.gradNorm),
    updates: minibatches.length,
  };
}
