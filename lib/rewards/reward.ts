import type { PromptRow } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";
import type { RewardModel } from "../model/reward-model.ts";

/** What a reward function may know beyond the two texts. */
export interface RewardContext {
  /** The prompt's row; keys of the data file beside the prompt are in `row.metadata`. */
  readonly row: PromptRow;
  /** "stop": the answer ended itself; "length": it was cut off. */
  readonly finishReason: "stop" | "length";
}

/**
 * Scores one answer: higher is better. May be asynchronous, so a service can be asked; the answers of a batch are scored
 * concurrently. What it throws, and anything but a finite number, ends training with ERR_RLHF_REWARD.
 */
export type RewardFunction = (
  prompt: string,
  response: string,
  context: RewardContext,
) => number | Promise<number>;

/** What scores answers: a trained model, or a function. */
export type RewardSource = RewardModel | RewardFunction;

/** An answer to score: as text for functions, as tokens for models. */
export interface ScoredAnswer extends RewardContext {
  /** Prompt and response, Int32Array[T]. */
  readonly tokens: Int32Array;
  readonly response: string;
}

async function callReward(reward: RewardFunction, answer: ScoredAnswer): Promise<number> {
  const { row, response, finishReason } = answer;
  const details = { prompt: row.prompt, response };
  let score: unknown;
  try {
    score = await reward(row.prompt, response, { row, finishReason });
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_REWARD",
      `the reward function failed: ${messageOf(error)}; response: ${JSON.stringify(response)}`,
      details,
      { cause: error },
    );
  }
  if (typeof score !== "number" || !Number.isFinite(Math.fround(score))) {
    throw new RlhfError(
      "ERR_RLHF_REWARD",
      `the reward function must return a finite number, got ${String(score)}; response: ${JSON.stringify(response)}`,
      { ...details, score },
    );
  }
  return score;
}

/**
 * The scores of a batch of answers, Float32Array[S], in their order.
 * Throws ERR_RLHF_REWARD when a function fails or a score is not a finite number.
 *
 * @param microBatchTokens most tokens of one forward pass of a reward model
 */
export async function scoreAnswers(
  source: RewardSource,
  answers: readonly ScoredAnswer[],
  microBatchTokens: number,
): Promise<Float32Array> {
  if (typeof source === "function") {
    return Float32Array.from(await Promise.all(answers.map((answer) => callReward(source, answer))));
  }
  const scores = await source.score(
    answers.map((answer) => answer.tokens),
    { microBatchTokens },
  );
  const bad = scores.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    throw new RlhfError(
      "ERR_RLHF_REWARD",
      `the reward model's score is ${scores[bad]}; its weights are damaged or have diverged`,
      {
        prompt: answers[bad]?.row.prompt,
        response: answers[bad]?.response,
      },
    );
  }
  return scores;
}
