/** What style alone tells of preference pairs: a classifier that sees words and length, and no prompt. */
import type { Random } from "../../lib/data/random.ts";
import type { Pair } from "./make-data.ts";

const EPOCHS = 40;
const LEARNING_RATE = 2;

/** How often each word occurs, and the length. */
function features(text: string): Map<string, number> {
  const counts = new Map<string, number>([["(length)", text.length / 20]]);
  for (const word of text.toLowerCase().match(/[a-z]+/g) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}

function difference({ chosen, rejected }: Pair): Map<string, number> {
  const result = features(chosen);
  for (const [name, count] of features(rejected)) result.set(name, (result.get(name) ?? 0) - count);
  return result;
}

/** Logistic regression on words and length: the share of `held` in which it rates the chosen answer higher; ties count half. */
export function styleAccuracy(train: readonly Pair[], held: readonly Pair[]): number {
  const weights = new Map<string, number>();
  const margin = (pair: ReadonlyMap<string, number>): number =>
    [...pair].reduce((sum, [name, count]) => sum + count * (weights.get(name) ?? 0), 0);
  const examples = train.map(difference);
  for (let epoch = 0; epoch < EPOCHS; epoch++) {
    const gradient = new Map<string, number>();
    for (const example of examples) {
      const missing = 1 / (1 + Math.exp(margin(example)));
      for (const [name, count] of example) gradient.set(name, (gradient.get(name) ?? 0) + missing * count);
    }
    for (const [name, slope] of gradient)
      weights.set(name, (weights.get(name) ?? 0) + (LEARNING_RATE * slope) / examples.length);
  }
  const right = held.map(difference).map((example) => {
    const value = margin(example);
    return Math.abs(value) < 1e-9 ? 0.5 : Number(value > 0);
  });
  return right.reduce((sum, one) => sum + one, 0) / right.length;
}

/**
 * One pair of each mirrored two, at random. A classifier without the prompt can be no better than chance on whole mirrored twos,
 * but might learn by heart what chance leaves over in their halves.
 */
export function halves(pairs: readonly Pair[], random: Random): Pair[] {
  return pairs
    .filter((_, index) => index % 2 === 0)
    .map((pair, index) => pairs[2 * index + random.integer(2)] ?? pair);
}
