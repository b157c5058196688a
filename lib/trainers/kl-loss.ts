import type { DeviceArray } from "../engine/array.ts";
import type { PackedBatch } from "../model/batch.ts";
import type { Pass, PassGradients } from "../model/pass.ts";
import type { Network } from "./reference.ts";
import type { RolloutSettings } from "./rollout-settings.ts";

type KlLossSettings = Pick<
  RolloutSettings,
  "klLossCoefficient" | "klLossDirection" | "klLossEstimator" | "temperature"
>;

/** Whether updates compare the policy with the reference over the whole vocabulary, for which they run the reference again. */
export function comparesInLoss({
  klLossCoefficient,
  klLossEstimator,
}: Pick<KlLossSettings, "klLossCoefficient" | "klLossEstimator">): boolean {
  return klLossCoefficient !== 0 && klLossEstimator === "full";
}

/** A pass of the reference over the tokens in the mask, for passes of the policy to be compared with. */
export function referencePass(
  { model, adapter }: Network,
  batch: PackedBatch,
  temperature: number,
): Promise<Pass> {
  return model.forward(batch, { adapter, temperature, predict: "masked", keepDistribution: true });
}

/**
 * A pass of the policy for training on the tokens in the mask, compared with the reference where their divergence is in the loss.
 *
 * @param reference may be null where it is not
 */
export async function trainingPass(
  { model, adapter, head }: Network,
  reference: Network | null,
  batch: PackedBatch,
  settings: KlLossSettings,
): Promise<Pass> {
  const { klLossDirection, temperature } = settings;
  using refPass =
    reference && comparesInLoss(settings) ? await referencePass(reference, batch, temperature) : null;
  return await model.forward(batch, {
    adapter,
    head,
    temperature,
    grad: true,
    predict: "masked",
    values: "masked",
    ...(refPass ? { reference: refPass, klDirection: klLossDirection } : {}),
  });
}

/** A loss with the KL in it. */
export interface KlLoss {
  /** What `backward` takes of both. */
  readonly gradients: Pick<PassGradients, "dLogProb" | "dKl">;
  /** Sums over the tokens in the mask: of the KL, and of its part in the loss. */
  readonly divergence: number;
  readonly loss: number;
}

/** What a loss has by itself, and log-probs of the reference, both of the batch's tokens. */
export interface LossWithoutKl {
  readonly dLogProb: DeviceArray;
  /** Needed for "k2". */
  readonly refLogProb: Float32Array | undefined;
}

/**
 * Adds klLossCoefficient · Σ_t weight·kl over the tokens in the mask to a loss. kl is the pass's divergence, or with the estimator "k2"
 * ½(log π − log π_ref)² of the token that was sampled: its gradient (log π − log π_ref)·∇log π is that of KL(π‖π_ref) in the mean over
 * what π samples (Hu et al. 2025, REINFORCE++).
 *
 * @param weight what a token of each sequence counts, Float32Array[S], or one number for all
 */
export async function withKlLoss(
  pass: Pass,
  { mask, offsets, sequences }: PackedBatch,
  weight: Float32Array | number,
  settings: KlLossSettings,
  { dLogProb, refLogProb }: LossWithoutKl,
): Promise<KlLoss> {
  const { klLossCoefficient } = settings;
  if (klLossCoefficient === 0) return { gradients: { dLogProb }, divergence: 0, loss: 0 };
  const full = comparesInLoss(settings);
  const logProb = full ? null : await pass.logProb();
  const difference = logProb?.map((each, t) => each - (refLogProb?.[t] as number));
  const kl = difference?.map((each) => each ** 2 / 2) ?? (await pass.kl());
  const counts = new Float32Array(kl.length);
  let [divergence, loss] = [0, 0];
  for (let s = 0; s < sequences; s++) {
    const count = klLossCoefficient * (typeof weight === "number" ? weight : (weight[s] as number));
    for (let t = offsets[s] as number; t < (offsets[s + 1] as number); t++) {
      if (mask[t] === 0) continue;
      counts[t] = count;
      divergence += kl[t] as number;
      loss += count * (kl[t] as number);
    }
  }
  if (!difference) return { gradients: { dLogProb, dKl: counts }, divergence, loss };
  const slopes = await dLogProb.read();
  const both = slopes.map((slope, t) => slope + (counts[t] as number) * (difference[t] as number));
  return { gradients: { dLogProb: both }, divergence, loss };
}
