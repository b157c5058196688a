import { stat } from "node:fs/promises";
import { join } from "node:path";
import { planMicroBatches } from "../data/batching.ts";
import { encodeChatPrompt, encodePrompt } from "../data/encode.ts";
import { tokenizeSft } from "../data/tokenize.ts";
import type { PromptRow, SftRow } from "../data/types.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { packSequences, type SequenceInput } from "../model/batch.ts";
import { CausalLM } from "../model/causal-lm.ts";
import type { GenerateOptions } from "../model/generation.ts";
import type { LoadOptions } from "../model/model-options.ts";
import { isPeftDirectory, readPeftDirectory } from "../model/peft.ts";
import type { ScoredAnswer } from "../rewards/reward.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";

/** A model in memory, with the adapter to run it through if any. It stays the caller's. */
export interface LoadedPolicy {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly adapter?: string | undefined;
}

/** A model's directory, a PEFT directory that names its base, a `hub:` name, or a model in memory. */
export type EvaluatedModel = string | LoadedPolicy;

/** How models are loaded from directories. */
export type PolicyLoadOptions = Pick<LoadOptions, "device" | "threads" | "dtype" | "compute">;

/** An answer with what is measured of every one. */
export interface EvaluatedAnswer extends ScoredAnswer {
  readonly promptLength: number;
}

/** How answers are sampled: as `CausalLM.generate`. */
export type Sampling = Pick<
  GenerateOptions,
  "maxNewTokens" | "minNewTokens" | "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty" | "seed"
>;

const LOADED_ADAPTER = "evaluated";

async function openDirectory(
  path: string,
  { device, threads, dtype }: PolicyLoadOptions,
): Promise<LoadedPolicy> {
  const options = { device, threads, dtype, trainable: "none" } as const;
  const directory = await localModel(path);
  if (!(await isPeftDirectory(directory)))
    return {
      tokenizer: await Tokenizer.load(directory),
      model: await CausalLM.load(directory, options),
    };
  const { baseModel } = await readPeftDirectory(directory);
  if (baseModel === null)
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${directory}: names no base model (base_model_name_or_path); load base and adapter and pass them as { model, tokenizer, adapter }`,
      { directory },
    );
  const hasTokenizer = await stat(join(directory, "tokenizer.json")).catch(() => null);
  const tokenizer = await Tokenizer.load(hasTokenizer ? directory : baseModel);
  const model = await CausalLM.load(baseModel, options);
  try {
    await model.loadAdapter(LOADED_ADAPTER, directory, { trainable: false });
    return { model, tokenizer, adapter: LOADED_ADAPTER };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Runs a job on a model; one that had to be loaded is disposed of afterwards, so that one is in memory at a time. */
export async function withPolicy<T>(
  source: EvaluatedModel,
  options: PolicyLoadOptions,
  job: (policy: LoadedPolicy) => Promise<T>,
): Promise<T> {
  if (typeof source !== "string") return await job(source);
  const policy = await openDirectory(source, options);
  try {
    return await job(policy);
  } finally {
    policy.model.dispose();
  }
}

/**
 * Samples `numSamples` answers to each prompt, those to prompt p at p·numSamples and after. Answer i draws from random stream i, so
 * that models are compared on the same random numbers.
 */
export async function sampleAnswers(
  { model, tokenizer, adapter }: LoadedPolicy,
  prompts: readonly PromptRow[],
  numSamples: number,
  sampling: Sampling,
  signal: AbortSignal | undefined,
): Promise<EvaluatedAnswer[]> {
  const encoded = prompts.map(({ prompt, messages }) =>
    messages ? encodeChatPrompt(tokenizer, messages) : encodePrompt(tokenizer, prompt),
  );
  const inputs = encoded.flatMap((tokens) => new Array<Int32Array>(numSamples).fill(tokens));
  const stop = [...new Set([...tokenizer.endTokenIds, ...model.eosTokenIds])];
  const generations = await model.generate(inputs, {
    ...sampling,
    stop,
    ...(adapter === undefined ? {} : { adapter }),
    ...(signal && { signal }),
  });
  return generations.map(({ tokens: response, finishReason }, i) => {
    const prompt = inputs[i] as Int32Array;
    const tokens = new Int32Array(prompt.length + response.length);
    tokens.set(prompt);
    tokens.set(response, prompt.length);
    return {
      tokens,
      promptLength: prompt.length,
      response: tokenizer.decodeContinuation(prompt, response),
      finishReason,
      row: prompts[Math.floor(i / numSamples)] as PromptRow,
    };
  });
}

/** What log-probs are measured with. */
export interface MeasureOptions {
  /** Logits are divided by it. */
  readonly temperature: number;
  readonly microBatchTokens: number;
  readonly signal: AbortSignal | undefined;
}

/** The log-probability of each sequence's tokens from `promptLength` on (or in `lossMask`), summed. */
export async function sequenceLogProbs(
  { model, adapter }: LoadedPolicy,
  sequences: readonly (SequenceInput & { readonly tokens: Int32Array })[],
  { temperature, microBatchTokens, signal }: MeasureOptions,
): Promise<number[]> {
  const sums = sequences.map(() => 0);
  const plan = planMicroBatches(
    sequences.map(({ tokens }) => tokens.length),
    microBatchTokens,
  );
  for (const indices of plan) {
    throwIfAborted(signal, "evaluate");
    const batch = packSequences(indices.map((index) => sequences[index] as SequenceInput));
    using pass = await model.forward(batch, {
      temperature,
      predict: "masked",
      ...(adapter === undefined ? {} : { adapter }),
    });
    const logProb = await pass.logProb();
    for (const [s, index] of indices.entries())
      for (let t = batch.offsets[s] as number; t < (batch.offsets[s + 1] as number); t++)
        if (batch.mask[t] !== 0) sums[index] = (sums[index] as number) + (logProb[t] as number);
  }
  return sums;
}

/** exp of the mean negative log-likelihood of the response tokens of some references, end tokens included. */
export async function perplexityOf(
  policy: LoadedPolicy,
  references: readonly SftRow[],
  options: Omit<MeasureOptions, "temperature">,
): Promise<number> {
  const { examples } = tokenizeSft(references, policy.tokenizer, { maxLength: policy.model.maxLength });
  const sums = await sequenceLogProbs(policy, examples, { ...options, temperature: 1 });
  const tokens = examples.reduce(
    (sum, { lossMask }) => sum + lossMask.reduce((count, value) => count + value, 0),
    0,
  );
  return Math.exp(-sums.reduce((sum, value) => sum + value, 0) / tokens);
}
