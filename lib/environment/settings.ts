import { PPO_UPDATE_RULES, type PpoUpdateConfig } from "../trainers/ppo-settings.ts";
import type { Schedule } from "../trainers/schedule.ts";
import {
  checkSettings,
  finite,
  flag,
  LOOP_DEFAULTS,
  LOOP_RULES,
  type LoopConfig,
  listOf,
  oneOf,
  positiveInteger,
  type Rules,
  withDefaults,
} from "../trainers/settings.ts";

/** Settings of PPO on an environment; a step is an iteration. The learning rate is 3e-4 and maxGradNorm 0.5 unless set. */
export interface EnvironmentPPOConfig extends LoopConfig, PpoUpdateConfig {
  /** Rollouts, each followed by updates. Default 100. */
  readonly numIterations?: number;
  /** Environments that run side by side. Default 8. */
  readonly numEnvironments?: number;
  /** Steps of each environment per iteration. Default 128. */
  readonly stepsPerIteration?: number;
  /** Widths of the hidden layers. Default [64, 64]. */
  readonly hidden?: readonly number[];
  /** Default "tanh". */
  readonly activation?: "tanh" | "relu";
  /** Logarithm of the first standard deviation of continuous actions. Default 0. */
  readonly initialLogStd?: number;
  /** Optimizer steps per pass. Default 4. */
  readonly numMinibatches?: number;
  /**
   * Takes observations less their mean over the first iteration, divided by their running deviation from it, within ± 10. Default
   * true.
   */
  readonly normalizeObservations?: boolean;
  /** Divides rewards by the running deviation of the discounted return. Default true. */
  readonly scaleRewards?: boolean;
  /** Episodes of an evaluation, each in an environment of its own. Default 20. */
  readonly evalEpisodes?: number;
  /** An evaluation cuts an episode off after so many steps. Default 10000. */
  readonly evalEpisodeSteps?: number;
}

export const ENVIRONMENT_PPO_DEFAULTS = {
  ...LOOP_DEFAULTS,
  numIterations: 100,
  numEnvironments: 8,
  stepsPerIteration: 128,
  hidden: [64, 64] as readonly number[],
  activation: "tanh" as "tanh" | "relu",
  initialLogStd: 0,
  learningRate: 3e-4,
  schedule: "linear" as Schedule,
  maxGradNorm: 0.5 as number | null,
  numPpoEpochs: 10,
  numMinibatches: 4,
  targetKl: null as number | null,
  clipRange: 0.2,
  valueClipRange: null as number | null,
  valueLossCoefficient: 0.5,
  entropyCoefficient: 0,
  gamma: 0.99,
  lambda: 0.95,
  whitenAdvantages: true,
  normalizeObservations: true,
  scaleRewards: true,
  evalEpisodes: 20,
  evalEpisodeSteps: 10000,
};

export const ENVIRONMENT_PPO_RULES: Rules<EnvironmentPPOConfig> = {
  ...LOOP_RULES,
  ...PPO_UPDATE_RULES,
  numIterations: positiveInteger,
  numEnvironments: positiveInteger,
  stepsPerIteration: positiveInteger,
  hidden: listOf(positiveInteger),
  activation: oneOf("tanh", "relu"),
  initialLogStd: finite,
  numMinibatches: positiveInteger,
  normalizeObservations: flag,
  scaleRewards: flag,
  evalEpisodes: positiveInteger,
  evalEpisodeSteps: positiveInteger,
};

export type EnvironmentPPOSettings = EnvironmentPPOConfig & typeof ENVIRONMENT_PPO_DEFAULTS;

/** All settings, defaults filled in. Throws ERR_RLHF_ARGUMENT for what is unknown or out of range. */
export function environmentSettings(config: EnvironmentPPOConfig): EnvironmentPPOSettings {
  checkSettings(config, ENVIRONMENT_PPO_RULES);
  return withDefaults(ENVIRONMENT_PPO_DEFAULTS, config);
}
