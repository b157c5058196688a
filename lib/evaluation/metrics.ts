import type { PromptRow } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";
import type { AnswerToScore } from "../rewards/calls.ts";
import type { ScoredAnswer } from "../rewards/reward.ts";
import type { ByPrompt } from "./statistics.ts";

/**
 * Measures one answer: a number, true (1) or false (0), or null where the metric does not apply to the prompt. May be asynchronous.
 * What it throws, and a number that is not finite, ends the evaluation with ERR_RLHF_REWARD.
 */
export type MetricFunction = (
  prompt: string,
  response: string,
  context: Omit<AnswerToScore, "response">,
) => number | boolean | null | Promise<number | boolean | null>;

/** The category of a prompt, such as "honesty"; null: none. Default: the row's key `category`, where that is text. */
export type CategoryFunction = (row: PromptRow) => string | null;

/** The category that a row names in its key `category`. */
export const namedCategory: CategoryFunction = (row) => {
  const category = row.metadata?.category;
  return typeof category === "string" ? category : null;
};

function plain(text: string): string {
  return text.toLowerCase().replace(/\s+/g, " ").trim();
}

function expectedTexts(row: PromptRow): string[] | null {
  const expected = row.metadata?.expected;
  if (typeof expected === "string") return [expected];
  if (Array.isArray(expected) && expected.length > 0 && expected.every((text) => typeof text === "string"))
    return expected as string[];
  return null;
}

/**
 * The metric `correct`: whether the answer holds the text that the prompt's row names in its key `expected`, or one of a list of texts.
 * Case and white space do not count. Null for rows without the key.
 */
export const holdsExpected: MetricFunction = (_prompt, response, { row }) => {
  const answer = plain(response);
  return expectedTexts(row)?.some((text) => answer.includes(plain(text))) ?? null;
};

/** Whether any row says what is expected. */
export function saysExpected(rows: readonly PromptRow[]): boolean {
  return rows.some((row) => expectedTexts(row) !== null);
}

async function measure(
  name: string,
  metric: MetricFunction,
  { row, response, finishReason }: ScoredAnswer,
): Promise<number | null> {
  const details = { metric: name, prompt: row.prompt, response };
  let value: unknown;
  try {
    value = await metric(row.prompt, response, { row, finishReason });
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_REWARD",
      `metric "${name}" failed: ${messageOf(error)}; response: ${JSON.stringify(response)}`,
      details,
      { cause: error },
    );
  }
  if (value === null || (typeof value === "number" && Number.isFinite(value))) return value;
  if (typeof value === "boolean") return Number(value);
  throw new RlhfError(
    "ERR_RLHF_REWARD",
    `metric "${name}" must return a finite number, a boolean or null, got ${String(value)}; response: ${JSON.stringify(response)}`,
    { ...details, value },
  );
}

/** A metric of all answers, in their order. */
export function measureMetric(
  name: string,
  metric: MetricFunction,
  answers: readonly ScoredAnswer[],
): Promise<(number | null)[]> {
  return Promise.all(answers.map((answer) => measure(name, metric, answer)));
}

/** Values of answers in groups of `size`. */
export function groupsOf<T>(values: readonly T[], size: number): T[][] {
  return Array.from({ length: values.length / size }, (_, p) => values.slice(p * size, (p + 1) * size));
}

/** The prompts of each category, in the order in which categories appear. */
export function promptsByCategory(
  rows: readonly PromptRow[],
  category: CategoryFunction,
): Map<string, number[]> {
  const prompts = new Map<string, number[]>();
  for (const [p, row] of rows.entries()) {
    const name = category(row);
    if (name !== null) prompts.set(name, [...(prompts.get(name) ?? []), p]);
  }
  return prompts;
}

/** The values of some prompts. */
export function ofPrompts(values: ByPrompt, prompts: readonly number[]): ByPrompt {
  return prompts.map((p) => values[p] ?? []);
}
