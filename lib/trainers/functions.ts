import { Engine } from "../engine/engine.ts";
import { gae, rewardLoss } from "../engine/losses.ts";
import { type PreferenceLossType, preferenceLoss } from "../engine/preference-losses.ts";
import { RlhfError } from "../errors.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import type { PackedBatch } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { ForwardOptions, Parameter } from "../model/model-options.ts";
import { refuseUnknownOptions } from "../option-names.ts";

/*
 * The functions that tutorials on RLHF build their loops from, under the names they have there, each a few lines over this
 * package's own API.
 */

/** Log-probs of a batch's tokens, Float32Array[N]; 0 at each sequence's first token. Nothing is kept for a backward pass. */
export async function computeLogProbs(
  model: CausalLM,
  batch: PackedBatch,
  options: Pick<ForwardOptions, "adapter" | "temperature"> = {},
): Promise<Float32Array> {
  using pass = await model.forward(batch, options);
  return await pass.logProb();
}

/**
 * Generalised advantage estimation over one answer (Schulman et al. 2015). The value beyond its last token is 0.
 *
 * @param rewards of each token, length T
 * @param values V before each token, length T
 */
export async function computeAdvantages(
  rewards: ArrayLike<number>,
  values: ArrayLike<number>,
  options: { gamma?: number; lambda?: number } = {},
): Promise<{ advantages: Float32Array; returns: Float32Array }> {
  refuseUnknownOptions("computeAdvantages", options, { gamma: true, lambda: true });
  const { gamma = 1, lambda = 0.95 } = options;
  const length = rewards.length;
  // A packed sequence begins with a token that nothing predicts, and holds each token's value one place earlier.
  const reward = Float32Array.from([0, ...Array.from(rewards)]);
  const value = Float32Array.from([...Array.from(values), 0]);
  const mask = new Float32Array(length + 1).fill(1, 1);
  const offsets = Int32Array.of(0, length + 1);
  const result = await gae(Engine.shared(), { reward, value, mask, offsets, gamma, lambda });
  using advantage = result.advantage;
  using returns = result.returns;
  return { advantages: (await advantage.read()).slice(1), returns: (await returns.read()).slice(1) };
}

/**
 * The Bradley-Terry loss of pairs of scores, −log σ(chosen − rejected − margin), as a mean.
 *
 * @returns the loss, and the share of pairs whose chosen answer scores higher, equal scores counted as half
 */
export async function computePreferenceLoss(
  chosenScores: ArrayLike<number>,
  rejectedScores: ArrayLike<number>,
  margin = 0,
): Promise<{ loss: number; accuracy: number }> {
  const pairs = chosenScores.length;
  const { dValue, stats } = await rewardLoss(Engine.shared(), {
    value: Float32Array.from([...Array.from(chosenScores), ...Array.from(rejectedScores)]),
    chosen: Int32Array.from({ length: pairs }, (_, i) => i),
    rejected: Int32Array.from({ length: pairs }, (_, i) => pairs + i),
    margin: new Float32Array(pairs).fill(margin),
    scale: 1 / pairs,
  });
  dValue.dispose();
  return { loss: stats.loss / pairs, accuracy: stats.correct / pairs };
}

/**
 * The loss of direct preference optimisation (Rafailov et al. 2023, eq. 7) as a mean over pairs,
 * −log σ(β·((chosen − refChosen) − (rejected − refRejected))), or another of the family's losses.
 *
 * @param policyChosen log-prob of each chosen answer under the policy, summed over its tokens
 * @param refChosen the same under the reference policy
 * @param options β (0.1), the probability that a label is wrong (0), and a loss that needs no lengths ("sigmoid")
 * @returns the loss, each answer's reward β·(policy − reference), the share of pairs whose chosen answer has the higher one, and
 *   the loss's gradient by the policy's log-probs. Throws ERR_RLHF_SHAPE when lengths differ.
 */
