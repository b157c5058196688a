import { RlhfError } from "../errors.ts";
import type {
  ChatMessage,
  PreferenceRow,
  PromptRow,
  SftRow,
  TokenizedExample,
  TokenizedPreference,
  TokenizedPrompt,
} from "./types.ts";

/** What tokenising needs of a tokenizer; `Tokenizer` has it all. */
export interface PromptEncoder {
  readonly eosTokenId: number | null;
  encode(text: string, options?: { addSpecialTokens?: boolean }): Int32Array;
  applyChatTemplate(messages: readonly ChatMessage[], options?: { addGenerationPrompt?: boolean }): string;
}

export interface TokenizeOptions {
  /** Longest sequence in tokens, the end-of-sequence token included. Left out: no limit. */
  readonly maxLength?: number;
  /** Whether sequences end in the tokenizer's end-of-sequence token. Default true. */
  readonly appendEos?: boolean;
}

export interface TokenizePreferenceOptions extends TokenizeOptions {
  /**
   * What happens to pairs with an answer over `maxLength`: "drop" (default) leaves them out whole, "truncate" cuts the answer's
   * end off and leaves out those whose prompt alone fills the limit.
   */
  readonly overlong?: "truncate" | "drop";
}

export interface TokenizeSftOptions extends TokenizeOptions {
  /** What happens to examples over `maxLength`: "truncate" (default) cuts their end off, "drop" leaves them out. */
  readonly overlong?: "truncate" | "drop";
  /** Which tokens are learnt: the response (default), or the prompt too. */
  readonly lossOn?: "completion" | "all";
}

/** What tokenising a data set did. */
export interface TokenizeReport {
  readonly examples: number;
  readonly tokens: number;
  /** Examples that were cut at the limit and kept. */
  readonly truncated: number;
  /** Left out: too long, or nothing left to learn after truncation. */
  readonly dropped: number;
  /** Pairs left out because their two answers are the same tokens. */
  readonly identical?: number;
  /** Rows where prompt and response tokenised together begin otherwise than the prompt alone; they are tokenised apart. */
  readonly boundaryMerges: number;
}

export interface Tokenized<Example> {
  readonly examples: Example[];
  readonly report: TokenizeReport;
}

function startsWith(tokens: Int32Array, prefix: Int32Array): boolean {
  return tokens.length >= prefix.length && prefix.every((token, index) => tokens[index] === token);
}

function concat(parts: readonly (Int32Array | readonly number[])[]): Int32Array {
  const result = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

/** Some tokenizers add the end-of-sequence token to whatever they encode; a prompt to continue must not have it. */
function withoutEos(tokens: Int32Array, eos: number | null): Int32Array {
  return tokens.length > 0 && tokens[tokens.length - 1] === eos ? tokens.subarray(0, -1) : tokens;
}

/** A prompt as generation sees it: with the tokenizer's leading special tokens, without an end-of-sequence token. */
export function encodePrompt(tokenizer: PromptEncoder, prompt: string): Int32Array {
  return withoutEos(tokenizer.encode(prompt), tokenizer.eosTokenId).slice();
}

interface EncodedPair {
  readonly tokens: Int32Array;
  readonly promptLength: number;
  readonly merged: boolean;
}

/**
 * Prompt and response as one sequence that begins with exactly the prompt's own tokens, which is what the model will be
 * given when it generates. Where the tokenizer would merge across the boundary, the two are tokenised apart.
 */
function encodePair(tokenizer: PromptEncoder, prompt: string, response: string): EncodedPair {
  const promptTokens = encodePrompt(tokenizer, prompt);
  const together = withoutEos(tokenizer.encode(prompt + response), tokenizer.eosTokenId);
  if (startsWith(together, promptTokens))
    return { tokens: together, promptLength: promptTokens.length, merged: false };
  const tokens = concat([promptTokens, tokenizer.encode(response, { addSpecialTokens: false })]);
  return { tokens, promptLength: promptTokens.length, merged: true };
}

/**
 * A prompt and its response as one sequence, Int32Array[T], the way training tokenises them; with `appendEos` (default true) it
 * ends in the end-of-sequence token, where reward models read their score.
 */
export function encodeSequence(
  tokenizer: PromptEncoder,
  prompt: string,
  response: string,
  options: Pick<TokenizeOptions, "appendEos"> = {},
): { tokens: Int32Array; promptLength: number } {
  const { tokens, promptLength } = encodePair(tokenizer, prompt, response);
  return { tokens: concat([tokens, endOfSequence(tokenizer, options)]), promptLength };
}

function endOfSequence(tokenizer: PromptEncoder, options: TokenizeOptions): number[] {
  if (options.appendEos === false) return [];
  if (tokenizer.eosTokenId === null) {
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      "the tokenizer has no end-of-sequence token; name one in tokenizer_config.json (eos_token) or set appendEos to false",
    );
  }
  return [tokenizer.eosTokenId];
}

