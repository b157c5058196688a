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
