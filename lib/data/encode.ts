import { RlhfError } from "../errors.ts";
import type { RenderedChat } from "../tokenizer/chat.ts";
import type { ChatMessage, TextOrMessages, TokenizedExample } from "./types.ts";

/** What tokenising needs of a tokenizer; `Tokenizer` has it all. */
export interface PromptEncoder {
  readonly eosTokenId: number | null;
  /** All tokens that end an answer; left out: the end-of-sequence token alone. */
  readonly endTokenIds?: readonly number[];
  encode(text: string, options?: { addSpecialTokens?: boolean }): Int32Array;
  applyChatTemplate(messages: readonly ChatMessage[], options?: { addGenerationPrompt?: boolean }): string;
  renderChat(messages: readonly ChatMessage[]): RenderedChat;
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

/** A conversation to continue as generation sees it. Templates write their special tokens as text, so none are added. */
export function encodeChatPrompt(tokenizer: PromptEncoder, messages: readonly ChatMessage[]): Int32Array {
  const text = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
  return tokenizer.encode(text, { addSpecialTokens: false });
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
function encodePair(
  tokenizer: PromptEncoder,
  prompt: string,
  response: string,
  promptTokens = encodePrompt(tokenizer, prompt),
): EncodedPair {
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
  options: { readonly appendEos?: boolean } = {},
): { tokens: Int32Array; promptLength: number } {
  const { tokens, promptLength } = encodePair(tokenizer, prompt, response);
  return { tokens: concat([tokens, endOfSequence(tokenizer, options)]), promptLength };
}

/** The end-of-sequence token in a list, or an empty one. Throws ERR_RLHF_TOKENIZER where there is none and one is wanted. */
export function endOfSequence(tokenizer: PromptEncoder, options: { readonly appendEos?: boolean }): number[] {
  if (options.appendEos === false) return [];
  if (tokenizer.eosTokenId === null) {
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      "the tokenizer has no end-of-sequence token; name one in tokenizer_config.json (eos_token)",
    );
  }
  return [tokenizer.eosTokenId];
}

/** 1 from `promptLength` on; index 0 is never predicted. */
function completionMask(length: number, promptLength: number): Uint8Array {
  return new Uint8Array(length).fill(1, Math.max(1, promptLength));
}

/** A sequence ready for training, and whether its parts had to be tokenised apart. */
export interface EncodedExample extends TokenizedExample {
  readonly merged: boolean;
}

/**
 * A prompt and a reply, both as text or both as messages, with the loss on the reply; of messages on what the assistant says in it.
 *
 * @param promptTokens what `encodePrompt` makes of a prompt of text, where it is known
 */
export function encodeReply(
  tokenizer: PromptEncoder,
  prompt: TextOrMessages,
  reply: TextOrMessages,
  eos: readonly number[],
  promptTokens?: Int32Array,
): EncodedExample {
  if (typeof prompt === "string" && typeof reply === "string") {
    const pair = encodePair(tokenizer, prompt, reply, promptTokens);
    const tokens = concat([pair.tokens, eos]);
    const { promptLength, merged } = pair;
    return { tokens, promptLength, lossMask: completionMask(tokens.length, promptLength), merged };
  }
  const turns = (value: TextOrMessages, role: string): readonly ChatMessage[] =>
    typeof value === "string" ? [{ role, content: value }] : value;
  const prefix = turns(prompt, "user");
  const before = tokenizer.applyChatTemplate(prefix, { addGenerationPrompt: true });
  const { text, assistant } = tokenizer.renderChat([...prefix, ...turns(reply, "assistant")]);
  if (!text.startsWith(before))
    throw new RlhfError(
      "ERR_RLHF_TOKENIZER",
      "the chat template writes a prompt otherwise when its answer follows, so that the answer cannot be told apart; use rows of text {prompt, response} or another template",
    );
  // Marks may begin inside the generation prompt, which is given to the model and not learnt.
  const learnt = assistant
    .filter(([, end]) => end > before.length)
    .map(([begin, end]) => [Math.max(begin, before.length), end] as const);
  return encodeSpans(tokenizer, text, before.length, learnt, eos);
}

/** A conversation with the loss on all that its assistant says. Messages after its last answer are left out. */
export function encodeConversation(
  tokenizer: PromptEncoder,
  messages: readonly ChatMessage[],
  eos: readonly number[],
): EncodedExample {
  const end = messages.findLastIndex((message) => message.role === "assistant") + 1;
  const { text, assistant } = tokenizer.renderChat(messages.slice(0, end));
  return encodeSpans(tokenizer, text, assistant[0]?.[0] ?? text.length, assistant, eos);
}

/**
 * Tokenises a text with cuts in it: as a whole where all cuts fall between tokens, else piece by piece.
 *
 * @returns the tokens and the index of the token that each cut stands before
 */
function encodeWithCuts(
  tokenizer: PromptEncoder,
  text: string,
  cuts: readonly number[],
): { tokens: Int32Array; at: Map<number, number>; merged: boolean } {
  const encode = (part: string): Int32Array => tokenizer.encode(part, { addSpecialTokens: false });
  const tokens = encode(text);
  const sorted = [...new Set(cuts)].sort((a, b) => a - b).filter((cut) => cut < text.length);
  const apart = encodeApart(encode, text, sorted);
  if (apart.tokens.length === tokens.length && startsWith(tokens, apart.tokens))
    return { ...apart, merged: false };
  // SentencePiece begins every piece as a word; what stands before a cut may still be the beginning of the whole.
  const at = new Map<number, number>([[text.length, tokens.length]]);
  for (const cut of sorted) {
    const prefix = encode(text.slice(0, cut));
    if (!startsWith(tokens, prefix)) return apart;
    at.set(cut, prefix.length);
  }
  return { tokens, at, merged: false };
}

function encodeApart(
  encode: (part: string) => Int32Array,
  text: string,
  cuts: readonly number[],
): { tokens: Int32Array; at: Map<number, number>; merged: boolean } {
  const at = new Map<number, number>();
  const ends = [...cuts, text.length];
  let length = 0;
  const pieces = ends.map((end, index) => {
    const piece = encode(text.slice(ends[index - 1] ?? 0, end));
    length += piece.length;
    at.set(end, length);
    return piece;
  });
  return { tokens: concat(pieces), at, merged: true };
}

/**
 * A rendered conversation with a mask over the spans that are learnt. A span counts up to the last token in it that ends a turn: a
 * line break that templates write after it is no part of what the model says, and after the last answer it is left out. An answer
 * without such a token is ended with the end-of-sequence token.
 */
function encodeSpans(
  tokenizer: PromptEncoder,
  text: string,
  promptEnd: number,
  spans: RenderedChat["assistant"],
  eos: readonly number[],
): EncodedExample {
  const encoded = encodeWithCuts(tokenizer, text, [promptEnd, ...spans.flat()]);
  const { at, merged } = encoded;
  const index = (cut: number): number => at.get(cut) ?? encoded.tokens.length;
  const ends = new Set(
    tokenizer.endTokenIds ?? (tokenizer.eosTokenId === null ? [] : [tokenizer.eosTokenId]),
  );
  const mask = new Uint8Array(encoded.tokens.length);
  for (const [begin, end] of spans) {
    const [from, to] = [index(begin), index(end)];
    const last = encoded.tokens.subarray(from, to).findLastIndex((token) => ends.has(token));
    mask.fill(1, from, last < 0 ? to : from + last + 1);
  }
  const lastBegin = index(spans.at(-1)?.[0] ?? text.length);
  const ended = encoded.tokens.findLastIndex((token, position) => position >= lastBegin && ends.has(token));
  const body = ended < 0 ? encoded.tokens : encoded.tokens.subarray(0, ended + 1);
  const tokens = concat([body, ended < 0 && spans.length > 0 ? eos : []]);
  const lossMask = new Uint8Array(tokens.length);
  lossMask.set(mask.subarray(0, body.length));
  lossMask.fill(1, body.length);
  lossMask[0] = 0;
  return { tokens, promptLength: index(promptEnd), lossMask, merged };
}
