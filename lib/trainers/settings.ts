import { RlhfError } from "../errors.ts";
import type { Schedule } from "./schedule.ts";

/** A LoRA adapter that the trainer adds to the model and trains instead of its weights. */
export interface LoraSettings {
  /** Rank. Default 16. */
  readonly r?: number;
  /** The adapter's output is scaled by alpha / r. Default 32. */
  readonly alpha?: number;
  /** Names of linear layers ("q_proj"), or "all-linear". Default: the attention projections. */
  readonly targetModules?: readonly string[] | "all-linear";
}

/** Settings of every trainer. */
export interface TrainerConfig {
  /** Sequences (pairs, rollouts) per batch. */
  readonly batchSize?: number;
  /** Most tokens of one forward pass: the setting that trades speed for memory. Results change by rounding only. Default 4096. */
  readonly microBatchTokens?: number;
  /** The peak learning rate. */
  readonly learningRate?: number;
  /** Optimizer steps (PPO: iterations) in which the learning rate rises to its peak. Default 0. */
  readonly warmupSteps?: number;
  readonly schedule?: Schedule;
  /** AdamW's decay rates. Default [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** AdamW's epsilon. Default 1e-8. */
  readonly eps?: number;
  /** AdamW's decoupled weight decay. Default 0. */
  readonly weightDecay?: number;
  /** Gradients are scaled down to this global norm; null: never. Default 1. */
  readonly maxGradNorm?: number | null;
  /** Longest sequence (PPO: prompt) in tokens. Default: 1024 or the model's context, whichever is less. */
  readonly maxLength?: number;
  /** Steps between evaluations; left out: only after the last step. */
  readonly evalSteps?: number;
  /** Steps between checkpoints; left out: only when interrupted. */
  readonly saveSteps?: number;
  /** Checkpoints to keep. Default 2. */
  readonly saveTotalLimit?: number;
  /** Steps between records of metrics.jsonl. Default 1. */
  readonly loggingSteps?: number;
  /** Everything random follows from it. Default 0. */
  readonly seed?: number;
  /** Trains an adapter instead of the model's weights. */
  readonly lora?: LoraSettings;
  /** Trains this adapter of the model; needed only when it has several. */
  readonly adapter?: string;
}

/** Defaults that all trainers share. */
export const COMMON_DEFAULTS = {
  microBatchTokens: 4096,
  warmupSteps: 0,
  betas: [0.9, 0.999] as readonly [number, number],
  eps: 1e-8,
  weightDecay: 0,
  maxGradNorm: 1,
  saveTotalLimit: 2,
  loggingSteps: 1,
  seed: 0,
};

/** Settings with all defaults filled in. */
export type CommonSettings = TrainerConfig &
  Required<Pick<TrainerConfig, keyof typeof COMMON_DEFAULTS | "batchSize" | "learningRate" | "schedule">>;

type Rule = readonly [description: string, holds: (value: number) => boolean];

const positiveInteger: Rule = ["a positive integer", (value) => Number.isSafeInteger(value) && value > 0];
const nonNegativeInteger: Rule = [
  "an integer of at least 0",
  (value) => Number.isSafeInteger(value) && value >= 0,
];
const positive: Rule = ["a number over 0", (value) => Number.isFinite(value) && value > 0];
const nonNegative: Rule = ["a number of at least 0", (value) => Number.isFinite(value) && value >= 0];
const fraction: Rule = ["a number from 0 to 1", (value) => value >= 0 && value <= 1];

const RULES: Readonly<Record<string, Rule>> = {
  batchSize: positiveInteger,
  gradientAccumulationSteps: positiveInteger,
  microBatchTokens: positiveInteger,
  maxSteps: positiveInteger,
  numEpochs: positive,
  learningRate: nonNegative,
  warmupSteps: nonNegativeInteger,
  eps: positive,
  weightDecay: nonNegative,
  maxGradNorm: positive,
  maxLength: positiveInteger,
  evalSteps: positiveInteger,
  saveSteps: positiveInteger,
  saveTotalLimit: positiveInteger,
  loggingSteps: positiveInteger,
  seed: nonNegativeInteger,
  centerCoefficient: nonNegative,
  numIterations: positiveInteger,
  maxNewTokens: positiveInteger,
  minNewTokens: nonNegativeInteger,
  temperature: positive,
  topP: fraction,
  numPpoEpochs: positiveInteger,
  numMinibatches: positiveInteger,
  klCoefficient: nonNegative,
  klTarget: positive,
  klHorizon: positive,
  targetKl: positive,
  clipRange: positive,
  valueClipRange: positive,
  valueLossCoefficient: nonNegative,
  entropyCoefficient: nonNegative,
  gamma: fraction,
  lambda: fraction,
  rewardClip: positive,
  missingEosPenalty: nonNegative,
};

/** Throws ERR_RLHF_ARGUMENT, with the setting's name and what it may be, for the first setting out of its range. */
export function checkSettings(settings: object): void {
  for (const [name, value] of Object.entries(settings)) {
    const rule = RULES[name];
    if (!rule || value === null || value === undefined) continue;
    const [description, holds] = rule;
    if (typeof value !== "number" || !holds(value)) {
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `config.${name} must be ${description}, got ${String(value)}`,
        { name, value },
      );
    }
  }
}

/** The given settings over the defaults; a setting given as undefined counts as left out. */
export function withDefaults<Defaults extends object, Config extends object>(
  defaults: Defaults,
  config: Config,
): Defaults & Config {
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
  return { ...defaults, ...given } as Defaults & Config;
}
