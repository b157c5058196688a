import type { PromptRow } from "../data/types.ts";
import { messageOf, RlhfError } from "../errors.ts";
import type { RewardModel } from "../model/reward-model.ts";
import { RewardEnsemble } from "./ensemble.ts";

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

/** What scores answers: a trained model, several of them, or a function. */
export type RewardSource = RewardModel | RewardEnsemble | RewardFunction;

/** The reward models that a source is made of; none of a function. */
export function rewardModels(source: RewardSource): readonly RewardModel[] {
  if (typeof source === "function") return [];
  return source instanceof RewardEnsemble ? source.members : [source];
}

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

export interface ScoreAnswersOptions {
  /** Most tokens of one forward pass of a reward model. */
  readonly microBatchTokens: number;
  /** Whether a reward model's scores are normalised by its own statistics, where it has them. */
  readonly normalize: boolean;
}

/** Scores of a batch of answers, in their order. */
export interface AnswerScores {
  readonly scores: Float32Array;
  /** How far the members of an ensemble are apart on each answer; null where the source is none. */
  readonly spread: Float32Array | null;
}

/**
 * Scores a batch of answers. Throws ERR_RLHF_REWARD when a function fails or a score is not a finite number.
 */
export async function scoreAnswers(
  source: RewardSource,
  answers: readonly ScoredAnswer[],
  { microBatchTokens, normalize }: ScoreAnswersOptions,
): Promise<AnswerScores> {
  if (typeof source === "function") {
    const scores = await Promise.all(answers.map((answer) => callReward(source, answer)));
    return { scores: Float32Array.from(scores), spread: null };
  }
  const sequences = answers.map((answer) => answer.tokens);
  const measured = rewardModels(source).every((member) => member.statistics !== null);
  const options = { microBatchTokens, normalize: normalize && measured };
  const { scores, spread } =
    source instanceof RewardEnsemble
      ? await source.scoreWithSpread(sequences, options)
      : { scores: await source.score(sequences, options), spread: null };
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
  return { scores, spread };
}
