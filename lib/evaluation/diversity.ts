import { breather } from "../data/breathe.ts";

/** An answer as a list of words, whatever these are: token ids or strings. */
export type Words = ArrayLike<number | string>;

/** How varied the answers of one model are. Higher is more varied, but for selfBleu4, jaccard2 and repetition4. */
export interface Diversity {
  /** Different n-grams ÷ n-grams, over all answers (Li et al. 2016). */
  readonly distinct1: number;
  readonly distinct2: number;
  readonly distinct3: number;
  /** Mean BLEU-4 of an answer against the others of its group (Zhu et al. 2018). */
  readonly selfBleu4: number;
  /** Mean over pairs of answers of a group: bigrams they share ÷ bigrams that either has. */
  readonly jaccard2: number;
  /** Of the histogram of words over all answers, in nats. */
  readonly entropy: number;
  /** Share of 4-grams that have occurred before in the same answer. */
  readonly repetition4: number;
  /** Words per answer, and their standard deviation (of a sample). */
  readonly lengthMean: number;
  readonly lengthStd: number;
}

/** Answers of a group whose pairs are compared; the number of pairs grows with its square. */
const MOST_COMPARED = 512;
/** What stands for no match of an order in BLEU (Chen & Cherry 2014, method 1). */
const BLEU_EPSILON = 0.1;

/** How often each n-gram occurs; none where there are fewer than n words. */
export function ngramCounts(words: Words, n: number): Map<string, number> {
  const counts = new Map<string, number>();
  const list = Array.from(words);
  for (let i = 0; i + n <= list.length; i++) {
    const ngram = list.slice(i, i + n).join("\u0000");
    counts.set(ngram, (counts.get(ngram) ?? 0) + 1);
  }
  return counts;
}

