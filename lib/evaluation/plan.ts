import type { PreferenceRow, PromptRow, SftRow } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import type { RewardSource } from "../rewards/reward.ts";
import type { ChecksFunction } from "./checks.ts";
import { metricsFileOf } from "./curves.ts";
import {
  type CategoryFunction,
  holdsExpected,
  type MetricFunction,
  namedCategory,
  saysExpected,
} from "./metrics.ts";
import type { EvaluatedModel, PolicyLoadOptions, Sampling } from "./policy.ts";

/** A reward by what scores it, or by the directory of a reward model or an ensemble; several directories are an ensemble. */
export type EvaluationReward = RewardSource | string | readonly string[];

export interface EvaluateOptions extends PolicyLoadOptions, Partial<Sampling> {
  /** The models to compare, by the names they have in the report. Those given as directories are in memory one after another. */
  readonly models: Readonly<Record<string, EvaluatedModel>>;
  readonly prompts: readonly (string | PromptRow)[];
  /** Answers per prompt. Default 1. */
  readonly numSamples?: number;
  /** The model that the others are compared with. Default: the first. */
  readonly baseline?: string;
  /** What the KL is measured to: the name of a model above, or a model. Default: the baseline. */
  readonly reference?: EvaluatedModel;
  /** The reward that was trained for. */
  readonly reward?: EvaluationReward;
  /** One that was not: it tells progress from exploiting the first. */
  readonly heldOutReward?: EvaluationReward;
  /** Whether scores of reward models are normalised by their own statistics, where they have them. Default true. */
  readonly normalizeReward?: boolean;
  /** Pairs that `reward` and `heldOutReward` are to order rightly. */
  readonly pairs?: readonly PreferenceRow[];
  /** Examples whose responses' perplexity is measured. */
  readonly references?: readonly SftRow[];
  /** Further measures of an answer, by name. */
  readonly metrics?: Readonly<Record<string, MetricFunction>>;
  readonly category?: CategoryFunction;
  /** What the report is to show, and whether it does. */
  readonly checks?: ChecksFunction;
  /** The metrics that decide win rates. Default: those of `reward` and `heldOutReward` that are given. */
  readonly judges?: readonly string[];
  /** Prompts whose answers are shown side by side. Default 10. */
  readonly numShown?: number;
  /** Most tokens of one forward pass. Default 4096. */
  readonly microBatchTokens?: number;
  /** Writes report.json, report.md and report.html there. */
  readonly outputDir?: string;
  /**
   * Runs whose curves report.html shows, by name: directories with metrics.jsonl, or such files. Default: the models whose directories
   * have one.
   */
  readonly runs?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
  /** Told what is being done. */
  readonly note?: (text: string) => void;
}

const OPTIONS: NamesOf<EvaluateOptions> = {
  models: true,
  prompts: true,
  numSamples: true,
  baseline: true,
  reference: true,
  reward: true,
  heldOutReward: true,
  normalizeReward: true,
  pairs: true,
  references: true,
  metrics: true,
  category: true,
  checks: true,
  judges: true,
  numShown: true,
  microBatchTokens: true,
  outputDir: true,
  runs: true,
  signal: true,
  note: true,
  device: true,
  threads: true,
  dtype: true,
  compute: true,
  maxNewTokens: true,
  minNewTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  seed: true,
};

/** Metrics that every evaluation has; a custom one needs another name. */
const OWN_METRICS = ["reward", "heldOutReward", "kl", "length", "ended", "correct"];

export const REWARDS = ["reward", "heldOutReward"] as const;
export type RewardName = (typeof REWARDS)[number];

/** What an evaluation is going to do: its options, checked, with the defaults filled in. */
export interface Plan {
  readonly options: EvaluateOptions;
  readonly models: readonly (readonly [name: string, source: EvaluatedModel])[];
  readonly prompts: readonly PromptRow[];
  readonly numSamples: number;
  readonly baseline: string;
  readonly reference: { readonly name: string; readonly source: EvaluatedModel };
  readonly judges: readonly string[];
  readonly metrics: ReadonlyMap<string, MetricFunction>;
  readonly category: CategoryFunction;
  readonly sampling: Sampling & { readonly temperature: number; readonly seed: number };
  readonly microBatchTokens: number;
  /** Metrics files by run. */
  readonly runs: Readonly<Record<string, string>>;
}

