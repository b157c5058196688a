import type { TokenizedPreference, TokenizedReward, TokenizedScored } from "../data/types.ts";
import { lastTokens, type PackedBatch, packSequences, type SequenceInput } from "../model/batch.ts";
import { hashSequences } from "./checkpoint.ts";
import { sharedTokens } from "./pair-batch.ts";
import type { JudgedRewards } from "./reward-loss.ts";

export function isScored(example: TokenizedReward): example is TokenizedScored {
  return "score" in example;
}

/** The sequences of some examples: of a pair the chosen answer first. */
export function sequencesOf(examples: readonly TokenizedReward[]): { readonly tokens: Int32Array }[] {
  return examples.flatMap((example) => (isScored(example) ? [example] : [example.chosen, example.rejected]));
}

/** What a hash of a pair or an answer has to know beside its tokens, bit for bit. */
function judgement(example: TokenizedReward): Int32Array {
  const numbers = isScored(example) ? [example.score] : [example.margin, example.tie ? 1 : 0];
  return new Int32Array(Float64Array.from(numbers).buffer);
}

/** A hash of training data, which tells whether a checkpoint is of the same. */
export function hashOfExamples(examples: readonly TokenizedReward[]): string {
  return hashSequences(
    examples.flatMap((example) => [
      ...sequencesOf([example]).map(({ tokens }) => tokens),
      judgement(example),
    ]),
  );
}

/** Tokens that an example adds to a batch: of a pair the prompt once. */
export function countTokens(example: TokenizedReward): number {
  const all = sequencesOf([example]).reduce((sum, { tokens }) => sum + tokens.length, 0);
  return isScored(example) ? all : all - sharedTokens(example);
}

/** Examples as one packed batch, with the rows where their rewards stand. The two answers of a pair share their prompt. */
export class RewardBatch implements JudgedRewards {
  readonly packed: PackedBatch;
  readonly pairs: readonly TokenizedPreference[];
  readonly answers: readonly TokenizedScored[];
  /** Int32Array of the last tokens' indices. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  readonly scored: Int32Array;

  /** `sharePrompts`: false computes each prompt for both of its answers, which changes no reward. */
  constructor(examples: readonly TokenizedReward[], { sharePrompts = true } = {}) {
    this.pairs = examples.filter((example): example is TokenizedPreference => !isScored(example));
    this.answers = examples.filter(isScored);
    const sequences: SequenceInput[] = [];
    const ends: { chosen: number[]; rejected: number[]; scored: number[] } = {
      chosen: [],
      rejected: [],
      scored: [],
    };
    const add = (tokens: Int32Array, parent?: number): number =>
      sequences.push(parent === undefined ? { tokens } : { tokens, parent }) - 1;
    for (const pair of this.pairs) {
      const [chosen, rejected] = [pair.chosen.tokens, pair.rejected.tokens];
      const shared = sharePrompts ? sharedTokens(pair) : 0;
      const prompt = shared > 0 ? add(chosen.subarray(0, shared)) : undefined;
      ends.chosen.push(add(chosen.subarray(shared), prompt));
      ends.rejected.push(add(rejected.subarray(shared), prompt));
    }
    for (const { tokens } of this.answers) ends.scored.push(add(tokens));
    this.packed = packSequences(sequences);
    const last = lastTokens(this.packed);
    const rows = (of: readonly number[]): Int32Array => Int32Array.from(of, (s) => last[s] as number);
    this.chosen = rows(ends.chosen);
    this.rejected = rows(ends.rejected);
    this.scored = rows(ends.scored);
  }
}