/** 1 from `promptLength` on; index 0 is never predicted. */
function completionMask(length: number, promptLength: number): Uint8Array {
  return new Uint8Array(length).fill(1, Math.max(1, promptLength));
}

function cut(example: TokenizedExample, maxLength: number): TokenizedExample {
  return {
    tokens: example.tokens.slice(0, maxLength),
    promptLength: Math.min(example.promptLength, maxLength),
    lossMask: example.lossMask.slice(0, maxLength),
  };
}

/**
 * A conversation with a mask over what its assistant turns say, found by rendering the conversation up to each turn: the text
 * that one more assistant message adds after the generation prompt is that message's.
 */
function encodeConversation(
  tokenizer: PromptEncoder,
  messages: readonly ChatMessage[],
  eos: readonly number[],
): TokenizedExample {
  const segments: { text: string; learnt: boolean }[] = [];
  let rendered = "";
  messages.forEach((message, index) => {
    if (message.role !== "assistant") return;
    const before = tokenizer.applyChatTemplate(messages.slice(0, index), { addGenerationPrompt: true });
    const after = tokenizer.applyChatTemplate(messages.slice(0, index + 1));
    if (!before.startsWith(rendered) || !after.startsWith(before)) {
      throw new RlhfError(
        "ERR_RLHF_DATA",
        "the chat template rewrites earlier turns of a conversation, so its assistant turns cannot be told apart; use {prompt, response} rows",
      );
    }
    segments.push(
      { text: before.slice(rendered.length), learnt: false },
      { text: after.slice(before.length), learnt: true },
    );
    rendered = after;
  });
  // Templates write their special tokens as text, so none are added.
  const pieces = segments.map((segment) => ({
    ...segment,
    tokens: tokenizer.encode(segment.text, { addSpecialTokens: false }),
  }));
  const body = concat(pieces.map((piece) => piece.tokens));
  const ending = body.length > 0 && body[body.length - 1] === eos[0] ? [] : eos;
  const lossMask = new Uint8Array(body.length + ending.length).fill(1);
  let at = 0;
  for (const piece of pieces) {
    if (!piece.learnt) lossMask.fill(0, at, at + piece.tokens.length);
    at += piece.tokens.length;
  }
  lossMask[0] = 0;
  return { tokens: concat([body, ending]), promptLength: pieces[0]?.tokens.length ?? 0, lossMask };
}

function checkMaxLength(maxLength: number | undefined): number {
  if (maxLength === undefined) return Number.POSITIVE_INFINITY;
  if (!Number.isInteger(maxLength) || maxLength < 2) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `maxLength must be an integer of at least 2 tokens, got ${maxLength}`,
      { maxLength },
    );
  }
  return maxLength;
}

/** Rows may come from code without types. Throws ERR_RLHF_DATA that names the row. */
function checkTexts(row: object, keys: readonly string[], index: number): void {
  for (const key of keys) {
    const text = (row as Readonly<Record<string, unknown>>)[key];
    if (typeof text === "string") continue;
    throw new RlhfError("ERR_RLHF_DATA", `row ${index}: "${key}" must be a string, got ${typeof text}`, {
      row: index,
      key,
    });
  }
}

function nothingLeft(kind: string, dropped: number, maxLength: number): RlhfError {
  return new RlhfError(
    "ERR_RLHF_DATA",
    dropped === 0
      ? `no ${kind} to tokenise: no row was given`
      : `no ${kind} is left: all ${dropped} are empty or longer than maxLength ${maxLength}; raise it`,
    {
      dropped,
      maxLength,
    },
  );
}

function onlyEqualAnswers(identical: number, dropped: number, maxLength: number): RlhfError {
  const others = dropped === 0 ? "" : `, and ${dropped} are longer than maxLength ${maxLength}`;
  return new RlhfError(
    "ERR_RLHF_DATA",
    `no pair is left: in ${identical} the chosen answer is the rejected one too, token by token${others}; a pair has to differ within maxLength`,
    { identical, dropped },
  );
}

/**
 * Tokenises examples for supervised fine-tuning. The loss is on the response (of a conversation: on what the assistant says)
 * unless `lossOn` is "all". Throws ERR_RLHF_DATA when nothing is left.
 */
