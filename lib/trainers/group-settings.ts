import type { KlEstimator } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { RewardScale } from "./group-advantages.ts";
import {
  checkRolloutCombination,
  ROLLOUT_DEFAULTS,
  ROLLOUT_RULES,
  type RolloutConfig,
  type RolloutSettings,
} from "./rollout-settings.ts";
import {
  flag,
  fraction,
  numberRule,
  oneOf,
  positive,
  positiveFraction,
  positiveInteger,
  type Rules,
} from "./settings.ts";

/** Settings of the trainers without a value function. `batchSize` is a multiple of `groupSize`. */
export interface GroupConfig extends RolloutConfig {
  /** Answers to each prompt. Default: GRPO 8, RLOO 2, which compare them and need 2; REINFORCE++ 1. */
  readonly groupSize?: number;
  /** Passes over each batch of rollouts. Default 1. */
  readonly updateEpochs?: number;
  /** Ratios under 1 − this are clipped. Default 0.2. */
  readonly clipRange?: number;
  /** Ratios over 1 + this are clipped. Default: clipRange; DAPO (Yu et al. 2025) has 0.28. */
  readonly clipRangeHigh?: number;
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
  /**
   * Whether the ratio multiplies the k3 KL, so that its gradient is that of the KL whatever the policy has become since it sampled
   * (DeepSeek-V3.2, 2025). Default true; the paper of GRPO has it without.
   */
  readonly weighKl?: boolean;
}

export interface RLOOConfig extends GroupConfig {
  /** Weight β of the KL to the starting point, taken off each answer's score; 0: no reference is kept. Default 0.05. */
  readonly klCoefficient?: number;
  /** Makes advantages mean 0 and deviation 1 over the batch. Default false. */
  readonly whitenAdvantages?: boolean;
}

/** What scores are measured against in REINFORCE++. */
export type ReinforceBaseline = "batch" | "group";

export interface ReinforcePlusPlusConfig extends GroupConfig {
  /** Weight β of the per-token KL penalty in the reward; 0: no reference is kept. Default 0.01. */
  readonly klCoefficient?: number;
  /** Default "k1". */
  readonly klEstimator?: KlEstimator;
  /** Discount per token. Default 1. */
  readonly gamma?: number;
  /**
   * "group": the mean score of a prompt's answers is taken off theirs (REINFORCE++-baseline); needs a groupSize of 2 or more. "batch"
   * (default): only the mean of all advantages is.
   */
  readonly baseline?: ReinforceBaseline;
}

const GROUP_DEFAULTS = {
  ...ROLLOUT_DEFAULTS,
  updateEpochs: 1,
  clipRange: 0.2,
};

export const GRPO_DEFAULTS = {
  ...GROUP_DEFAULTS,
  groupSize: 8,
  klCoefficient: 0,
  lossAggregation: "dapo" as LossAggregation,
  ratioLevel: "token" as NonNullable<GRPOConfig["ratioLevel"]>,
  surrogate: "clipped" as NonNullable<GRPOConfig["surrogate"]>,
  scaleRewards: "group" as RewardScale,
  weighKl: true,
};

export const RLOO_DEFAULTS = {
  ...GROUP_DEFAULTS,
  groupSize: 2,
  klCoefficient: 0.05,
  whitenAdvantages: false,
};

export const REINFORCE_DEFAULTS = {
  ...GROUP_DEFAULTS,
  groupSize: 1,
  klCoefficient: 0.01,
  klEstimator: "k1" as KlEstimator,
  gamma: 1,
  baseline: "batch" as ReinforceBaseline,
};

const GROUP_RULES: Rules<GroupConfig> = {
  ...ROLLOUT_RULES,
  groupSize: numberRule("an integer of at least 2", (value) => Number.isSafeInteger(value) && value >= 2),
  updateEpochs: positiveInteger,
  clipRange: positiveFraction,
  clipRangeHigh: positive,
};

export const GRPO_RULES: Rules<GRPOConfig> = {
  ...GROUP_RULES,
  lossAggregation: oneOf("grpo", "bnpo", "dapo", "dr_grpo"),
  ratioLevel: oneOf("token", "sequence"),
  surrogate: oneOf("clipped", "cispo"),
  scaleRewards: oneOf("group", "batch", "none"),
  weighKl: flag,
};

export const RLOO_RULES: Rules<RLOOConfig> = {
  ...GROUP_RULES,
  whitenAdvantages: flag,
};

export const REINFORCE_RULES: Rules<ReinforcePlusPlusConfig> = {
  ...GROUP_RULES,
  groupSize: positiveInteger,
  klEstimator: oneOf("k1", "k2", "k3"),
  gamma: fraction,
  baseline: oneOf("batch", "group"),
};

/** What the trainers share, with all defaults filled in. */
export type GroupSettings = RolloutSettings &
  GroupConfig &
  Required<Pick<GroupConfig, keyof typeof GROUP_DEFAULTS | "groupSize">>;

export type GRPOSettings = GroupSettings & Required<Pick<GRPOConfig, keyof typeof GRPO_DEFAULTS>>;
export type RLOOSettings = GroupSettings & Required<Pick<RLOOConfig, keyof typeof RLOO_DEFAULTS>>;
export type ReinforcePlusPlusSettings = GroupSettings &
  Required<Pick<ReinforcePlusPlusConfig, keyof typeof REINFORCE_DEFAULTS>>;

/** Settings that are right by themselves and wrong together: throws ERR_RLHF_ARGUMENT. */
export function checkGroupCombination(
  config: Parameters<typeof checkRolloutCombination>[0] & Pick<GroupSettings, "groupSize">,
): void {
  checkRolloutCombination(config);
  const { batchSize, groupSize } = config;
  if (batchSize % groupSize !== 0)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.batchSize (${batchSize} rollouts) must be a multiple of groupSize (${groupSize} answers per prompt)`,
    );
}

/** The same of REINFORCE++. */
export function checkReinforceCombination(config: ReinforcePlusPlusSettings): void {
  checkGroupCombination(config);
  if (config.baseline === "group" && config.groupSize < 2)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.baseline "group" needs a groupSize of 2 or more, not ${config.groupSize}; 8 is usual`,
    );
}
