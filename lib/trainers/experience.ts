import type { Engine } from "../engine/engine.ts";
import { gae, klReward, whiten } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { PPOSettings } from "./ppo-settings.ts";
import type { RolloutBatch } from "./rollouts.ts";

/**
 * Rollouts with all that an update needs. Arrays are Float32Array[N] over `batch.packed` and describe token t at index t, 0
 * outside the responses; the value that belongs to token t stands at t − 1.
 */
export interface Experience {
  readonly batch: RolloutBatch;
  /** Float32Array[S]: shaped and clipped, with bonus and penalties. */
  readonly scores: Float32Array;
  readonly logProb: Float32Array;
  readonly refLogProb: Float32Array;
  /** With klEstimator "full", KL(policy‖reference) over the whole vocabulary; else null. */
  readonly divergence: Float32Array | null;
  readonly value: Float32Array;
  readonly reward: Float32Array;
  readonly advantage: Float32Array;
  readonly returns: Float32Array;
  /** KL to the reference per answer, summed over its tokens. */
  readonly kl: number;
  /** "objective/…" and "val/num_eos_tokens". */
  readonly metrics: Metrics;
}

/** What was measured of rollouts, before it is turned into advantages. */
export type Measured = Pick<
  Experience,
  "batch" | "scores" | "logProb" | "refLogProb" | "divergence" | "value"
>;

type AdvantageSettings = Pick<
  PPOSettings,
  "klEstimator" | "gamma" | "lambda" | "whitenRewards" | "whitenAdvantages"
>;

/** Rewards with the KL penalty, advantages (whitened over the whole batch where the settings say so), returns, and the KL. */
export async function estimateAdvantages(
  engine: Engine,
  { batch, scores, logProb, refLogProb, divergence, value }: Measured,
  klCoefficient: number,
  settings: AdvantageSettings,
): Promise<Pick<Experience, "reward" | "advantage" | "returns" | "kl">> {
  const { klEstimator, gamma, lambda, whitenRewards, whitenAdvantages } = settings;
  const { mask, offsets } = batch.packed;
  const penalized = await klReward(engine, {
    // k1 is the log-ratio itself: a divergence that is known stands in its place.
    logProb: divergence ?? logProb,
    refLogProb: divergence ? new Float32Array(divergence.length) : refLogProb,
    mask,
    offsets,
    score: scores,
    klCoefficient,
    estimator: klEstimator === "full" ? "k1" : klEstimator,
  });
  using kl = penalized.kl;
  using raw = penalized.reward;
  using reward = whitenRewards ? (await whiten(engine, { x: raw, mask, shiftMean: false })).y : raw;
  const estimated = await gae(engine, { reward, value, mask, offsets, gamma, lambda });
  using unscaled = estimated.advantage;
  using returns = estimated.returns;
  using advantage = whitenAdvantages ? (await whiten(engine, { x: unscaled, mask })).y : unscaled;
  return {
    reward: await reward.read(),
    advantage: await advantage.read(),
    returns: await returns.read(),
    kl: batch.meanPerAnswer(await kl.read()),
  };
}
