import { type FloatArray, readArray } from "../engine/array.ts";
import type { Engine } from "../engine/engine.ts";
import { gae, klReward, whiten } from "../engine/losses.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { EndPlaces } from "./end-places.ts";
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
  /** Float32Array[S]: the return of the place after each answer that ended itself; null where scores stand at the last token. */
  readonly endReturns: Float32Array | null;
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
> &
  Partial<Pick<PPOSettings, "rewardPlacement">>;

/** Rewards with the KL penalty, advantages (whitened over the whole batch where the settings say so), returns, and the KL. */
export async function estimateAdvantages(
  engine: Engine,
  { batch, scores, logProb, refLogProb, divergence, value }: Measured,
  klCoefficient: number,
  settings: AdvantageSettings,
): Promise<Pick<Experience, "reward" | "advantage" | "returns" | "endReturns" | "kl">> {
  const { klEstimator, gamma, lambda, whitenRewards, whitenAdvantages } = settings;
  const ends = settings.rewardPlacement === "after-end" ? new EndPlaces(batch.packed, batch.rollouts) : null;
  const { mask, offsets } = ends ?? batch.packed;
  const withEnds = (values: Float32Array): Float32Array => (ends ? ends.insert(values) : values);
  const ofTokens = (values: Float32Array): Float32Array => (ends ? ends.remove(values) : values);
  const penalized = await klReward(engine, {
    // k1 is the log-ratio itself: a divergence that is known stands in its place.
    logProb: withEnds(divergence ?? logProb),
    refLogProb: withEnds(divergence ? new Float32Array(divergence.length) : refLogProb),
    mask,
    offsets,
    score: scores,
    klCoefficient,
    estimator: klEstimator === "full" ? "k1" : klEstimator,
  });
  using kl = penalized.kl;
  using raw = penalized.reward;
  using reward = whitenRewards ? (await whiten(engine, { x: raw, mask, shiftMean: false })).y : raw;
  const estimated = await gae(engine, { reward, value: withEnds(value), mask, offsets, gamma, lambda });
  using unscaled = estimated.advantage;
  using returns = estimated.returns;
  const allReturns = await returns.read();
  const advantage = ends ? ofTokens(await unscaled.read()) : unscaled;
  return {
    reward: ofTokens(await reward.read()),
    // Over tokens alone: a place after the end is no action.
    advantage: await (whitenAdvantages
      ? whitened(engine, advantage, batch.packed.mask)
      : readArray(advantage)),
    returns: ofTokens(allReturns),
    endReturns: ends?.read(allReturns) ?? null,
    kl: batch.meanPerAnswer(ofTokens(await kl.read())),
  };
}

async function whitened(engine: Engine, x: FloatArray, mask: Float32Array): Promise<Float32Array> {
  using y = (await whiten(engine, { x, mask })).y;
  return await y.read();
}