export function invalid(message: string, details: Readonly<Record<string, unknown>> = {}): RlhfError {
  return new RlhfError("ERR_RLHF_ARGUMENT", `evaluate: ${message}`, details);
}

function checkCount(name: string, value: number, least: number): number {
  if (!Number.isSafeInteger(value) || value < least)
    throw invalid(`${name} is ${value}, expected an integer of at least ${least}`, { [name]: value });
  return value;
}

function referenceOf(options: EvaluateOptions, models: Plan["models"], baseline: string): Plan["reference"] {
  const { reference = baseline } = options;
  if (typeof reference !== "string") return { name: "the given reference", source: reference };
  const named = models.find(([name]) => name === reference);
  return { name: reference, source: named ? named[1] : reference };
}

function planMetrics(options: EvaluateOptions, prompts: readonly PromptRow[]): Plan["metrics"] {
  const taken = Object.keys(options.metrics ?? {}).find((name) => OWN_METRICS.includes(name));
  if (taken !== undefined) throw invalid(`metric "${taken}" has the name of a built-in one`, { taken });
  const own = saysExpected(prompts) ? [["correct", holdsExpected] as const] : [];
  return new Map([...own, ...Object.entries(options.metrics ?? {})]);
}

/** The metrics files of the runs. Throws ERR_RLHF_ARGUMENT where one that was named has none. */
function planRuns({ models, runs }: EvaluateOptions): Plan["runs"] {
  if (runs === undefined) {
    const files = Object.entries(models).map(([name, source]) => [
      name,
      typeof source === "string" ? metricsFileOf(source) : null,
    ]);
    return Object.fromEntries(files.filter(([, file]) => file !== null));
  }
  const files = Object.entries(runs).map(([name, run]) => {
    const file = metricsFileOf(run);
    if (file === null) throw invalid(`run "${name}": ${run} holds no metrics.jsonl`, { run });
    return [name, file];
  });
  return Object.fromEntries(files);
}

/** Checks the options and fills in the defaults. Throws ERR_RLHF_ARGUMENT. */
export function planEvaluation(options: EvaluateOptions): Plan {
  refuseUnknownOptions("evaluate", options, OPTIONS);
  const models = Object.entries(options.models);
  const [first] = models;
  if (first === undefined) throw invalid("models is empty; give at least one by name");
  if (options.prompts.length === 0) throw invalid("there are no prompts");
  const prompts = options.prompts.map((row) => (typeof row === "string" ? { prompt: row } : row));
  const { baseline = first[0], temperature = 1, seed = 0, maxNewTokens = 64 } = options;
  if (!Object.hasOwn(options.models, baseline))
    throw invalid(`baseline "${baseline}" is none of the models ${models.map(([name]) => name).join(", ")}`);
  const metrics = planMetrics(options, prompts);
  const rewards = REWARDS.filter((name) => options[name] !== undefined);
  const judges = options.judges ?? rewards;
  const known: string[] = ["kl", "length", "ended", ...rewards, ...metrics.keys()];
  const unknown = judges.find((judge) => !known.includes(judge));
  if (unknown !== undefined)
    throw invalid(`judge "${unknown}" is no metric of this evaluation, which has ${known.join(", ")}`);
  checkCount("numShown", options.numShown ?? 10, 0);
  const { minNewTokens, topK, topP, minP, repetitionPenalty } = options;
  const set = { minNewTokens, topK, topP, minP, repetitionPenalty };
  const given = Object.fromEntries(Object.entries(set).filter(([, value]) => value !== undefined));
  return {
    options,
    models,
    prompts,
    numSamples: checkCount("numSamples", options.numSamples ?? 1, 1),
    baseline,
    reference: referenceOf(options, models, baseline),
    judges,
    metrics,
    category: options.category ?? namedCategory,
    sampling: { ...given, maxNewTokens, temperature, seed },
    microBatchTokens: checkCount("microBatchTokens", options.microBatchTokens ?? 4096, 1),
    runs: planRuns(options),
  };
}
