import { RlhfError } from "../errors.ts";
import type { RewardScale } from "./group-advantages.ts";
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
  numberRule,
  oneOf,
  positive,
  positiveFraction,
  positiveInteger,
  type Rules,
  type TrainerConfig,
} from "./settings.ts";
import { requireNoDropout } from "./target.ts";

/** Settings of the trainers that compare several answers to one prompt. Default learning rate: 1e-6, for an adapter 1e-5. */
export interface GroupConfig extends TrainerConfig {
  /** Rollout batches in all. Default 100. */
  readonly numIterations?: number;
  /** Rollouts per iteration, a multiple of groupSize. Default 64. */
  readonly batchSize?: number;
  /** Answers to each prompt, at least 2. Default: GRPO 8, RLOO 2. */
  readonly groupSize?: number;
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
  /** Texts that end an answer, beside the tokens of `stop`; as of PPO. */
  readonly stopStrings?: readonly string[];
  /** Passes over each batch of rollouts. Default 1. */
  readonly updateEpochs?: number;
  /** Optimizer steps per pass. Default 1. */
  readonly numMinibatches?: number;
  /** Ratios under 1 − this are clipped. Default 0.2. */
  readonly clipRange?: number;
  /** Ratios over 1 + this are clipped. Default: clipRange; DAPO (Yu et al. 2025) has 0.28. */
  readonly clipRangeHigh?: number;
  /**
   * Whether a reward model's scores are brought to mean 0 and deviation 1 by the statistics saved with it, where there are such.
   * Default true.
   */
  readonly normalizeReward?: boolean;
  /** Limits scores to ± this; null (default): no limit. */
  readonly rewardClip?: number | null;
  /** Taken off the (clipped) score of an answer that did not end itself; null (default): nothing. */
  readonly missingEosPenalty?: number | null;
  /** Whether `save` merges an adapter into the weights (default), or writes the adapter alone in PEFT's format. */
  readonly saveMerged?: boolean;
}

/** What the losses of tokens are summed over and divided by. */
export type LossAggregation = "grpo" | "bnpo" | "dapo" | "dr_grpo";

export interface GRPOConfig extends GroupConfig {
  /** Weight β of the k3 KL to the starting point in the loss; 0 (default): no reference is kept. */
  readonly klCoefficient?: number;
  /**
   * The loss is the sum over tokens divided by the tokens of all rollouts per minibatch ("dapo", default) or by those of the
   * minibatch ("bnpo"), the mean of answers' means ("grpo", Shao et al. 2024), or the sum divided by answers × maxNewTokens
   * ("dr_grpo", Liu et al. 2025).
   */
  readonly lossAggregation?: LossAggregation;
  /** "sequence": one ratio per answer, the geometric mean of its tokens' (GSPO, Zheng et al. 2025). Default "token". */
  readonly ratioLevel?: "token" | "sequence";
  /**
   * "cispo": −min(ρ, 1 + clipRangeHigh)·A·logProb, the factor without gradient, so that clipped tokens go on learning
   * (MiniMax-M1, 2025). Default "clipped".
   */
  readonly surrogate?: "clipped" | "cispo";
  /** What advantages are divided by. Default "group". */
  readonly scaleRewards?: RewardScale;
}

export interface RLOOConfig extends GroupConfig {
  /** Weight β of the KL to the starting point, taken off each answer's score; 0: no reference is kept. Default 0.05. */
  readonly klCoefficient?: number;
  /** Makes advantages mean 0 and deviation 1 over the batch. Default false. */
  readonly whitenAdvantages?: boolean;
}

const GROUP_DEFAULTS = {
  ...COMMON_DEFAULTS,
  schedule: "constant" as const,
  numIterations: 100,
  batchSize: 64,
  shufflePrompts: true,
  maxNewTokens: 64,
  minNewTokens: 0,
  temperature: 1,
  topP: 1,
  updateEpochs: 1,
  numMinibatches: 1,
  clipRange: 0.2,
  normalizeReward: true,
  rewardClip: null as number | null,
  missingEosPenalty: null as number | null,
};

export const GRPO_DEFAULTS = {
  ...GROUP_DEFAULTS,
  groupSize: 8,
  klCoefficient: 0,
  lossAggregation: "dapo" as LossAggregation,
  ratioLevel: "token" as NonNullable<GRPOConfig["ratioLevel"]>,
  surrogate: "clipped" as NonNullable<GRPOConfig["surrogate"]>,
  scaleRewards: "group" as RewardScale,
};

export const RLOO_DEFAULTS = {
  ...GROUP_DEFAULTS,
  groupSize: 2,
  klCoefficient: 0.05,
  whitenAdvantages: false,
};

const GROUP_RULES: Rules<GroupConfig> = {
  ...COMMON_RULES,
  numIterations: positiveInteger,
  groupSize: numberRule("an integer of at least 2", (value) => Number.isSafeInteger(value) && value >= 2),
  shufflePrompts: flag,
  maxNewTokens: positiveInteger,
  minNewTokens: nonNegativeInteger,
  temperature: positive,
  topP: positiveFraction,
  stop: listOf(nonNegativeInteger),
  stopStrings: listOf(name),
  updateEpochs: positiveInteger,
  numMinibatches: positiveInteger,
  clipRange: positiveFraction,
  clipRangeHigh: positive,
  normalizeReward: flag,
  rewardClip: nullable(positive),
  missingEosPenalty: nullable(nonNegative),
  saveMerged: flag,
};

export const GRPO_RULES: Rules<GRPOConfig> = {
  ...GROUP_RULES,
  klCoefficient: nonNegative,
  lossAggregation: oneOf("grpo", "bnpo", "dapo", "dr_grpo"),
  ratioLevel: oneOf("token", "sequence"),
  surrogate: oneOf("clipped", "cispo"),
  scaleRewards: oneOf("group", "batch", "none"),
};

export const RLOO_RULES: Rules<RLOOConfig> = {
  ...GROUP_RULES,
  klCoefficient: nonNegative,
  whitenAdvantages: flag,
};

/** What the trainers share, with all defaults filled in. */
export type GroupSettings = CommonSettings &
  GroupConfig &
  Required<Pick<GroupConfig, keyof typeof GROUP_DEFAULTS | "groupSize">> & { readonly klCoefficient: number };

export type GRPOSettings = GroupSettings & Required<Pick<GRPOConfig, keyof typeof GRPO_DEFAULTS>>;
export type RLOOSettings = GroupSettings & Required<Pick<RLOOConfig, keyof typeof RLOO_DEFAULTS>>;

/** Settings that are right by themselves and wrong together: throws ERR_RLHF_ARGUMENT. */
export function checkGroupCombination(
  config: Pick<
    GroupSettings,
    "batchSize" | "groupSize" | "numMinibatches" | "minNewTokens" | "maxNewTokens" | "seed"
  > &
    GroupConfig,
): void {
  requireNoDropout(config);
  const { batchSize, groupSize, numMinibatches, minNewTokens, maxNewTokens } = config;
  const wrong = (message: string): RlhfError => new RlhfError("ERR_RLHF_ARGUMENT", message);
  if (batchSize % groupSize !== 0)
    throw wrong(
      `config.batchSize (${batchSize} rollouts) must be a multiple of groupSize (${groupSize} answers per prompt)`,
    );
  if (numMinibatches > batchSize)
    throw wrong(`config.numMinibatches (${numMinibatches}) must not be over batchSize (${batchSize})`);
  if (minNewTokens > maxNewTokens)
    throw wrong(`config.minNewTokens (${minNewTokens}) must not be over maxNewTokens (${maxNewTokens})`);
}
