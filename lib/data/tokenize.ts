import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import {
  type EncodedExample,
  encodeChatPrompt,
  encodeConversation,
  encodePrompt,
  encodeReply,
  endOfSequence,
  type PromptEncoder,
} from "./encode.ts";
import { type RowTokenizer, type Tokenized, tokenizeAll } from "./tokenize-rows.ts";
import type {
  PreferenceRow,
  PromptRow,
  RewardRow,
  ScoredRow,
  SftRow,
  TokenizedExample,
  TokenizedPreference,
  TokenizedPrompt,
  TokenizedReward,
  TokenizedScored,
  TokenizedUnpaired,
  UnpairedRow,
} from "./types.ts";

export type { DroppedExample, RowOutcome, RowTokenizer, Tokenized, TokenizeReport } from "./tokenize-rows.ts";

export interface TokenizeOptions {
  /** Longest sequence in tokens, the end-of-sequence token included. Left out: no limit. */
  readonly maxLength?: number;
  /** Whether sequences end in the tokenizer's end-of-sequence token. Default true. */
  readonly appendEos?: boolean;
}

export interface TokenizePreferenceOptions extends TokenizeOptions {
  /**
   * What happens to pairs with an answer over `maxLength`: "drop" (default) leaves them out whole, "truncate" cuts the answer's
   * end off and leaves out those whose prompt alone fills the limit, "truncate-prompt" cuts the beginning of the prompt off, by as
   * much for both answers, and leaves out those that have too long an answer.
   */
  readonly overlong?: "truncate" | "truncate-prompt" | "drop";
}

export interface TokenizeUnpairedOptions extends TokenizeOptions {
  /** What happens to answers over `maxLength`: as with pairs. */
  readonly overlong?: "truncate" | "drop";
}

export interface TokenizeSftOptions extends TokenizeOptions {
  /** What happens to examples over `maxLength`: "truncate" (default) cuts their end off, "drop" leaves them out. */
  readonly overlong?: "truncate" | "drop";
  /** Which tokens are learnt: the response (default), or the prompt too. */
  readonly lossOn?: "completion" | "all";
}

const TOKENIZE_OPTIONS: NamesOf<TokenizeOptions> = { maxLength: true, appendEos: true };
const REPLY_OPTIONS: NamesOf<TokenizePreferenceOptions> = { ...TOKENIZE_OPTIONS, overlong: true };
export const SFT_OPTIONS: NamesOf<TokenizeSftOptions> = { ...REPLY_OPTIONS, lossOn: true };

/** The limit that options set. Throws ERR_RLHF_ARGUMENT for one that is none, and for options that there are not. */
function maxLengthOf<Options extends Pick<TokenizeOptions, "maxLength">>(
  options: Options,
  names: NamesOf<Options>,
): number {
  refuseUnknownOptions("tokenising", options, names);
  const { maxLength } = options;
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
    if (typeof text === "string" || Array.isArray(text)) continue;
    throw new RlhfError(
      "ERR_RLHF_DATA",
      `row ${index}: "${key}" must be a string or a list of messages, got ${typeof text}`,
      { row: index, key },
    );
  }
}

function cut(example: EncodedExample, maxLength: number): EncodedExample {
  return {
    tokens: example.tokens.slice(0, maxLength),
    promptLength: Math.min(example.promptLength, maxLength),
    lossMask: example.lossMask.slice(0, maxLength),
    merged: example.merged,
  };
}

/** An example without `count` tokens of its prompt, of which the first `leading` (such as a begin-of-text token) stay. */
function cutPrompt(example: EncodedExample, leading: number, count: number): EncodedExample {
  const kept = (_: number, index: number): boolean => index < leading || index >= leading + count;
  return {
    tokens: example.tokens.filter(kept),
    promptLength: example.promptLength - count,
    lossMask: example.lossMask.filter(kept),
    merged: example.merged,
  };
}

function tooLong(length: number, maxLength: number): { dropped: string } {
  return { dropped: `is ${length} tokens long, over maxLength ${maxLength}` };
}

function exampleOf({ tokens, promptLength, lossMask }: EncodedExample): TokenizedExample {
  return { tokens, promptLength, lossMask };
}

