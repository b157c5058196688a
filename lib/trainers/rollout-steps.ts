import { epochBatches } from "../data/batching.ts";
import type { TokenizedPrompt } from "../data/types.ts";
import type { Pass } from "../model/pass.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { referencePass } from "./kl-loss.ts";
import type { OpeningPass } from "./opening-pass.ts";
import type { Network } from "./reference.ts";
import type { RolloutSettings } from "./rollout-settings.ts";
import type { Rollout, RolloutBatch } from "./rollouts.ts";

/**
 * The prompts after so many that were drawn before, in a new order each time through or as given. They follow from the number alone,
 * so a resumed run finds the same.
 */
export function promptsAfter(
  prompts: readonly TokenizedPrompt[],
  drawn: number,
  count: number,
  { shufflePrompts, seed }: Pick<RolloutSettings, "shufflePrompts" | "seed">,
): TokenizedPrompt[] {
  const all = prompts.length;
  const orders = new Map<number, Int32Array>();
  return Array.from({ length: count }, (_, i) => {
    const epoch = Math.floor((drawn + i) / all);
    const place = (drawn + i) % all;
    if (!shufflePrompts) return prompts[place] as TokenizedPrompt;
    const order = orders.get(epoch) ?? (epochBatches(all, all, seed, epoch)[0] as Int32Array);
    orders.set(epoch, order);
    return prompts[order[place] as number] as TokenizedPrompt;
  });
}

/** The settings that decide what is sampled. */
type SamplingSettings = Pick<
  RolloutSettings,
  "maxNewTokens" | "minNewTokens" | "temperature" | "topP" | "seed" | "stop" | "stopStrings"
>;

/** Samples an answer to each prompt, the first of them from random stream `firstStream`. */
export async function sampleRollouts(
  { model, adapter }: Network,
  tokenizer: Tokenizer,
  prompts: readonly TokenizedPrompt[],
  firstStream: number,
  settings: SamplingSettings,
): Promise<Rollout[]> {
  const { maxNewTokens, minNewTokens, temperature, topP, seed, stop, stopStrings } = settings;
  const ends = model.eosTokenIds.length > 0 ? model.eosTokenIds : tokenizer.endTokenIds;
  const generations = await model.generate(
    prompts.map((prompt) => prompt.tokens),
    {
      maxNewTokens,
      minNewTokens,
      temperature,
      topP,
      seed,
      firstStream,
      stop: stop ?? ends,
      stopStrings,
      adapter,
      tokenizer,
    },
  );
  return generations.map(({ tokens: response, text, finishReason }, i) => {
    const { tokens: prompt, row } = prompts[i] as TokenizedPrompt;
    const tokens = new Int32Array(prompt.length + response.length);
    tokens.set(prompt);
    tokens.set(response, prompt.length);
    return { row, tokens, promptLength: prompt.length, response: text, finishReason };
  });
}

/** What one network gives of all rollouts, Float32Array[N] over `batch.packed`; 0 where it was not asked for. */
export interface NetworkOutputs {
  readonly logProb: Float32Array;
  /** Of use where response tokens are predicted from, and at each rollout's last. */
  readonly value: Float32Array;
}

/** What the policy gives of all rollouts, and how far it is from a reference. */
export interface ComparedOutputs extends NetworkOutputs {
  /** Float32Array[N]: log-probs of the reference. */
  readonly refLogProb: Float32Array;
  /** Float32Array[N]: KL(policy‖reference) over the whole vocabulary where each response token was predicted, in nats. */
  readonly divergence: Float32Array;
}

/** Log-probs and values of the policy, and its divergence from the reference. */
export async function compareRollouts(
  batch: RolloutBatch,
  { model, adapter, head }: Network,
  reference: Network,
  { microBatchTokens, temperature }: Pick<RolloutSettings, "microBatchTokens" | "temperature">,
): Promise<ComparedOutputs> {
  const array = (): Float32Array => new Float32Array(batch.packed.tokens.length);
  const outputs = { logProb: array(), value: array(), refLogProb: array(), divergence: array() };
  for (const indices of batch.microBatches(microBatchTokens, batch.rollouts.keys())) {
    const packed = batch.select(indices);
    using refPass = await referencePass(reference, packed, temperature);
    using pass = await model.forward(packed, {
      adapter,
      head,
      temperature,
      predict: "masked",
      values: "masked",
      reference: refPass,
    });
    batch.scatter(outputs.logProb, indices, await pass.logProb());
    batch.scatter(outputs.refLogProb, indices, await refPass.logProb());
    batch.scatter(outputs.divergence, indices, await pass.kl());
    if (head !== undefined) batch.scatter(outputs.value, indices, await pass.value());
  }
  return outputs;
}

/**
 * Log-probs of the responses, unless they are left out, and the values of the network's head, where it has one.
 *
 * @param opening keeps the pass over its rollouts, the last of all
 */
export async function measureRollouts(
  batch: RolloutBatch,
  { model, adapter, head }: Network,
  { microBatchTokens, temperature }: Pick<RolloutSettings, "microBatchTokens" | "temperature">,
  {
    logProbs: statistics = true,
    opening = null,
  }: { readonly logProbs?: boolean; readonly opening?: OpeningPass | null } = {},
): Promise<NetworkOutputs> {
  const logProb = new Float32Array(batch.packed.tokens.length);
  const value = new Float32Array(batch.packed.tokens.length);
  const options = {
    ...{ adapter, head, temperature, statistics },
    ...({ predict: "masked", values: "masked" } as const),
  };
  const read = async (pass: Pass, indices: readonly number[]): Promise<void> => {
    if (statistics) batch.scatter(logProb, indices, await pass.logProb());
    if (head !== undefined) batch.scatter(value, indices, await pass.value());
  };
  const first = opening?.rolloutsOf(batch) ?? [];
  const others = new Set(batch.rollouts.keys());
  for (const index of first) others.delete(index);
  for (const indices of batch.microBatches(microBatchTokens, others)) {
    using pass = await model.forward(batch.select(indices), options);
    await read(pass, indices);
  }
  if (opening) {
    const pass = await model.forward(batch.select(first), { ...options, grad: true, keepLogits: false });
    opening.keep(pass);
    await read(pass, first);
  }
  return { logProb, value };
}