function ngramTotal(words: Words, n: number): number {
  return Math.max(0, words.length - n + 1);
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Different n-grams ÷ n-grams of all answers; 0 where there is none. */
export function distinctN(answers: readonly Words[], n: number): number {
  const seen = new Set<string>();
  let total = 0;
  for (const answer of answers) {
    for (const ngram of ngramCounts(answer, n).keys()) seen.add(ngram);
    total += ngramTotal(answer, n);
  }
  return total === 0 ? 0 : seen.size / total;
}

/** Share of n-grams that have occurred before in the same answer; 0 where there is none. */
export function repetitionRate(answers: readonly Words[], n = 4): number {
  const total = answers.reduce((sum, answer) => sum + ngramTotal(answer, n), 0);
  const different = answers.reduce((sum, answer) => sum + ngramCounts(answer, n).size, 0);
  return total === 0 ? 0 : (total - different) / total;
}

/** Entropy in nats of the histogram of words over all answers. */
export function wordEntropy(answers: readonly Words[]): number {
  const counts = new Map<number | string, number>();
  let total = 0;
  for (const answer of answers)
    for (const word of Array.from(answer)) {
      counts.set(word, (counts.get(word) ?? 0) + 1);
      total++;
    }
  let entropy = 0;
  for (const count of counts.values()) entropy -= (count / total) * Math.log(count / total);
  return entropy;
}

function sameWords(a: Words, b: Words): boolean {
  return a.length === b.length && Array.from(a).every((word, i) => word === b[i]);
}

/** The most occurrences of an n-gram in one answer, which answer that is, and the most in any other. */
interface TopCounts {
  first: number;
  owner: number;
  second: number;
}

function topCounts(counts: readonly ReadonlyMap<string, number>[]): Map<string, TopCounts> {
  const top = new Map<string, TopCounts>();
  for (const [owner, own] of counts.entries())
    for (const [ngram, count] of own) {
      const known = top.get(ngram);
      if (!known) top.set(ngram, { first: count, owner, second: 0 });
      else if (count > known.first) top.set(ngram, { first: count, owner, second: known.first });
      else if (count > known.second) known.second = count;
    }
  return top;
}

/** Length of the other answer nearest to that of answer i; of two as near the shorter, as BLEU has it. */
function nearestLength(lengths: readonly number[], i: number): number {
  const own = lengths[i] as number;
  let nearest = Number.POSITIVE_INFINITY;
  for (const [j, length] of lengths.entries()) {
    if (j === i) continue;
    const [distance, best] = [Math.abs(length - own), Math.abs(nearest - own)];
    if (distance < best || (distance === best && length < nearest)) nearest = length;
  }
  return nearest;
}

/**
 * BLEU of each answer against all others as references: the geometric mean of the clipped precisions of 1-grams to `order`-grams
 * (of a shorter answer: as many orders as it has words) times the brevity penalty. An order without a match counts as 0.1 matches.
 * An answer without words scores 1 where another has none either, else 0.
 *
 * @returns one value per answer; none of fewer than two answers
 */
export function selfBleuScores(answers: readonly Words[], order = 4): number[] {
  if (answers.length < 2) return [];
  const lengths = answers.map((answer) => answer.length);
  const empty = lengths.filter((length) => length === 0).length;
  const logPrecisions = answers.map(() => 0);
  for (let n = 1; n <= order; n++) {
    const counts = answers.map((answer) => ngramCounts(answer, n));
    const top = topCounts(counts);
    for (const [i, own] of counts.entries()) {
      if (own.size === 0) continue;
      let matches = 0;
      for (const [ngram, count] of own) {
        const { first, owner, second } = top.get(ngram) as TopCounts;
        matches += Math.min(count, owner === i ? second : first);
      }
      const total = ngramTotal(answers[i] as Words, n);
      logPrecisions[i] = (logPrecisions[i] as number) + Math.log((matches || BLEU_EPSILON) / total);
    }
  }
  return lengths.map((length, i) => {
    if (length === 0) return empty > 1 ? 1 : 0;
    const brevity = Math.min(0, 1 - nearestLength(lengths, i) / length);
    return Math.exp(brevity + (logPrecisions[i] as number) / Math.min(order, length));
  });
}

/**
 * Jaccard similarity of the sets of n-grams of each pair of answers. Of two answers without n-grams it is 1 where they are the same
 * words, else 0.
 */
export async function pairwiseJaccard(answers: readonly Words[], n = 2): Promise<number[]> {
  const breathe = breather();
  const compared = answers.slice(0, MOST_COMPARED);
  const sets = compared.map((answer) => ngramCounts(answer, n));
  const similarities: number[] = [];
  for (let i = 0; i < sets.length; i++) {
    const a = sets[i] as Map<string, number>;
    for (let j = i + 1; j < sets.length; j++) {
      const b = sets[j] as Map<string, number>;
      let shared = 0;
      for (const ngram of a.keys()) if (b.has(ngram)) shared++;
      const either = a.size + b.size - shared;
      const same = either === 0 && sameWords(compared[i] as Words, compared[j] as Words);
      similarities.push(either === 0 ? Number(same) : shared / either);
    }
    await breathe();
  }
  return similarities;
}

/** Mean and standard deviation (of a sample; 0 of a single one) of the answers' lengths in words. */
export function lengthStatistics(answers: readonly Words[]): { mean: number; std: number } {
  const lengths = answers.map((answer) => answer.length);
  const average = mean(lengths);
  const squares = lengths.reduce((sum, length) => sum + (length - average) ** 2, 0);
  return { mean: average, std: lengths.length < 2 ? 0 : Math.sqrt(squares / (lengths.length - 1)) };
}

/**
 * Every measure of diversity. Self-BLEU and Jaccard compare answers within a group: those to one prompt, or all answers as one group
 * (Jaccard then takes the first 512). They are 0 where no group has two.
 */
export async function measureDiversity(groups: readonly (readonly Words[])[]): Promise<Diversity> {
  const answers = groups.flat();
  const bleu: number[] = [];
  const jaccard: number[] = [];
  const breathe = breather();
  for (const group of groups) {
    for (const score of selfBleuScores(group)) bleu.push(score);
    for (const similarity of await pairwiseJaccard(group)) jaccard.push(similarity);
    await breathe();
  }
  const length = lengthStatistics(answers);
  return {
    distinct1: distinctN(answers, 1),
    distinct2: distinctN(answers, 2),
    distinct3: distinctN(answers, 3),
    selfBleu4: mean(bleu),
    jaccard2: mean(jaccard),
    entropy: wordEntropy(answers),
    repetition4: repetitionRate(answers),
    lengthMean: length.mean,
    lengthStd: length.std,
  };
}
