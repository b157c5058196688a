import { preferenceRows } from "../data/tokenize.ts";
import type { PreferenceRow, PromptRow, TextOrMessages, TokenizedPreference } from "../data/types.ts";
import { type RewardSource, rewardModels, type ScoredAnswer, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type CategoryFunction, ofPrompts, promptsByCategory } from "./metrics.ts";
import { type ByPrompt, type Estimate, estimateMean } from "./statistics.ts";

/** The share of preference pairs whose chosen answer a reward scores higher; equal scores count as half. */
export interface RewardAccuracy {
  readonly accuracy: Estimate;
  /** The same over the pairs of each category. */
  readonly categories: Readonly<Record<string, Estimate>>;
}

interface EncodedPair {
  readonly row: PromptRow;
  readonly chosen: ScoredAnswer;
  readonly rejected: ScoredAnswer;
}

function lastText(text: TextOrMessages): string {
  return typeof text === "string" ? text : (text.at(-1)?.content ?? "");
}

function encodePairs(
  pairs: readonly PreferenceRow[],
  tokenizer: Tokenizer,
  maxLength: number,
): EncodedPair[] {
  const { tokenize } = preferenceRows(tokenizer, { maxLength, overlong: "truncate" });
  return pairs.flatMap((pair, index) => {
    const outcome = tokenize(pair, index);
    if (pair.tie || "dropped" in outcome) return [];
    const { prompt } = pair;
    const row = { prompt: lastText(prompt), ...(typeof prompt === "string" ? {} : { messages: prompt }) };
    const answer = (side: "chosen" | "rejected"): ScoredAnswer => {
      const { tokens } = (outcome.example as TokenizedPreference)[side];
      return { row, response: lastText(pair[side]), finishReason: "stop", tokens };
    };
    return [{ row, chosen: answer("chosen"), rejected: answer("rejected") }];
  });
}

/**
 * How many pairs a reward orders as they were judged, over all and by category of their prompts. Pairs to one prompt are not independent,
 * so the intervals are over prompts. Pairs judged alike, and those whose prompt leaves no room for an answer, do not count; null where none does.
 */
export async function measureRewardAccuracy(
  source: RewardSource,
  pairs: readonly PreferenceRow[],
  tokenizer: Tokenizer,
  category: CategoryFunction,
  microBatchTokens: number,
): Promise<RewardAccuracy | null> {
  const lengths = rewardModels(source).map(({ model }) => model.maxLength);
  const encoded = encodePairs(pairs, tokenizer, Math.min(Number.MAX_SAFE_INTEGER, ...lengths));
  const answers = encoded.flatMap(({ chosen, rejected }) => [chosen, rejected]);
  if (answers.length === 0) return null;
  const { scores } = await scoreAnswers(source, answers, { microBatchTokens, normalize: false });
  const prompts = new Map<string, { row: PromptRow; right: number[] }>();
  for (const [i, { row }] of encoded.entries()) {
    const key = JSON.stringify([row.prompt, row.messages]);
    const group = prompts.get(key) ?? { row, right: [] };
    const difference = (scores[2 * i] as number) - (scores[2 * i + 1] as number);
    group.right.push((Math.sign(difference) + 1) / 2);
    prompts.set(key, group);
  }
  const groups = [...prompts.values()];
  const right: ByPrompt = groups.map((group) => group.right);
  const byCategory = promptsByCategory(
    groups.map(({ row }) => row),
    category,
  );
  return {
    accuracy: estimateMean(right) as Estimate,
    categories: Object.fromEntries(
      [...byCategory].map(([name, own]) => [name, estimateMean(ofPrompts(right, own)) as Estimate]),
    ),
  };
}
