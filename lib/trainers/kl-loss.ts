import type { PackedBatch } from "../model/batch.ts";
import type { Pass } from "../model/pass.ts";
import type { Network } from "./reference.ts";
import type { RolloutSettings } from "./rollout-settings.ts";

type KlLossSettings = Pick<RolloutSettings, "klLossCoefficient" | "klLossDirection" | "temperature">;

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
 * @param reference may be null where `klLossCoefficient` is 0
 */
export async function trainingPass(
  { model, adapter, head }: Network,
  reference: Network | null,
  batch: PackedBatch,
  { klLossCoefficient, klLossDirection, temperature }: KlLossSettings,
): Promise<Pass> {
  using refPass =
    reference && klLossCoefficient !== 0 ? await referencePass(reference, batch, temperature) : null;
  return await model.forward(batch, {
    adapter,
    head,
    temperature,
    grad: true,
    predict: "masked",
    ...(refPass ? { reference: refPass, klDirection: klLossDirection } : {}),
  });
}

/** What the divergence of a pass adds to its loss. */
export interface KlLoss {
  /** The gradient that `backward` takes; left out where the divergence is not in the loss. */
  readonly gradient: { readonly dKl?: Float32Array };
  /** Sums over the tokens in the mask: of the divergence, and of its part in the loss. */
  readonly divergence: number;
  readonly loss: number;
}

/**
 * klLossCoefficient · Σ_t weight·kl over the tokens in the mask.
 *
 * @param weight what a token of each sequence counts, Float32Array[S], or one number for all
 */
export async function klLoss(
  pass: Pass,
  { mask, offsets, sequences }: PackedBatch,
  weight: Float32Array | number,
  { klLossCoefficient }: Pick<KlLossSettings, "klLossCoefficient">,
): Promise<KlLoss> {
  if (klLossCoefficient === 0) return { gradient: {}, divergence: 0, loss: 0 };
  const kl = await pass.kl();
  const dKl = new Float32Array(kl.length);
  let [divergence, loss] = [0, 0];
  for (let s = 0; s < sequences; s++) {
    const counts = klLossCoefficient * (typeof weight === "number" ? weight : (weight[s] as number));
    for (let t = offsets[s] as number; t < (offsets[s + 1] as number); t++) {
      if (mask[t] === 0) continue;
      dKl[t] = counts;
      divergence += kl[t] as number;
      loss += counts * (kl[t] as number);
    }
  }
  return { gradient: { dKl }, divergence, loss };
}
