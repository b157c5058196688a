import { RlhfError } from "../errors.ts";
import type { RewardModel } from "../model/reward-model.ts";
import { type AnswerToScore, type CalledReward, isCalledReward } from "./calls.ts";
import { RewardEnsemble } from "./ensemble.ts";
import { FunctionReward, type RewardFunction } from "./function-reward.ts";

/** What scores answers: a trained model, several of them, a function, or a service. */
export type RewardSource = RewardModel | RewardEnsemble | RewardFunction | CalledReward;

/** The reward models that a source is made of; none of a function. Throws ERR_RLHF_ARGUMENT for what cannot score. */
export function rewardModels(source: RewardSource): readonly RewardModel[] {
  if (typeof source === "function" || isCalledReward(source)) return [];
  if (source instanceof RewardEnsemble) return source.members;
  if (typeof source?.score !== "function" || !("model" in source))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "reward must be a RewardModel, a RewardEnsemble, a function (prompt, response) => number, or a FunctionReward, BatchReward or HttpReward",
    );
  return [source];
}

/** An answer to score: as text for functions, as tokens for models. */
export interface ScoredAnswer extends AnswerToScore {
  /** Prompt and response, Int32Array[T]. */
  readonly tokens: Int32Array;
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
 * Scores a batch of answers. Throws ERR_RLHF_REWARD with the answer's index when a function fails or a score is not a finite number.
 */
export async function scoreAnswers(
  source: RewardSource,
  answers: readonly ScoredAnswer[],
  { microBatchTokens, normalize }: ScoreAnswersOptions,
): Promise<AnswerScores> {
  if (typeof source === "function" || isCalledReward(source)) {
    const called = typeof source === "function" ? new FunctionReward(source) : source;
    return { scores: await called.score(answers), spread: null };
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
      `prompt ${bad}: the reward model's score is ${scores[bad]}; its weights are damaged or have diverged`,
      {
        index: bad,
        prompt: answers[bad]?.row.prompt,
        response: answers[bad]?.response,
      },
    );
  }
  return { scores, spread };
}