export function tokenizeSft(
  rows: readonly SftRow[],
  tokenizer: PromptEncoder,
  options: TokenizeSftOptions = {},
): Tokenized<TokenizedExample> {
  const maxLength = checkMaxLength(options.maxLength);
  const eos = endOfSequence(tokenizer, options);
  const examples: TokenizedExample[] = [];
  let tokens = 0;
  let truncated = 0;
  let dropped = 0;
  let boundaryMerges = 0;
  for (const [index, row] of rows.entries()) {
    let example: TokenizedExample;
    if ("messages" in row) {
      example = encodeConversation(tokenizer, row.messages, eos);
    } else {
      checkTexts(row, ["prompt", "response"], index);
      const pair = encodePair(tokenizer, row.prompt, row.response);
      if (pair.merged) boundaryMerges++;
      const sequence = concat([pair.tokens, eos]);
      example = {
        tokens: sequence,
        promptLength: pair.promptLength,
        lossMask: completionMask(sequence.length, pair.promptLength),
      };
    }
    if (options.lossOn === "all") example.lossMask.fill(1, 1);
    const overlong = example.tokens.length > maxLength;
    if (overlong && options.overlong !== "drop") example = cut(example, maxLength);
    if (example.tokens.length > maxLength || !example.lossMask.includes(1)) {
      dropped++;
      continue;
    }
    if (overlong) truncated++;
    tokens += example.tokens.length;
    examples.push(example);
  }
  if (examples.length === 0) throw nothingLeft("example", dropped, maxLength);
  return { examples, report: { examples: examples.length, tokens, truncated, dropped, boundaryMerges } };
}

/**
 * Tokenises preference pairs. Unless `overlong` says otherwise a pair with an answer over `maxLength` is dropped whole: a reward
 * model would judge a cut answer by a token that is not its last. Pairs of equal answers prefer nothing and are dropped.
 * Throws ERR_RLHF_DATA when nothing is left.
 */
export function tokenizePreferences(
  rows: readonly PreferenceRow[],
  tokenizer: PromptEncoder,
  options: TokenizePreferenceOptions = {},
): Tokenized<TokenizedPreference> {
  const maxLength = checkMaxLength(options.maxLength);
  const eos = endOfSequence(tokenizer, options);
  const examples: TokenizedPreference[] = [];
  let tokens = 0;
  let truncated = 0;
  let dropped = 0;
  let identical = 0;
  let boundaryMerges = 0;
  for (const [index, row] of rows.entries()) {
    checkTexts(row, ["prompt", "chosen", "rejected"], index);
    const pairs = [row.chosen, row.rejected].map((answer) => encodePair(tokenizer, row.prompt, answer));
    let [chosen, rejected] = pairs.map((pair): TokenizedExample => {
      const sequence = concat([pair.tokens, eos]);
      return {
        tokens: sequence,
        promptLength: pair.promptLength,
        lossMask: completionMask(sequence.length, pair.promptLength),
      };
    }) as [TokenizedExample, TokenizedExample];
    const overlong = Math.max(chosen.tokens.length, rejected.tokens.length) > maxLength;
    if (overlong && (options.overlong !== "truncate" || chosen.promptLength >= maxLength)) {
      dropped++;
      continue;
    }
    if (overlong) [chosen, rejected] = [cut(chosen, maxLength), cut(rejected, maxLength)];
    // An empty prompt before a single token: nothing predicts it.
    if (!chosen.lossMask.includes(1) || !rejected.lossMask.includes(1)) {
      dropped++;
      continue;
    }
    if (chosen.tokens.length === rejected.tokens.length && startsWith(chosen.tokens, rejected.tokens)) {
      identical++;
      continue;
    }
    if (overlong) truncated++;
    if (pairs.some((pair) => pair.merged)) boundaryMerges++;
    tokens += chosen.tokens.length + rejected.tokens.length;
    examples.push({ chosen, rejected, margin: row.margin ?? 0 });
  }
  if (examples.length === 0 && identical > 0) throw onlyEqualAnswers(identical, dropped, maxLength);
  if (examples.length === 0) throw nothingLeft("pair", dropped, maxLength);
  const report = { examples: examples.length, tokens, truncated, dropped, identical, boundaryMerges };
  return { examples, report };
}

/**
 * Tokenises prompts to answer; those over `maxLength` are dropped and counted. Throws ERR_RLHF_DATA when nothing is left.
 */
export function tokenizePrompts(
  rows: readonly (string | PromptRow)[],
  tokenizer: PromptEncoder,
  options: Pick<TokenizeOptions, "maxLength"> = {},
): Tokenized<TokenizedPrompt> {
  const maxLength = checkMaxLength(options.maxLength);
  const examples: TokenizedPrompt[] = [];
  let total = 0;
  for (const [index, item] of rows.entries()) {
    const row = typeof item === "string" ? { prompt: item } : item;
    checkTexts(row, ["prompt"], index);
    const tokens = encodePrompt(tokenizer, row.prompt);
    if (tokens.length > maxLength || tokens.length === 0) continue;
    total += tokens.length;
    examples.push({ tokens, row });
  }
  const dropped = rows.length - examples.length;
  if (examples.length === 0) throw nothingLeft("prompt", dropped, maxLength);
  return {
    examples,
    report: { examples: examples.length, tokens: total, truncated: 0, dropped, boundaryMerges: 0 },
  };
}
