import type { Schedule } from "../trainers/schedule.ts";
import {
  COMMON_RULES,
  checkSettings,
  finite,
  flag,
  fraction,
  listOf,
  nonNegative,
  nonNegativeInteger,
  nullable,
  oneOf,
  positive,
  positiveInteger,
  type Rules,
  withDefaults,
} from "../trainers/settings.ts";

/** Settings of PPO on an environment. */
export interface EnvironmentPPOConfig {
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
  /** The peak. Default 3e-4. */
  readonly learningRate?: number;
  /** Iterations in which the learning rate rises to its peak. Default 0. */
  readonly warmupSteps?: number;
  /** Default "linear". */
  readonly schedule?: Schedule;
  /** AdamW's decay rates. Default [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly eps?: number;
  /** Default 0. */
  readonly weightDecay?: number;
  /** Gradients are scaled down to this global norm; null: never. Default 0.5. */
  readonly maxGradNorm?: number | null;
  /** Passes over each iteration's steps. Default 10. */
  readonly numPpoEpochs?: number;
  /** Optimizer steps per pass. Default 4. */
  readonly numMinibatches?: number;
  /** Ends an iteration's updates before one that starts from an approximate KL over this; null (default): never. */
  readonly targetKl?: number | null;
  /** Default 0.2. */
  readonly clipRange?: number;
  /** null (default): values are not clipped. */
  readonly valueClipRange?: number | null;
  /** Default 0.5. */
  readonly valueLossCoefficient?: number;
  /** Weight of the entropy bonus. Default 0. */
  readonly entropyCoefficient?: number;
  /** Discount per step. Default 0.99. */
  readonly gamma?: number;
  /** λ of generalised advantage estimation. Default 0.95. */
  readonly lambda?: number;
  /** Makes advantages mean 0 and variance 1 over the iteration. Default true. */
  readonly whitenAdvantages?: boolean;
  /** Brings observations to mean 0 and deviation 1, by running statistics, within ± 10. Default true. */
  readonly normalizeObservations?: boolean;
  /** Divides rewards by the running deviation of the discounted return. Default true. */
  readonly scaleRewards?: boolean;
  /** Iterations between checkpoints; left out: only when interrupted and at the end. */
  readonly saveSteps?: number;
  /** Everything random follows from it. Default 0. */
  readonly seed?: number;
}

export const ENVIRONMENT_PPO_DEFAULTS = {
  numIterations: 100,
  numEnvironments: 8,
  stepsPerIteration: 128,
  hidden: [64, 64] as readonly number[],
  activation: "tanh" as "tanh" | "relu",
  initialLogStd: 0,
  learningRate: 3e-4,
  warmupSteps: 0,
  schedule: "linear" as Schedule,
  betas: [0.9, 0.999] as readonly [number, number],
  eps: 1e-8,
  weightDecay: 0,
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
  seed: 0,
};

const RULES: Rules<EnvironmentPPOConfig> = {
  numIterations: positiveInteger,
  numEnvironments: positiveInteger,
  stepsPerIteration: positiveInteger,
  hidden: listOf(positiveInteger),
  activation: oneOf("tanh", "relu"),
  initialLogStd: finite,
  learningRate: nonNegative,
  warmupSteps: nonNegativeInteger,
  schedule: COMMON_RULES.schedule,
  betas: COMMON_RULES.betas,
  eps: positive,
  weightDecay: nonNegative,
  maxGradNorm: nullable(positive),
  numPpoEpochs: positiveInteger,
  numMinibatches: positiveInteger,
  targetKl: nullable(positive),
  clipRange: positive,
  valueClipRange: nullable(positive),
  valueLossCoefficient: nonNegative,
  entropyCoefficient: nonNegative,
  gamma: fraction,
  lambda: fraction,
  whitenAdvantages: flag,
  normalizeObservations: flag,
  scaleRewards: flag,
  saveSteps: positiveInteger,
  seed: nonNegativeInteger,
};

export type EnvironmentPPOSettings = EnvironmentPPOConfig & typeof ENVIRONMENT_PPO_DEFAULTS;

/** All settings, defaults filled in. Throws ERR_RLHF_ARGUMENT for what is unknown or out of range. */
export function environmentSettings(config: EnvironmentPPOConfig): EnvironmentPPOSettings {
  checkSettings(config, RULES);
  return withDefaults(ENVIRONMENT_PPO_DEFAULTS, config);
}
