import type { KlEstimator } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { HeadOptions } from "../model/heads.ts";
import {
  COMMON_DEFAULTS,
  COMMON_RULES,
  type CommonSettings,
  flag,
  fraction,
  listOf,
  name,
  nonNegative,
  nonNegativeInteger,
  nullable,
  oneOf,
  oneOfOrObject,
  positive,
  positiveFraction,
  positiveInteger,
  type Rules,
  type TrainerConfig,
} from "./settings.ts";
import { requireNoDropout, type TrainingTarget } from "./target.ts";

/** Settings of PPO. Default learning rate: 1e-6 for all weights, 1e-5 for an adapter. */
export interface PPOConfig extends TrainerConfig {
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
  /** Passes over each batch of rollouts. Default 4. */
  readonly numPpoEpochs?: number;
  /** Optimizer steps per pass. Default 1. */
  readonly numMinibatches?: number;
  /** Weight β of the KL penalty in the reward. Default 0.05. */
  readonly klCoefficient?: number;
  /** Default "k1". */
  readonly klEstimator?: KlEstimator;
  /** Adapts β so that the KL per answer nears this; null (default): β stays. */
  readonly klTarget?: number | null;
  /** Rollouts over which β adapts. Default 10,000. */
  readonly klHorizon?: number;
  /** Ends an iteration's updates before one that starts from an approximate KL over this; null: never. Default 0.02. */
  readonly targetKl?: number | null;
  /** Default 0.2. */
  readonly clipRange?: number;
  /**
   * Bounds the loss of a token with a negative advantage at this multiple of it, whatever its ratio: "dual clip", over 1 + clipRange, 3 is
   * usual (Ye et al. 2020). null (default): no bound.
   */
  readonly dualClip?: number | null;
  /** null: values are not clipped. Default 0.2. */
  readonly valueClipRange?: number | null;
  /** Default 0.1. */
  readonly valueLossCoefficient?: number;
  /** Weight of the entropy bonus. Default 0. */
  readonly entropyCoefficient?: number;
  /** Discount per token. Default 1. */
  readonly gamma?: number;
  /** λ of generalised advantage estimation. Default 0.95. */
  readonly lambda?: number;
  /** Divides rewards by their standard deviation over the batch, keeping their mean. Default false. */
  readonly whitenRewards?: boolean;
  /** Makes advantages mean 0 and variance 1 over the batch. Default true. */
  readonly whitenAdvantages?: boolean;
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
  /**
   * Where values come from: a head on the policy's own hidden states ("shared", default), an adapter of its own on the same base
   * ("adapter", LoRA only), or a model with all weights trained ("separate").
   */
  readonly valueModel?: "shared" | "adapter" | "separate";
  /**
   * What a "separate" value model starts from: the policy's start (default), or the reward model's weights (the first member's of an
   * ensemble). Its head is a new one in either case.
   */
  readonly valueInit?: "policy" | "reward";
  /** "mlp" (hidden → hidden → 1 with tanh, default), "linear", or a head of one's own; its output begins at 0. */
  readonly valueHead?: "mlp" | "linear" | HeadOptions;
  /** Whether `save` merges an adapter into the weights (default), or writes the adapter alone in PEFT's format. */
  readonly saveMerged?: boolean;
}

