import { type MemoryBudget, parseMemoryBudget } from "../engine/memory.ts";
import { RlhfError } from "../errors.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import { didYouMean } from "../suggest.ts";
import type { Schedule } from "./schedule.ts";

/** A LoRA adapter that the trainer adds to the model and trains instead of its weights: r is 16 and alpha 32 unless set. */
export type LoraSettings = Partial<Omit<AdapterOptions, "seed" | "trainable">>;

/** Settings of every training loop. */
export interface LoopConfig {
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
  /** Gradients are scaled down to this global norm; null: never. Default 1 (environments: 0.5). */
  readonly maxGradNorm?: number | null;
  /** Steps between evaluations; left out: only after the last step. */
  readonly evalSteps?: number;
  /** Steps between checkpoints; left out: only when interrupted. */
  readonly saveSteps?: number;
  /** Checkpoints to keep. Default 2. */
  readonly saveTotalLimit?: number;
  /** Keeps the model of the evaluation with the best value of this metric, such as "eval/loss", in `outputDir/best`; needs evalSteps. */
  readonly bestMetric?: string;
  /** Whether less or more of it is better. Default: "min" for a metric whose name ends in "loss", else "max". */
  readonly bestMetricGoal?: "min" | "max";
  /** Steps between records of metrics.jsonl, where steps with an evaluation are always recorded. Default 1. */
  readonly loggingSteps?: number;
  /** Everything random follows from it. Default 0. */
  readonly seed?: number;
}

/** Settings of every trainer of language models. */
export interface TrainerConfig extends LoopConfig {
  /** Sequences (pairs, rollouts) per batch. */
  readonly batchSize?: number;
  /** Most tokens of one forward pass: the setting that trades speed for memory. Results change by rounding only. Default 4096. */
  readonly microBatchTokens?: number;
  /** Longest sequence (PPO: prompt) in tokens. Default: 1024 or the model's context, whichever is less. */
  readonly maxLength?: number;
  /**
   * Keeps the input of each layer alone for backward, which computes the rest again (activation checkpointing): less memory for one
   * more forward pass, the same bits. Default: as the model was loaded.
   */
  readonly recomputeLayers?: boolean;
  /** The most memory that the engine may hold, in bytes or as "12GiB". Default: the machine's, or the container's. */
  readonly memoryBudget?: MemoryBudget;
  /** Trains an adapter instead of the model's weights. */
  readonly lora?: LoraSettings;
  /** Trains this adapter of the model; needed only when it has several. */
  readonly adapter?: string;
}

