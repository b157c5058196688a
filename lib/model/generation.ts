import { callAsync, type NativeGenerateOptions, type NativeModel } from "../engine/native.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export interface GenerateOptions {
  readonly maxNewTokens: number;
  /** End tokens are not drawn before this many. Default 0. */
  readonly minNewTokens?: number;
  /** 0 is greedy. Default 1. */
  readonly temperature?: number;
  /** Draw from the k most likely tokens. Default 0: all. */
  readonly topK?: number;
  /** Draw from the smallest set of tokens with this probability. Default 1: all. */
  readonly topP?: number;
  /** Draw from tokens at least this likely relative to the most likely one. Default 0: all. */
  readonly minP?: number;
  /** Above 1: tokens that have occurred become less likely (Keskar et al. 2019). Default 1. */
  readonly repetitionPenalty?: number;
  /** Default 0. The same seed gives the same tokens, whatever the batch size. */
  readonly seed?: number;
  /** Prompt i draws from random stream firstStream + i. Default 0. */
  readonly firstStream?: number;
  /** Token ids that end a sequence; left out: the model's end tokens; []: none. */
  readonly stop?: readonly number[];
  /**
   * Texts that end a sequence, beside the tokens of `stop`, wherever tokens begin and end; they need a tokenizer. One counts when it
   * lies in the new text as a whole and ends after `minNewTokens` or later.
   */
  readonly stopStrings?: readonly string[];
  /** Sequences decoded at a time; one that ends makes room for one that waits. Default 64. */
  readonly maxBatch?: number;
  readonly adapter?: string;
  /** Called for every token as it is drawn. What it throws stops the generation and is thrown. */
  readonly onToken?: (sequence: number, token: number) => void;
  /** Stops at the next token with ERR_RLHF_ABORTED. */
  readonly signal?: AbortSignal;
}

const GENERATE_OPTIONS: NamesOf<GenerateOptions> = {
  maxNewTokens: true,
  minNewTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  seed: true,
  firstStream: true,
  stop: true,
  stopStrings: true,
  maxBatch: true,
  adapter: true,
  onToken: true,
  signal: true,
};

export interface Generation {
  /** Int32Array: the new tokens, including the end token or the one that completes a stop string. */
  readonly tokens: Int32Array;
  /** "stop": an end token was drawn or a stop string completed; "length": maxNewTokens or the context was reached. */
  readonly finishReason: "stop" | "length";
}

function checkRange(name: string, value: number, low: number, high: number): void {
  if (value >= low && value <= high) return;
  const range = low === Number.MIN_VALUE ? `more than 0, up to ${high}` : `${low} to ${high}`;
  throw new RlhfError("ERR_RLHF_ARGUMENT", `generate: ${name} is ${value}, expected ${range}`, {
    [name]: value,
  });
}

function checkCount(name: string, value: number, low: number): void {
  if (!Number.isSafeInteger(value) || value < low)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `generate: ${name} is ${value}, expected an integer of at least ${low}`,
      { [name]: value },
    );
}

/** Fills in the defaults and checks every range. */
function toNativeOptions(
  options: GenerateOptions,
  eosTokenIds: readonly number[],
  tokenizer: Tokenizer | undefined,
): NativeGenerateOptions {
  refuseUnknownOptions("generate", options, GENERATE_OPTIONS);
  const result = {
    maxNewTokens: options.maxNewTokens,
    minNewTokens: options.minNewTokens ?? 0,
    temperature: options.temperature ?? 1,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    minP: options.minP ?? 0,
    repetitionPenalty: options.repetitionPenalty ?? 1,
    seed: options.seed ?? 0,
    firstStream: options.firstStream ?? 0,
    stopTokens: Int32Array.from(options.stop ?? eosTokenIds),
    maxBatch: options.maxBatch ?? 64,
    adapter: options.adapter ?? "",
    ...nativeStopStrings(options.stopStrings ?? [], tokenizer),
  };
  checkCount("maxNewTokens", result.maxNewTokens, 1);
  checkCount("minNewTokens", result.minNewTokens, 0);
  checkCount("topK", result.topK, 0);
  checkCount("seed", result.seed, 0);
  checkCount("firstStream", result.firstStream, 0);
  checkCount("maxBatch", result.maxBatch, 1);
  checkRange("temperature", result.temperature, 0, 1e6);
  checkRange("topP", result.topP, Number.MIN_VALUE, 1);
  checkRange("minP", result.minP, 0, 1);
  checkRange("repetitionPenalty", result.repetitionPenalty, Number.MIN_VALUE, 1e6);
  return result;
}

function nativeStopStrings(
  strings: readonly string[],
  tokenizer: Tokenizer | undefined,
): Pick<NativeGenerateOptions, "stopStrings"> {
  if (!Array.isArray(strings) || !strings.every((text) => typeof text === "string" && text !== ""))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "generate: stopStrings must be a list of texts, none of them empty",
    );
  if (strings.length === 0) return {};
  if (!tokenizer)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "generate: stopStrings need a tokenizer, which knows the tokens' text",
    );
  return { stopStrings: { ...tokenizer.tokenBytes, strings } };
}

/**
 * The text of an answer: what its tokens add to the prompt's text, and of one that ended at a stop string what stands before it. Text
 * that only the last token could complete is cut, as generation would have ended earlier otherwise.
 */
export function answerText(
  tokenizer: Tokenizer,
  prompt: Int32Array,
  { tokens, finishReason }: Generation,
  stopStrings: readonly string[] = [],
): string {
  const text = tokenizer.decodeContinuation(prompt, tokens);
  if (finishReason !== "stop" || stopStrings.length === 0) return text;
  const before = tokenizer.decodeContinuation(prompt, tokens.subarray(0, -1));
  let common = 0;
  while (common < before.length && before[common] === text[common]) common++;
  const found = stopStrings
    .map((stop) => text.indexOf(stop, Math.max(0, common - stop.length + 1)))
    .filter((place) => place >= 0);
  return found.length === 0 ? text : text.slice(0, Math.min(...found));
}

/** Runs one generation on the native model; see CausalLM.generate. */
export async function generate(
  model: NativeModel,
  prompts: readonly Int32Array[],
  options: GenerateOptions,
  eosTokenIds: readonly number[],
  tokenizer?: Tokenizer,
): Promise<Generation[]> {
  const nativeOptions = toNativeOptions(options, eosTokenIds, tokenizer);
  throwIfAborted(options.signal, "generate");
  if (prompts.length === 0) return [];
  let failure: { readonly error: unknown } | null = null;
  let cancel: () => void = () => undefined;
  const { onToken, signal } = options;
  const listener = onToken
    ? (sequence: number, token: number): void => {
        if (failure) return;
        try {
          onToken(sequence, token);
        } catch (error) {
          failure = { error };
          cancel();
        }
      }
    : undefined;
  const onAbort = (): void => cancel();
  try {
    const generations = await callAsync(() => {
      const running = model.generate(prompts, nativeOptions, listener);
      cancel = running.cancel;
      signal?.addEventListener("abort", onAbort, { once: true });
      return running.promise;
    });
    if (failure) throw (failure as { error: unknown }).error;
    return generations.map(({ tokens, stopped }) => ({ tokens, finishReason: stopped ? "stop" : "length" }));
  } catch (error) {
    if (failure) throw (failure as { error: unknown }).error;
    throwIfAborted(signal, "generate");
    throw error;
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}
