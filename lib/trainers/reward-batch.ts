import type { TokenizedPreference, TokenizedReward, TokenizedScored } from "../data/types.ts";
import { lastTokens, type PackedBatch, packSequences } from "../model/batch.ts";
import { hashSequences } from "./checkpoint.ts";
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

/** Examples as one packed batch, with the rows where their rewards stand. */
export class RewardBatch implements JudgedRewards {
  readonly packed: PackedBatch;
  readonly pairs: readonly TokenizedPreference[];
  readonly answers: readonly TokenizedScored[];
  /** Int32Array of the last tokens' indices. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  readonly scored: Int32Array;

  constructor(examples: readonly TokenizedReward[]) {
    this.pairs = examples.filter((example): example is TokenizedPreference => !isScored(example));
    this.answers = examples.filter(isScored);
    this.packed = packSequences(sequencesOf([...this.pairs, ...this.answers]));
    const last = lastTokens(this.packed);
    const inPairs = 2 * this.pairs.length;
    this.chosen = last.slice(0, inPairs).filter((_, index) => index % 2 === 0);
    this.rejected = last.slice(0, inPairs).filter((_, index) => index % 2 === 1);
    this.scored = last.slice(inPairs);
  }
}
