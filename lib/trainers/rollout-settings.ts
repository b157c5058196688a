import { RlhfError } from "../errors.ts";
import type { KlDirection } from "../model/model-options.ts";
import {
  COMMON_DEFAULTS,
  COMMON_RULES,
  type CommonSettings,
  flag,
  listOf,
  name,
  nonNegative,
  nonNegativeInteger,
  nullable,
  oneOf,
  positive,
  positiveFraction,
  positiveInteger,
  type Rules,
  type TrainerConfig,
} from "./settings.ts";
import { requireNoDropout } from "./target.ts";

/**
 * Settings of the trainers that learn from answers they sample: PPO, GRPO, RLOO, REINFORCE++. Default learning rate: 1e-6 for all
 * weights, 1e-5 for an adapter.
 */
export interface RolloutConfig extends TrainerConfig {
  /** Rollout batches in all. Default 100. */
  readonly numIterations?: number;
  /** Rollouts per iteration. Default 64. */
  readonly batchSize?: number;
  /** Whether prompts are drawn in a new random order each time through (default), or in the order given. */
  readonly shufflePrompts?: boolean;
  /** Default 64. */
  readonly maxNewTokens?: number;
  /** End tokens are not drawn before this many. Default 0. */
  readonly minNewTokens?: number;
  /** Of sampling and of every log-prob. Default 1. */
  readonly temperature?: number;
  /** Samples from the smallest set of tokens with this probability; log-probs stay those of the whole distribution. Default 1. */
  readonly topP?: number;
  /** Token ids that end an answer; []: none. Default: the model's end tokens. */
  readonly stop?: readonly number[];
  /**
   * Texts that end an answer, beside the tokens of `stop`. The answer keeps the tokens up to the one that completes such a text, which
   * learn as an end token does; a reward function is given the text before it.
   */
  readonly stopStrings?: readonly string[];
  /** Optimizer steps per pass over a batch of rollouts. Default 1. */
  readonly numMinibatches?: number;
  /** Weight β of the KL to the starting point. */
  readonly klCoefficient?: number;
  /**
   * Weight in the loss of the KL to the starting point, which has a gradient of its own. Default 0: there is none.
   */
  readonly klLossCoefficient?: number;
  /** "reverse" (default): KL(π‖π_ref). "forward": KL(π_ref‖π), which keeps what the starting point would say. */
  readonly klLossDirection?: KlDirection;
  /**
   * "full" (default): over the whole vocabulary; every update measures the reference on its tokens again. "k2":
   * ½(log π − log π_ref)² of the sampled tokens, whose gradient is that of KL(π‖π_ref) in the mean, with the noise of sampling and for no
   * more than the log-probs that are there (REINFORCE++-baseline, Hu et al. 2025).
   */
  readonly klLossEstimator?: "full" | "k2";
  /**
   * Whether a reward model's scores are brought to mean 0 and deviation 1 by the statistics saved with it, where there are such.
   * Default true.
   */
  readonly normalizeReward?: boolean;
  /**
   * Subtracts the running mean of all scores so far, this batch included, and divides by their running deviation. Evaluation reports
   * the scores as they are. Default false.
   */
  readonly shapeRewards?: boolean;
  /** Limits (shaped) scores to ± this; null (default): no limit. */
  readonly rewardClip?: number | null;
  /** Taken off the (clipped) score for each response token over `lengthPenaltyStart`. Default 0. */
  readonly lengthPenalty?: number;
  /** Response tokens that cost nothing. Default 0. */
  readonly lengthPenaltyStart?: number;
  /** Weight of a response's diversity, 0 to 1, in its score. Default 0. */
  readonly diversityBonus?: number;
  /**
   * "distinct" (default): different n-grams ÷ n-grams of the response. "overlap": 1 − the largest share of its n-grams that another
   * response of the batch has too.
   */
  readonly diversityMeasure?: "distinct" | "overlap";
  /** n of both. Default 2. */
  readonly diversityNgram?: number;
  /** Taken off the score of an answer that did not end itself, after all that; null (default): nothing. */
  readonly missingEosPenalty?: number | null;
  /** Whether `save` merges an adapter into the weights (default), or writes the adapter alone in PEFT's format. */
  readonly saveMerged?: boolean;
}

export const ROLLOUT_DEFAULTS = {
  ...COMMON_DEFAULTS,
  schedule: "constant" as const,
  numIterations: 100,
  batchSize: 64,
  shufflePrompts: true,
  maxNewTokens: 64,
  minNewTokens: 0,
  temperature: 1,
  topP: 1,
  numMinibatches: 1,
  klLossCoefficient: 0,
  klLossDirection: "reverse" as KlDirection,
  klLossEstimator: "full" as NonNullable<RolloutConfig["klLossEstimator"]>,
  normalizeReward: true,
  shapeRewards: false,
  rewardClip: null as number | null,
  lengthPenalty: 0,
  lengthPenaltyStart: 0,
  diversityBonus: 0,
  diversityMeasure: "distinct" as NonNullable<RolloutConfig["diversityMeasure"]>,
  diversityNgram: 2,
  missingEosPenalty: null as number | null,
};

export const ROLLOUT_RULES: Rules<RolloutConfig> = {
  ...COMMON_RULES,
  numIterations: positiveInteger,
  shufflePrompts: flag,
  maxNewTokens: positiveInteger,
  minNewTokens: nonNegativeInteger,
  temperature: positive,
  topP: positiveFraction,
  stop: listOf(nonNegativeInteger),
  stopStrings: listOf(name),
  numMinibatches: positiveInteger,
  klCoefficient: nonNegative,
  klLossCoefficient: nonNegative,
  klLossDirection: oneOf("reverse", "forward"),
  klLossEstimator: oneOf("full", "k2"),
  normalizeReward: flag,
  shapeRewards: flag,
  rewardClip: nullable(positive),
  lengthPenalty: nonNegative,
  lengthPenaltyStart: nonNegativeInteger,
  diversityBonus: nonNegative,
  diversityMeasure: oneOf("distinct", "overlap"),
  diversityNgram: positiveInteger,
  missingEosPenalty: nullable(nonNegative),
  saveMerged: flag,
};

/** With all defaults filled in. */
export type RolloutSettings = CommonSettings &
  RolloutConfig &
  Required<Pick<RolloutConfig, keyof typeof ROLLOUT_DEFAULTS | "klCoefficient">>;

/** Settings that are right by themselves and wrong together: throws ERR_RLHF_ARGUMENT. */
export function checkRolloutCombination(
  config: Pick<RolloutSettings, "batchSize" | "numMinibatches" | "minNewTokens" | "maxNewTokens" | "seed"> &
    RolloutConfig,
): void {
  requireNoDropout(config);
  const { batchSize, numMinibatches, minNewTokens, maxNewTokens } = config;
  const wrong = (message: string): RlhfError => new RlhfError("ERR_RLHF_ARGUMENT", message);
  if (numMinibatches > batchSize)
    throw wrong(`config.numMinibatches (${numMinibatches}) must not be over batchSize (${batchSize})`);
  if (minNewTokens > maxNewTokens)
    throw wrong(`config.minNewTokens (${minNewTokens}) must not be over maxNewTokens (${maxNewTokens})`);
  if (config.klLossEstimator === "k2" && config.klLossDirection === "forward")
    throw wrong(
      'config.klLossDirection "forward" needs klLossEstimator "full": k2 is of the tokens that the policy samples',
    );
}
