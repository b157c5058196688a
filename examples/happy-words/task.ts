import type { Metrics } from "../../lib/index.ts";

/** How the stories begin. */
export const STARTS = [
  "Once upon a time",
  "One day",
  "There was a",
  "Tom and",
  "The little",
  "Lily",
  "A big",
  "In the park",
];

const HAPPY = new Set(
  "happy smile smiled laugh laughed love loved fun nice kind good friend friends hug hugged joy proud play played".split(
    " ",
  ),
);

/** The reward: ten times the share of happy words among all words of prompt and answer. */
export function happyWords(prompt: string, response: string): number {
  const words = `${prompt}${response}`.toLowerCase().match(/\p{L}+/gu) ?? [];
  return (10 * words.filter((word) => HAPPY.has(word)).length) / Math.max(1, words.length);
}

/** A metric for printing. */
export function rounded(value: number | undefined, digits: number): number {
  return Number(value?.toFixed(digits));
}

/** Trains, and prints one JSON line per iteration: reward and KL, what `more` says of the metrics, seconds since the start. */
export async function printIterations(
  trainer: { steps(): AsyncIterable<{ readonly step: number; readonly metrics: Metrics }> },
  more: (metrics: Metrics) => Record<string, number>,
): Promise<void> {
  const began = performance.now();
  for await (const { step, metrics } of trainer.steps()) {
    const line = {
      iteration: step - 1,
      reward: rounded(metrics["objective/scores"], 4),
      kl: rounded(metrics["objective/kl"], 3),
      ...more(metrics),
      seconds: rounded((performance.now() - began) / 1000, 1),
    };
    console.log(JSON.stringify(line));
  }
}
