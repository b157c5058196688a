import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { byteAlphabet } from "./token-bytes.ts";
import { Tokenizer } from "./tokenizer.ts";

export interface TrainTokenizerOptions {
  /** Tokens in all: two special ones, 256 bytes, and merges for the rest. Fewer when the texts give no more merges. */
  readonly vocabSize: number;
  readonly eosToken?: string;
  readonly padToken?: string;
  /** Longest input the model is made for; written to tokenizer_config.json. */
  readonly modelMaxLength?: number;
}

const TRAIN_TOKENIZER_OPTIONS: NamesOf<TrainTokenizerOptions> = {
  vocabSize: true,
  eosToken: true,
  padToken: true,
  modelMaxLength: true,
};

/** GPT-2's division of text into words; a space belongs to the word after it. */
const WORD = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** A distinct word of the corpus as its current tokens, and how often it occurs. */
interface Word {
  tokens: string[];
  readonly count: number;
}

function countWords(texts: Iterable<string>, alphabet: readonly string[]): Word[] {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const [word] of text.matchAll(WORD)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const encoder = new TextEncoder();
  return [...counts].map(([word, count]) => ({
    tokens: Array.from(encoder.encode(word), (byte) => alphabet[byte] as string),
    count,
  }));
}

/** The adjacent pair that occurs most often; among equals the first in code-unit order, so that the result is one. */
function mostFrequentPair(words: readonly Word[]): readonly [string, string] | null {
  const counts = new Map<string, number>();
  for (const { tokens, count } of words) {
    for (let at = 0; at + 1 < tokens.length; at++) {
      // Byte stand-ins never hold a space, so it can separate the two.
      const key = `${tokens[at]} ${tokens[at + 1]}`;
      counts.set(key, (counts.get(key) ?? 0) + count);
    }
  }
  let best: string | null = null;
  let bestCount = 1;
  for (const [key, count] of counts) {
    if (count > bestCount || (count === bestCount && best !== null && key < best)) {
      best = key;
      bestCount = count;
    }
  }
  return best === null ? null : (best.split(" ") as [string, string]);
}

function applyMerge(words: readonly Word[], left: string, right: string): void {
  for (const word of words) {
    if (!word.tokens.includes(left)) continue;
    const merged: string[] = [];
    for (let at = 0; at < word.tokens.length; at++) {
      if (word.tokens[at] === left && word.tokens[at + 1] === right) {
        merged.push(left + right);
        at++;
      } else {
        merged.push(word.tokens[at] as string);
      }
    }
    word.tokens = merged;
  }
}

/**
 * Trains a byte-level BPE tokenizer (Sennrich et al. 2016, with GPT-2's bytes and word division) on texts. It encodes any
 * text; the end-of-sequence token has id 0 and the padding token id 1. Deterministic: the same texts give the same tokenizer.
 * Meant for small corpora: every merge counts all distinct words again.
 */
export function trainTokenizer(texts: Iterable<string>, options: TrainTokenizerOptions): Tokenizer {
  refuseUnknownOptions("trainTokenizer", options, TRAIN_TOKENIZER_OPTIONS);
  const { vocabSize, eosToken = "<|endoftext|>", padToken = "<|pad|>", modelMaxLength = 1024 } = options;
  const alphabet = byteAlphabet();
  const special = [eosToken, padToken];
  if (!Number.isInteger(vocabSize) || vocabSize < special.length + alphabet.length) {
    const least = special.length + alphabet.length;
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `trainTokenizer: vocabSize must be an integer of at least ${least}, got ${vocabSize}`,
      { vocabSize },
    );
  }
  const words = countWords(texts, alphabet);
  const vocabulary = [...special, ...alphabet];
  const merges: (readonly [string, string])[] = [];
  while (vocabulary.length < vocabSize) {
    const pair = mostFrequentPair(words);
    if (pair === null) break;
    applyMerge(words, pair[0], pair[1]);
    merges.push(pair);
    vocabulary.push(pair[0] + pair[1]);
  }
  return Tokenizer.fromJson(tokenizerJson(vocabulary, merges, special), {
    tokenizer_class: "PreTrainedTokenizerFast",
    eos_token: eosToken,
    bos_token: eosToken,
    pad_token: padToken,
    model_max_length: modelMaxLength,
    clean_up_tokenization_spaces: false,
  });
}

function tokenizerJson(
  vocabulary: readonly string[],
  merges: readonly (readonly [string, string])[],
  special: readonly string[],
): object {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: byteLevel,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
      merges,
    },
  };
}
