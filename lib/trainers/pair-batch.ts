import type { TokenizedExample, TokenizedPreference } from "../data/types.ts";
import { lengthDesensitizedWeight } from "../engine/preference-losses.ts";
import { type PackedBatch, packSequences } from "../model/batch.ts";

/** The tokens whose likelihood is learnt beside the preference: the chosen answer's, its prompt's too, or none. */
export type NllTokens = "completion" | "all" | "none";

export interface PackPairsOptions {
  readonly nll: NllTokens;
  /** Weight of the tokens that the longer answer of a pair has more. Default 1. */
  readonly ldAlpha?: number | undefined;
}

function countOf(mask: Uint8Array): number {
  return mask.reduce((sum, bit) => sum + bit, 0);
}

/** Tokens of a pair whose likelihood is learnt. Nothing predicts a sequence's first token. */
export function countNllTokens({ chosen }: TokenizedPreference, nll: NllTokens): number {
  if (nll === "none") return 0;
  return nll === "all" ? chosen.tokens.length - 1 : countOf(chosen.lossMask);
}

function nllMask({ lossMask }: TokenizedExample, nll: NllTokens): Uint8Array {
  if (nll === "completion") return lossMask;
  return nll === "all" ? new Uint8Array(lossMask.length).fill(1, 1) : new Uint8Array(lossMask.length);
}

/** P pairs as one packed batch of S sequences and N tokens. */
export class PairBatch {
  readonly pairs: number;
  /** Its mask holds every token whose log-prob is needed. */
  readonly batch: PackedBatch;
  /** Int32Array[P]: which sequence is each pair's chosen answer. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  /** Float32Array[N]: 1 at the tokens of answers. */
  readonly answers: Float32Array;
  /** Float32Array[N]: what each token counts in the log-prob of its answer; 0 outside answers. */
  readonly weight: Float32Array;
  /** Int32Array[2·P]: tokens of the answers, chosen and rejected in turn. */
  readonly answerTokens: Int32Array;
  /** Float32Array[N]: 1 at the tokens whose likelihood is learnt as such. */
  readonly nll: Float32Array;

  constructor(pairs: readonly TokenizedPreference[], { nll, ldAlpha = 1 }: PackPairsOptions) {
    const answers = pairs.flatMap((pair) => [pair.chosen, pair.rejected]);
    const packed = packSequences(answers);
    const { offsets, mask } = packed;
    this.pairs = pairs.length;
    this.chosen = Int32Array.from(pairs, (_, i) => 2 * i);
    this.rejected = Int32Array.from(pairs, (_, i) => 2 * i + 1);
    this.answers = mask;
    const { chosen, rejected } = this;
    this.weight =
      ldAlpha === 1 ? mask : lengthDesensitizedWeight({ mask, offsets, chosen, rejected, ldAlpha });
    this.answerTokens = Int32Array.from(answers, ({ lossMask }) => countOf(lossMask));
    this.nll = new Float32Array(packed.tokens.length);
    pairs.forEach((pair, i) => {
      this.nll.set(nllMask(pair.chosen, nll), offsets[chosen[i] as number]);
    });
    this.batch = { ...packed, mask: mask.map((bit, t) => Math.max(bit, this.nll[t] as number)) };
  }

  /** Values of sequences, [S], as values of answers, [2·P]: chosen and rejected in turn. */
  ofAnswers(values: Float32Array): Float32Array {
    const result = new Float32Array(2 * this.pairs);
    for (let i = 0; i < this.pairs; i++) {
      result[2 * i] = values[this.chosen[i] as number] as number;
      result[2 * i + 1] = values[this.rejected[i] as number] as number;
    }
    return result;
  }

  /** Values of answers, [2·P], as values of sequences, [S]; 0 at those that are none. */
  ofSequences(values: Float32Array): Float32Array {
    const result = new Float32Array(this.batch.sequences);
    for (let i = 0; i < this.pairs; i++) {
      result[this.chosen[i] as number] = values[2 * i] as number;
      result[this.rejected[i] as number] = values[2 * i + 1] as number;
    }
    return result;
  }
}