/** Rows for supervised fine-tuning: the loss is on the response, unless `lossOn` is "all". */
export function sftRows(
  tokenizer: PromptEncoder,
  options: TokenizeSftOptions = {},
): RowTokenizer<SftRow, TokenizedExample> {
  const maxLength = maxLengthOf(options, SFT_OPTIONS);
  const eos = endOfSequence(tokenizer, options);
  const encode = (row: SftRow, index: number): EncodedExample => {
    if ("messages" in row) return encodeConversation(tokenizer, row.messages, eos);
    checkTexts(row, ["prompt", "response"], index);
    return encodeReply(tokenizer, row.prompt, row.response, eos);
  };
  return {
    noun: "example",
    maxLength,
    tokenize(row, index) {
      const whole = encode(row, index);
      const { length } = whole.tokens;
      const truncated = length > maxLength;
      if (truncated && options.overlong === "drop") return tooLong(length, maxLength);
      const kept = truncated ? cut(whole, maxLength) : whole;
      if (options.lossOn === "all") kept.lossMask.fill(1, 1);
      if (!kept.lossMask.includes(1))
        return truncated
          ? { dropped: `has a prompt that fills maxLength ${maxLength}: nothing to learn is left` }
          : { dropped: "has no token to learn" };
      return { example: exampleOf(kept), tokens: kept.tokens.length, truncated, merged: kept.merged };
    },
  };
}

function sameTokens(a: Int32Array, b: Int32Array): boolean {
  return a.length === b.length && a.every((token, index) => token === b[index]);
}

/**
 * Preference pairs. Unless `overlong` says otherwise one with an answer over `maxLength` is dropped whole: a reward model would judge
 * a cut answer by a token that is not its last. Pairs of equal answers prefer nothing and are dropped, but for ties.
 */
export function preferenceRows(
  tokenizer: PromptEncoder,
  options: TokenizePreferenceOptions = {},
): RowTokenizer<PreferenceRow, TokenizedPreference> {
  const { overlong = "drop" } = options;
  const maxLength = maxLengthOf(options, REPLY_OPTIONS);
  const eos = endOfSequence(tokenizer, options);
  // What the tokenizer puts before every text.
  const leading = overlong === "truncate-prompt" ? encodePrompt(tokenizer, "").length : 0;
  const shorten = (pair: readonly EncodedExample[], surplus: number): EncodedExample[] | null => {
    const promptLength = pair[0]?.promptLength ?? 0;
    if (overlong === "truncate" && promptLength < maxLength)
      return pair.map((answer) => cut(answer, maxLength));
    if (overlong === "truncate-prompt" && promptLength - leading > surplus)
      return pair.map((answer) => cutPrompt(answer, leading, surplus));
    return null;
  };
  return {
    noun: "pair",
    maxLength,
    tokenize(row, index) {
      checkTexts(row, ["prompt", "chosen", "rejected"], index);
      const { prompt } = row;
      const promptTokens = typeof prompt === "string" ? encodePrompt(tokenizer, prompt) : undefined;
      const whole = [row.chosen, row.rejected].map((reply) =>
        encodeReply(tokenizer, prompt, reply, eos, promptTokens),
      );
      const longest = Math.max(...whole.map((answer) => answer.tokens.length));
      const truncated = longest > maxLength;
      const kept = truncated ? shorten(whole, longest - maxLength) : whole;
      if (kept === null) return tooLong(longest, maxLength);
      const [chosen, rejected] = kept as [EncodedExample, EncodedExample];
      if (!kept.every((answer) => answer.lossMask.includes(1)))
        return { dropped: "has an answer without a token to learn" };
      if (!row.tie && sameTokens(chosen.tokens, rejected.tokens))
        return { dropped: "has two answers of the same tokens", identical: true };
      const example = {
        chosen: exampleOf(chosen),
        rejected: exampleOf(rejected),
        margin: row.margin ?? 0,
        ...(row.tie ? { tie: true } : {}),
      };
      const tokens = chosen.tokens.length + rejected.tokens.length;
      return { example, tokens, truncated, merged: kept.some((answer) => answer.merged) };
    },
  };
}

/** Single answers with something said of them; one over `maxLength` is dropped unless `overlong` says otherwise, as with pairs. */
function replyRows<Row extends object, Example>(
  tokenizer: PromptEncoder,
  options: TokenizeUnpairedOptions,
  key: keyof Row & string,
  finish: (example: TokenizedExample, row: Row) => Example,
): RowTokenizer<Row & { readonly prompt: PreferenceRow["prompt"] }, Example> {
  const maxLength = maxLengthOf<TokenizePreferenceOptions>(options, REPLY_OPTIONS);
  const eos = endOfSequence(tokenizer, options);
  return {
    noun: "example",
    maxLength,
    tokenize(row, index) {
      checkTexts(row, ["prompt", key], index);
      const encoded = encodeReply(tokenizer, row.prompt, row[key] as PreferenceRow["chosen"], eos);
      const { length } = encoded.tokens;
      const truncated = length > maxLength;
      if (truncated && (options.overlong !== "truncate" || encoded.promptLength >= maxLength))
        return tooLong(length, maxLength);
      const kept = truncated ? cut(encoded, maxLength) : encoded;
      return {
        example: finish(exampleOf(kept), row),
        tokens: kept.tokens.length,
        truncated,
        merged: kept.merged,
      };
    },
  };
}

