import type { TokenizedExample, TokenizedPreference } from "../data/types.ts";
import { lengthDesensitizedWeight } from "../engine/preference-losses.ts";
import { type PackedBatch, packSequences, type SequenceInput } from "../model/batch.ts";

/** The tokens whose likelihood is learnt beside the preference: the chosen answer's, its prompt's too, or none. */
export type NllTokens = "completion" | "all" | "none";

export interface PackPairsOptions {
  readonly nll: NllTokens;
  /** Weight of the tokens that the longer answer of a pair has more. Default 1. */
  readonly ldAlpha?: number | undefined;
  /** Whether a prompt is computed once for both of its answers. */
  readonly sharePrompts: boolean;
}

function countOf(mask: Uint8Array): number {
  return mask.reduce((sum, bit) => sum + bit, 0);
}

/** Tokens of a pair whose likelihood is learnt. Nothing predicts a sequence's first token. */
export function countNllTokens({ chosen }: TokenizedPreference, nll: NllTokens): number {
  if (nll === "none") return 0;
  return nll === "all" ? chosen.tokens.length - 1 : countOf(chosen.lossMask);
}

/** Tokens of the prompt that both sequences of a pair begin with; 0 where there is none to share. */
export function sharedTokens({ chosen, rejected }: TokenizedPreference): number {
  const { promptLength } = chosen;
  const prompt = chosen.tokens.subarray(0, promptLength);
  const isShared =
    promptLength < chosen.tokens.length &&
    promptLength < rejected.tokens.length &&
    prompt.every((token, t) => token === rejected.tokens[t]);
  return isShared ? promptLength : 0;
}

function nllMask({ lossMask }: TokenizedExample, nll: NllTokens): Uint8Array {
  if (nll === "completion") return lossMask;
  return nll === "all" ? new Uint8Array(lossMask.length).fill(1, 1) : new Uint8Array(lossMask.length);
}

/** An example's tokens from `begin` on, which continue those of a parent. */
function after({ tokens, lossMask }: TokenizedExample, begin: number, parent: number): SequenceInput {
  return { tokens: tokens.subarray(begin), lossMask: lossMask.subarray(begin), parent };
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

  constructor(pairs: readonly TokenizedPreference[], { nll, ldAlpha = 1, sharePrompts }: PackPairsOptions) {
    const sequences: SequenceInput[] = [];
    const learnt: Uint8Array[] = [];
    this.pairs = pairs.length;
    this.chosen = new Int32Array(pairs.length);
    this.rejected = new Int32Array(pairs.length);
    pairs.forEach((pair, i) => {
      const { chosen, rejected } = pair;
      const shared = sharePrompts ? sharedTokens(pair) : 0;
      const mask = nllMask(chosen, nll);
      const parent = sequences.length;
      if (shared > 0) {
        const prompt = chosen.tokens.subarray(0, shared);
        sequences.push({ tokens: prompt, lossMask: new Uint8Array(shared) });
        sequences.push(after(chosen, shared, parent), after(rejected, shared, parent));
        learnt.push(mask.subarray(0, shared), mask.subarray(shared));
      } else {
        sequences.push(chosen, rejected);
        learnt.push(mask);
      }
      this.chosen[i] = sequences.length - 2;
      this.rejected[i] = sequences.length - 1;
      learnt.push(new Uint8Array(rejected.tokens.length - shared));
    });
    const packed = packSequences(sequences);
    const { offsets, mask } = packed;
    this.answers = mask;
    const { chosen, rejected } = this;
    this.weight =
      ldAlpha === 1 ? mask : lengthDesensitizedWeight({ mask, offsets, chosen, rejected, ldAlpha });
    this.answerTokens = Int32Array.from(
      pairs.flatMap((pair) => [countOf(pair.chosen.lossMask), countOf(pair.rejected.lossMask)]),
    );
    this.nll = new Float32Array(packed.tokens.length);
    learnt.forEach((own, s) => {
      this.nll.set(own, offsets[s]);
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