export const PPO_DEFAULTS = {
  ...COMMON_DEFAULTS,
  schedule: "constant" as const,
  numIterations: 100,
  batchSize: 64,
  shufflePrompts: true,
  maxNewTokens: 64,
  minNewTokens: 0,
  temperature: 1,
  topP: 1,
  numPpoEpochs: 4,
  numMinibatches: 1,
  klCoefficient: 0.05,
  klEstimator: "k1" as KlEstimator,
  klTarget: null as number | null,
  klHorizon: 10_000,
  targetKl: 0.02 as number | null,
  clipRange: 0.2,
  dualClip: null as number | null,
  valueClipRange: 0.2 as number | null,
  valueLossCoefficient: 0.1,
  entropyCoefficient: 0,
  gamma: 1,
  lambda: 0.95,
  whitenRewards: false,
  whitenAdvantages: true,
  normalizeReward: true,
  shapeRewards: false,
  rewardClip: null as number | null,
  lengthPenalty: 0,
  lengthPenaltyStart: 0,
  diversityBonus: 0,
  diversityMeasure: "distinct" as NonNullable<PPOConfig["diversityMeasure"]>,
  diversityNgram: 2,
  missingEosPenalty: null as number | null,
  valueModel: "shared" as NonNullable<PPOConfig["valueModel"]>,
  valueInit: "policy" as NonNullable<PPOConfig["valueInit"]>,
};

export const PPO_RULES: Rules<PPOConfig> = {
  ...COMMON_RULES,
  numIterations: positiveInteger,
  shufflePrompts: flag,
  maxNewTokens: positiveInteger,
  minNewTokens: nonNegativeInteger,
  temperature: positive,
  topP: positiveFraction,
  stop: listOf(nonNegativeInteger),
  stopStrings: listOf(name),
  numPpoEpochs: positiveInteger,
  numMinibatches: positiveInteger,
  klCoefficient: nonNegative,
  klEstimator: oneOf("k1", "k2", "k3"),
  klTarget: nullable(positive),
  klHorizon: positive,
  targetKl: nullable(positive),
  clipRange: positive,
  dualClip: nullable(positive),
  valueClipRange: nullable(positive),
  valueLossCoefficient: nonNegative,
  entropyCoefficient: nonNegative,
  gamma: fraction,
  lambda: fraction,
  whitenRewards: flag,
  whitenAdvantages: flag,
  normalizeReward: flag,
  shapeRewards: flag,
  rewardClip: nullable(positive),
  lengthPenalty: nonNegative,
  lengthPenaltyStart: nonNegativeInteger,
  diversityBonus: nonNegative,
  diversityMeasure: oneOf("distinct", "overlap"),
  diversityNgram: positiveInteger,
  missingEosPenalty: nullable(nonNegative),
  valueModel: oneOf("shared", "adapter", "separate"),
  valueInit: oneOf("policy", "reward"),
  valueHead: oneOfOrObject("mlp", "linear"),
  saveMerged: flag,
};

/** PPO's settings with all defaults filled in. */
export type PPOSettings = CommonSettings & PPOConfig & Required<Pick<PPOConfig, keyof typeof PPO_DEFAULTS>>;

/** The value head that the settings describe. */
export function valueHeadOptions(settings: PPOSettings): HeadOptions {
  const { valueHead = "mlp", seed } = settings;
  if (typeof valueHead === "object") return valueHead;
  return valueHead === "mlp" ? { kind: "mlp", activation: "tanh", seed } : { kind: "linear", seed };
}

/** Settings that are right by themselves and wrong together: throws ERR_RLHF_ARGUMENT. */
export function checkCombination(
  config: typeof PPO_DEFAULTS & PPOConfig,
  target: TrainingTarget["kind"],
): void {
  if (config.valueModel === "adapter" && target !== "lora") {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      'config.valueModel "adapter" needs a policy trained by LoRA, whose base stays frozen; use "shared" or "separate"',
    );
  }
  if (config.valueInit === "reward" && config.valueModel !== "separate") {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.valueInit "reward" needs valueModel "separate", not "${config.valueModel}": the others stand on the policy's weights`,
    );
  }
  if (config.dualClip !== null && config.dualClip <= 1 + config.clipRange) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.dualClip (${config.dualClip}) must be over 1 + clipRange (${1 + config.clipRange}); 3 is usual`,
    );
  }
  requireNoDropout(config);
  if (config.minNewTokens > config.maxNewTokens) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.minNewTokens (${config.minNewTokens}) must not be over maxNewTokens (${config.maxNewTokens})`,
    );
  }
}
