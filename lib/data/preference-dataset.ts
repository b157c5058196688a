import { RlhfError } from "../errors.ts";
import type { PromptEncoder } from "./encode.ts";
import { type Tokenized, type TokenizeOptions, tokenizePreferences } from "./tokenize.ts";
import type { PreferenceRow, TokenizedExample, TokenizedPreference } from "./types.ts";

/** Sequences of a batch as a rectangle, row after row. */
export interface PaddedSequences {
  readonly rows: number;
  /** Tokens of the longest sequence. */
  readonly columns: number;
  /** Int32Array[rows·columns]: shorter sequences are padded at their end. */
  readonly inputIds: Int32Array;
  /** Uint8Array[rows·columns]: 1 at tokens, 0 at padding. */
  readonly attentionMask: Uint8Array;
  /** Int32Array[rows]: tokens of each row before its answer. */
  readonly promptLengths: Int32Array;
  /** Uint8Array[rows·columns]: 1 at the tokens of the answer, of several turns at those of the assistant. */
  readonly lossMask: Uint8Array;
}

/** Pairs of a batch, padded to one width each. */
export interface PaddedPreferences {
  readonly chosen: PaddedSequences;
  readonly rejected: PaddedSequences;
  /** Float32Array[rows]: by how much the scores should differ at least. */
  readonly margins: Float32Array;
}

function pad(examples: readonly TokenizedExample[], padTokenId: number): PaddedSequences {
  const rows = examples.length;
  const columns = examples.reduce((longest, { tokens }) => Math.max(longest, tokens.length), 0);
  const inputIds = new Int32Array(rows * columns).fill(padTokenId);
  const attentionMask = new Uint8Array(rows * columns);
  const lossMask = new Uint8Array(rows * columns);
  examples.forEach((example, row) => {
    const begin = row * columns;
    inputIds.set(example.tokens, begin);
    lossMask.set(example.lossMask, begin);
    attentionMask.fill(1, begin, begin + example.tokens.length);
  });
  const promptLengths = Int32Array.from(examples, (example) => example.promptLength);
  return { rows, columns, inputIds, attentionMask, promptLengths, lossMask };
}

/** Preference pairs, tokenised: one by one, or as padded batches. The trainers of this package take rows and pad nothing. */
export class PreferenceDataset implements Iterable<TokenizedPreference> {
  readonly examples: readonly TokenizedPreference[];
  /** What tokenising did. */
  readonly report: Tokenized<TokenizedPreference>["report"];
  readonly #padTokenId: number;

  /** Pairs over `maxLength` are left out whole. Throws ERR_RLHF_DATA when none is left. */
  constructor(
    rows: readonly PreferenceRow[],
    tokenizer: PromptEncoder & { readonly padTokenId: number | null },
    options: TokenizeOptions = {},
  ) {
    const { examples, report } = tokenizePreferences(rows, tokenizer, options);
    this.examples = examples;
    this.report = report;
    this.#padTokenId = tokenizer.padTokenId ?? 0;
  }

  get length(): number {
    return this.examples.length;
  }

  /** A pair by its index. Throws ERR_RLHF_ARGUMENT for one that does not exist. */
  get(index: number): TokenizedPreference {
    const example = this.examples[index];
    if (!example)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `PreferenceDataset: there is no pair ${index}, it has ${this.length}`,
        { index },
      );
    return example;
  }

  /** Some pairs, padded. */
  batch(indices: readonly number[]): PaddedPreferences {
    const pairs = indices.map((index) => this.get(index));
    const side = (name: "chosen" | "rejected"): PaddedSequences =>
      pad(
        pairs.map((pair) => pair[name]),
        this.#padTokenId,
      );
    const margins = Float32Array.from(pairs, (pair) => pair.margin);
    return { chosen: side("chosen"), rejected: side("rejected"), margins };
  }

  [Symbol.iterator](): Iterator<TokenizedPreference> {
    return this.examples[Symbol.iterator]();
  }
}