/** Defaults of every training loop. */
export const LOOP_DEFAULTS = {
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
export type LoopSettings = LoopConfig &
  Required<Pick<LoopConfig, keyof typeof LOOP_DEFAULTS | "learningRate" | "schedule">>;

/** Defaults that trainers of language models share. */
export const COMMON_DEFAULTS = { ...LOOP_DEFAULTS, microBatchTokens: 4096 };

/** Settings with all defaults filled in. */
export type CommonSettings = TrainerConfig &
  Required<Pick<TrainerConfig, keyof typeof COMMON_DEFAULTS | "batchSize" | "learningRate" | "schedule">>;

/** What a setting may be, in words and as a test. */
export type Rule = readonly [description: string, holds: (value: unknown) => boolean];

/** A rule for every setting of a trainer; one that is forgotten does not compile. */
export type Rules<Config> = { readonly [Name in keyof Required<Config>]: Rule };

export function numberRule(description: string, holds: (value: number) => boolean): Rule {
  return [description, (value) => typeof value === "number" && Number.isFinite(value) && holds(value)];
}

export const positiveInteger = numberRule(
  "a positive integer",
  (value) => Number.isSafeInteger(value) && value > 0,
);
export const nonNegativeInteger = numberRule(
  "an integer of at least 0",
  (value) => Number.isSafeInteger(value) && value >= 0,
);
export const finite = numberRule("a number", () => true);
export const positive = numberRule("a number over 0", (value) => value > 0);
export const nonNegative = numberRule("a number of at least 0", (value) => value >= 0);
export const fraction = numberRule("a number from 0 to 1", (value) => value >= 0 && value <= 1);
export const positiveFraction = numberRule("a number over 0, at most 1", (value) => value > 0 && value <= 1);
export const labelNoise = numberRule("a number from 0 to below 0.5", (value) => value >= 0 && value < 0.5);
export const flag: Rule = ["true or false", (value) => typeof value === "boolean"];

export function nullable([description, holds]: Rule): Rule {
  return [`${description}, or null`, (value) => value === null || holds(value)];
}

export function oneOf(...values: readonly string[]): Rule {
  const names = values.map((value) => JSON.stringify(value)).join(", ");
  return [`one of ${names}`, (value) => typeof value === "string" && values.includes(value)];
}

/** One of some names, or an object that is checked where it is used. */
export function oneOfOrObject(...values: readonly string[]): Rule {
  const [description, holds] = oneOf(...values);
  return [`${description}, or an object`, (value) => isObject(value) || holds(value)];
}

export function listOf([description, holds]: Rule): Rule {
  return [`a list, each element ${description}`, (value) => Array.isArray(value) && value.every(holds)];
}

/** One value, or a list of at least one. */
export function oneOrMore([description, holds]: Rule): Rule {
  const isList = (value: unknown): boolean => Array.isArray(value) && value.length > 0 && value.every(holds);
  return [`${description}, or a list of such`, (value) => holds(value) || isList(value)];
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const name: Rule = ["a name", (value) => typeof value === "string" && value !== ""];
const modules: Rule = [
  'a list of names of linear layers, "all-linear", or a regular expression',
  (value) => name[1](value) || (Array.isArray(value) && value.length > 0 && value.every(name[1])),
];

function byPattern([description, holds]: Rule): Rule {
  return [
    `an object of patterns, each with ${description}`,
    (value) => isObject(value) && Object.values(value).every(holds),
  ];
}

const LORA_RULES: Rules<LoraSettings> = {
  r: positiveInteger,
  alpha: positive,
  targetModules: modules,
  excludeModules: modules,
  layersToTransform: listOf(nonNegativeInteger),
  rankPattern: byPattern(positiveInteger),
  alphaPattern: byPattern(positive),
  useRslora: flag,
  dropout: numberRule("a number from 0 to below 1", (value) => value >= 0 && value < 1),
};

export const LOOP_RULES: Rules<LoopConfig> = {
  learningRate: nonNegative,
  warmupSteps: nonNegativeInteger,
  schedule: oneOf("constant", "linear", "cosine"),
  betas: [
    "two numbers from 0 to below 1",
    (value) =>
      Array.isArray(value) && value.length === 2 && value.every((beta) => fraction[1](beta) && beta < 1),
  ],
  eps: positive,
  weightDecay: nonNegative,
  maxGradNorm: nullable(positive),
  evalSteps: positiveInteger,
  saveSteps: positiveInteger,
  saveTotalLimit: positiveInteger,
  bestMetric: name,
  bestMetricGoal: oneOf("min", "max"),
  loggingSteps: positiveInteger,
  seed: nonNegativeInteger,
};

export const COMMON_RULES: Rules<TrainerConfig> = {
  ...LOOP_RULES,
  batchSize: positiveInteger,
  microBatchTokens: positiveInteger,
  maxLength: positiveInteger,
  recomputeLayers: flag,
  memoryBudget: [
    'a number of bytes or text such as "12GiB"',
    (value) =>
      (typeof value === "number" || typeof value === "string") && parseMemoryBudget(value) !== undefined,
  ],
  lora: ["an object { r, alpha, targetModules }", isObject],
  adapter: name,
};

/**
 * Throws ERR_RLHF_ARGUMENT for the first setting that the trainer does not have, with what was probably meant, or that is out of
 * its range, with what it may be.
 */
export function checkSettings<Config extends object>(settings: Config, rules: Rules<Config>): void {
  checkObject(settings, rules, "config");
  const { lora, bestMetric, bestMetricGoal, evalSteps } = settings as TrainerConfig;
  if (lora) checkObject(lora, LORA_RULES, "config.lora");
  if (bestMetric !== undefined && evalSteps === undefined)
    throw new RlhfError("ERR_RLHF_ARGUMENT", "config.bestMetric compares evaluations: set evalSteps too");
  if (bestMetricGoal !== undefined && bestMetric === undefined)
    throw new RlhfError("ERR_RLHF_ARGUMENT", "config.bestMetricGoal has no effect without bestMetric");
}

function checkObject(settings: object, rules: Readonly<Record<string, Rule>>, where: string): void {
  for (const [key, value] of Object.entries(settings)) {
    if (value === undefined) continue;
    const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
    if (!rule) {
      const hint = didYouMean(key, Object.keys(rules));
      throw new RlhfError("ERR_RLHF_ARGUMENT", `${where}: unknown setting "${key}"${hint}`, { name: key });
    }
    const [description, holds] = rule;
    if (holds(value)) continue;
    const found = typeof value === "number" ? String(value) : JSON.stringify(value);
    throw new RlhfError("ERR_RLHF_ARGUMENT", `${where}.${key} must be ${description}, got ${found}`, {
      name: key,
      value,
    });
  }
}

const DEFAULT_MAX_LENGTH = 1024;

/**
 * The longest sequence, or with `answer` the longest prompt before an answer of so many tokens: as it was set, else as much of 1024
 * tokens as the model's context holds. Throws ERR_RLHF_ARGUMENT when the context is too short for it.
 */
export function fittingMaxLength(maxLength: number | undefined, context: number, answer = 0): number {
  const room = context - answer;
  if (answer > 0 && room < 2) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.maxNewTokens (${answer}) leaves no room for a prompt in the model's context of ${context} tokens; lower it`,
    );
  }
  if (maxLength !== undefined && maxLength > room) {
    const longest =
      answer > 0 ? `${room} tokens that maxNewTokens (${answer}) leaves of the` : `${room} tokens of the`;
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.maxLength (${maxLength}) is over the ${longest} model's context; lower it, or leave it out`,
    );
  }
  return maxLength ?? Math.min(DEFAULT_MAX_LENGTH, room);
}

/** The given settings over the defaults; a setting given as undefined counts as left out. */
export function withDefaults<Defaults extends object, Config extends object>(
  defaults: Defaults,
  config: Config,
): Defaults & Config {
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
  return { ...defaults, ...given } as Defaults & Config;
}
