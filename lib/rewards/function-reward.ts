import { RlhfError } from "../errors.ts";
import {
  type AnswerToScore,
  type BatchRewardCallOptions,
  CalledReward,
  type RewardCallOptions,
} from "./calls.ts";

/** What a reward function may know beyond the two texts. */
export interface RewardContext extends Omit<AnswerToScore, "response"> {
  /** Raised when the call takes too long, and when another answer's call has failed: hand it on to what the function waits for. */
  readonly signal: AbortSignal;
}

/**
 * Scores one answer: higher is better. May be asynchronous, so a service can be asked; several answers of a batch are under way
 * at a time. What it throws, a call that takes too long, and anything but a finite number end training with ERR_RLHF_REWARD.
 */
export type RewardFunction = (
  prompt: string,
  response: string,
  context: RewardContext,
) => number | Promise<number>;

/** An answer as a batched reward function gets it. */
export interface RewardRequest extends AnswerToScore {
  readonly prompt: string;
}

/** Scores several answers at a time, in their order. */
export type BatchRewardFunction = (
  answers: readonly RewardRequest[],
  context: Pick<RewardContext, "signal">,
) => ArrayLike<number> | Promise<ArrayLike<number>>;

function requireFunction(reward: unknown): void {
  if (typeof reward !== "function")
    throw new RlhfError("ERR_RLHF_ARGUMENT", `reward: expected a function, got ${typeof reward}`);
}

/** A reward function with settings of how it is called; a bare function is called with the defaults. */
export class FunctionReward extends CalledReward {
  protected readonly what = "the reward function";
  readonly #reward: RewardFunction;

  /** Throws ERR_RLHF_ARGUMENT. */
  constructor(reward: RewardFunction, options: RewardCallOptions = {}) {
    requireFunction(reward);
    super({ ...options, batchSize: 1 });
    this.#reward = reward;
  }

  protected async call(answers: readonly AnswerToScore[], signal: AbortSignal): Promise<unknown[]> {
    const { row, response, finishReason } = answers[0] as AnswerToScore;
    return [await this.#reward(row.prompt, response, { row, finishReason, signal })];
  }
}

/** A reward function that scores several answers in one call. */
export class BatchReward extends CalledReward {
  protected readonly what = "the reward function";
  readonly #reward: BatchRewardFunction;

  /** Throws ERR_RLHF_ARGUMENT. */
  constructor(reward: BatchRewardFunction, options: BatchRewardCallOptions = {}) {
    requireFunction(reward);
    super(options);
    this.#reward = reward;
  }

  protected call(
    answers: readonly AnswerToScore[],
    signal: AbortSignal,
  ): ArrayLike<unknown> | Promise<ArrayLike<unknown>> {
    const requests = answers.map(({ row, response, finishReason }) => ({
      prompt: row.prompt,
      response,
      row,
      finishReason,
    }));
    return this.#reward(requests, { signal });
  }
}
