import type { KlEstimator } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { HeadOptions } from "../model/heads.ts";
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
  nonNegative,
  nullable,
  oneOf,
  oneOfOrObject,
  positive,
  positiveInteger,
  type Rules,
} from "./settings.ts";
import type { TrainingTarget } from "./target.ts";

/** Settings of PPO's updates, on language models and on environments. */
export interface PpoUpdateConfig {
  /** Passes over each batch of rollouts. Default 4; environments 10. */
  readonly numPpoEpochs?: number;
  /**
   * Ends an iteration's updates before one that starts from an approximate KL over this; null: never. Default 0.02; environments
   * null.
   */
  readonly targetKl?: number | null;
  /** Default 0.2. */
  readonly clipRange?: number;
  /** null: values are not clipped. Default 0.2; environments null. */
  readonly valueClipRange?: number | null;
  /** Default 0.1; environments 0.5. */
  readonly valueLossCoefficient?: number;
  /** Weight of the entropy bonus. Default 0. */
  readonly entropyCoefficient?: number;
  /** Discount per token or step. Default 1; environments 0.99. */
  readonly gamma?: number;
  /** λ of generalised advantage estimation. Default 0.95. */
  readonly lambda?: number;
  /** Makes advantages mean 0 and variance 1 over the batch. Default true. */
  readonly whitenAdvantages?: boolean;
}

/** Settings of PPO. */
export interface PPOConfig extends RolloutConfig, PpoUpdateConfig {
  /** Weight β of the KL penalty in the reward. Default 0.05. */
  readonly klCoefficient?: number;
  /**
   * "k1" (default), "k2" and "k3" estimate the KL of a token from the one that was sampled. "full" is the KL itself, over the whole
   * vocabulary: no noise, for two more products with the head.
   */
  readonly klEstimator?: KlEstimator | "full";
  /** Adapts β so that the KL per answer nears this; null (default): β stays. */
  readonly klTarget?: number | null;
  /** Rollouts over which β adapts. Default 10,000. */
  readonly klHorizon?: number;
  /**
   * Bounds the loss of a token with a negative advantage at this multiple of it, whatever its ratio: "dual clip", over 1 + clipRange, 3 is
   * usual (Ye et al. 2020). null (default): no bound.
   */
  readonly dualClip?: number | null;
  /**
   * Where an answer's score is given: at its last token ("last-token", default), or, as TRL does, one place after the end of an answer that
   * ended itself, whose value learns the score ("after-end"). With γ and λ 1 the advantages are the same.
   */
  readonly rewardPlacement?: "last-token" | "after-end";
  /** Divides rewards by their standard deviation over the batch, keeping their mean. Default false. */
  readonly whitenRewards?: boolean;
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
}

export const PPO_DEFAULTS = {
  ...ROLLOUT_DEFAULTS,
  numPpoEpochs: 4,
  klCoefficient: 0.05,
  klEstimator: "k1" as NonNullable<PPOConfig["klEstimator"]>,
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
  rewardPlacement: "last-token" as NonNullable<PPOConfig["rewardPlacement"]>,
  whitenRewards: false,
  whitenAdvantages: true,
  valueModel: "shared" as NonNullable<PPOConfig["valueModel"]>,
  valueInit: "policy" as NonNullable<PPOConfig["valueInit"]>,
};

export const PPO_UPDATE_RULES: Rules<PpoUpdateConfig> = {
  numPpoEpochs: positiveInteger,
  targetKl: nullable(positive),
  clipRange: positive,
  valueClipRange: nullable(positive),
  valueLossCoefficient: nonNegative,
  entropyCoefficient: nonNegative,
  gamma: fraction,
  lambda: fraction,
  whitenAdvantages: flag,
};

export const PPO_RULES: Rules<PPOConfig> = {
  ...ROLLOUT_RULES,
  ...PPO_UPDATE_RULES,
  klEstimator: oneOf("k1", "k2", "k3", "full"),
  klTarget: nullable(positive),
  klHorizon: positive,
  dualClip: nullable(positive),
  rewardPlacement: oneOf("last-token", "after-end"),
  whitenRewards: flag,
  valueModel: oneOf("shared", "adapter", "separate"),
  valueInit: oneOf("policy", "reward"),
  valueHead: oneOfOrObject("mlp", "linear"),
};

/** PPO's settings with all defaults filled in. */
export type PPOSettings = RolloutSettings & PPOConfig & Required<Pick<PPOConfig, keyof typeof PPO_DEFAULTS>>;

/** The value head that the settings describe. */
export function valueHeadOptions(settings: PPOSettings): HeadOptions {
  const { valueHead = "mlp", seed } = settings;
  if (typeof valueHead === "object") return valueHead;
  return valueHead === "mlp" ? { kind: "mlp", activation: "tanh", seed } : { kind: "linear", seed };
}

/** Settings that are right by themselves and wrong together: throws ERR_RLHF_ARGUMENT. */
export function checkCombination(config: PPOSettings, target: TrainingTarget["kind"]): void {
  checkRolloutCombination(config);
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
}

/**
 * Whether the policy's training pass has its losses inside: not with a divergence over the vocabulary, nor where one pass also gives
 * the values of places after the end.
 */
export function lossIsInside({
  klLossCoefficient,
  valueModel,
  rewardPlacement,
}: Pick<PPOSettings, "klLossCoefficient" | "valueModel" | "rewardPlacement">): boolean {
  return klLossCoefficient === 0 && !(valueModel === "shared" && rewardPlacement === "after-end");
}

/** Whether measuring runs the policy's training pass with nothing more, so that the first update can go on from there. */
export function measuresAsItTrains(
  settings: Pick<PPOSettings, "klEstimator" | "klLossCoefficient" | "valueModel" | "rewardPlacement">,
): boolean {
  return lossIsInside(settings) && settings.klEstimator !== "full";
}