export function unpairedRows(
  tokenizer: PromptEncoder,
  options: TokenizeUnpairedOptions = {},
): RowTokenizer<UnpairedRow, TokenizedUnpaired> {
  return replyRows(tokenizer, options, "completion", (example, row: UnpairedRow) => ({
    ...example,
    label: row.label,
  }));
}

export function scoredRows(
  tokenizer: PromptEncoder,
  options: TokenizeOptions = {},
): RowTokenizer<ScoredRow, TokenizedScored> {
  return replyRows(tokenizer, options, "response", (example, row: ScoredRow) => ({
    ...example,
    score: row.score,
  }));
}

/** Pairs and scored answers for a reward model. */
export function rewardRows(
  tokenizer: PromptEncoder,
  options: TokenizePreferenceOptions = {},
): RowTokenizer<RewardRow, TokenizedReward> {
  const pairs = preferenceRows(tokenizer, options);
  const scored = scoredRows(tokenizer, options);
  return {
    noun: "pair",
    maxLength: pairs.maxLength,
    tokenize: (row, index) => ("score" in row ? scored.tokenize(row, index) : pairs.tokenize(row, index)),
  };
}

/** Prompts to answer; those over `maxLength` are dropped. */
export function promptRows(
  tokenizer: PromptEncoder,
  options: Pick<TokenizeOptions, "maxLength"> = {},
): RowTokenizer<string | PromptRow, TokenizedPrompt> {
  const maxLength = maxLengthOf(options, { maxLength: true });
  return {
    noun: "prompt",
    maxLength,
    tokenize(item, index) {
      const row = typeof item === "string" ? { prompt: item } : item;
      checkTexts(row, ["prompt"], index);
      const tokens = row.messages
        ? encodeChatPrompt(tokenizer, row.messages)
        : encodePrompt(tokenizer, row.prompt);
      if (tokens.length === 0) return { dropped: "has no token" };
      if (tokens.length > maxLength) return tooLong(tokens.length, maxLength);
      return { example: { tokens, row }, tokens: tokens.length, truncated: false, merged: false };
    },
  };
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
  return tokenizeAll(rows, sftRows(tokenizer, options));
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
  return tokenizeAll(rows, preferenceRows(tokenizer, options));
}

/** Tokenises answers with a label of desirable or not; those over `maxLength` are dropped. Throws ERR_RLHF_DATA when nothing is left. */
export function tokenizeUnpaired(
  rows: readonly UnpairedRow[],
  tokenizer: PromptEncoder,
  options: TokenizeUnpairedOptions = {},
): Tokenized<TokenizedUnpaired> {
  return tokenizeAll(rows, unpairedRows(tokenizer, options));
}

/** Tokenises answers with a score; those over `maxLength` are dropped. Throws ERR_RLHF_DATA when nothing is left. */
export function tokenizeScored(
  rows: readonly ScoredRow[],
  tokenizer: PromptEncoder,
  options: TokenizeOptions = {},
): Tokenized<TokenizedScored> {
  return tokenizeAll(rows, scoredRows(tokenizer, options));
}

/** Tokenises pairs and scored answers, each as above. Throws ERR_RLHF_DATA when nothing is left. */
export function tokenizeRewardData(
  rows: readonly RewardRow[],
  tokenizer: PromptEncoder,
  options: TokenizePreferenceOptions = {},
): Tokenized<TokenizedReward> {
  return tokenizeAll(rows, rewardRows(tokenizer, options));
}

/**
 * Tokenises prompts to answer; those over `maxLength` are dropped and counted. Throws ERR_RLHF_DATA when nothing is left.
 */
export function tokenizePrompts(
  rows: readonly (string | PromptRow)[],
  tokenizer: PromptEncoder,
  options: Pick<TokenizeOptions, "maxLength"> = {},
): Tokenized<TokenizedPrompt> {
  return tokenizeAll(rows, promptRows(tokenizer, options));
}