export async function computeDpoLoss(
  policyChosen: ArrayLike<number>,
  policyRejected: ArrayLike<number>,
  refChosen: ArrayLike<number>,
  refRejected: ArrayLike<number>,
  options: { beta?: number; labelSmoothing?: number; type?: PreferenceLossType } = {},
): Promise<{
  loss: number;
  accuracy: number;
  chosenRewards: Float32Array;
  rejectedRewards: Float32Array;
  dPolicyChosen: Float32Array;
  dPolicyRejected: Float32Array;
}> {
  refuseUnknownOptions("computeDpoLoss", options, { beta: true, labelSmoothing: true, type: true });
  const { beta = 0.1, labelSmoothing = 0, type = "sigmoid" } = options;
  const pairs = policyChosen.length;
  if (policyRejected.length !== pairs)
    throw new RlhfError(
      "ERR_RLHF_SHAPE",
      `computeDpoLoss: ${pairs} chosen answers and ${policyRejected.length} rejected ones, expected as many of both`,
    );
  const chosen = Int32Array.from({ length: pairs }, (_, pair) => pair);
  const result = await preferenceLoss(Engine.shared(), {
    losses: [{ type }],
    logProb: Float32Array.from([...Array.from(policyChosen), ...Array.from(policyRejected)]),
    refLogProb: Float32Array.from([...Array.from(refChosen), ...Array.from(refRejected)]),
    chosen,
    rejected: chosen.map((pair) => pairs + pair),
    beta,
    labelSmoothing,
    scale: 1 / pairs,
  });
  using gradient = result.dLogProb;
  const dLogProb = await gradient.read();
  const rewards = (policy: ArrayLike<number>, reference: ArrayLike<number>): Float32Array =>
    Float32Array.from(policy, (logProb, pair) => beta * (logProb - (reference[pair] as number)));
  return {
    loss: result.stats.loss / pairs,
    accuracy: result.stats.correct / pairs,
    chosenRewards: rewards(policyChosen, refChosen),
    rejectedRewards: rewards(policyRejected, refRejected),
    dPolicyChosen: dLogProb.slice(0, pairs),
    dPolicyRejected: dLogProb.slice(pairs),
  };
}

function sizeOf(parameters: readonly Parameter[]): number {
  return parameters.reduce(
    (sum, { shape }) => sum + shape.reduce((product, extent) => product * extent, 1),
    0,
  );
}

/** Counts parameters, and prints them as peft does: "trainable params: … || all params: … || trainable%: …". */
export function printTrainableParameters(
  model: CausalLM,
  print: (line: string) => void = console.log,
): { trainable: number; all: number } {
  const parameters = model.parameters();
  const all = sizeOf(parameters);
  const trainable = sizeOf(parameters.filter((parameter) => parameter.trainable));
  const [some, total] = [trainable, all].map((count) => count.toLocaleString("en-US"));
  print(
    `trainable params: ${some} || all params: ${total} || trainable%: ${((100 * trainable) / all).toFixed(4)}`,
  );
  return { trainable, all };
}

/** The A and B matrices of a model's adapters, or of one. */
export function getLoraParameters(model: CausalLM, adapter?: string): Parameter[] {
  return model
    .parameters()
    .filter(({ group }) =>
      adapter === undefined ? group.startsWith("adapter:") : group === `adapter:${adapter}`,
    );
}

/** Adds a LoRA adapter to a model and returns the model. Default: name "default", r 16, alpha 32, the attention projections. */
export function applyLoraToModel(
  model: CausalLM,
  options: Partial<AdapterOptions> = {},
  name = "default",
): CausalLM {
  model.addAdapter(name, { r: 16, alpha: 32, ...options });
  return model;
}

/**
 * Adds an adapter to the model's weights for good, and removes it. It may be left out where the model has only one; throws
 * ERR_RLHF_ARGUMENT where it has several, or none.
 */
export async function mergeLoraWeights(model: CausalLM, adapter?: string): Promise<void> {
  const names = [...model.adapters.keys()];
  const name = adapter ?? (names.length === 1 ? names[0] : undefined);
  if (name === undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `mergeLoraWeights: name the adapter to merge; the model has ${names.join(", ") || "none"}`,
    );
  await model.mergeAdapter(name);
}

/** What `targetModules` of an adapter may name: the model's linear layers, e.g. "q_proj". */
export function findTargetModules(model: CausalLM): string[] {
  return model.linearModules;
}
