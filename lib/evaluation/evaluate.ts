import { join } from "node:path";
import type { PreferenceRow, PromptRow, SftRow } from "../data/types.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { writeFileAtomically, writeJson } from "../model/files.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { loadReward } from "../rewards/ensemble.ts";
import { type RewardSource, rewardModels, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type ChecksFunction, runChecks } from "./checks.ts";
import { type Chart, chartsOf, metricsFileOf, readRuns } from "./curves.ts";
import { type Diversity, measureDiversity } from "./diversity.ts";
import { toHtml } from "./html.ts";
import { toMarkdown } from "./markdown.ts";
import {
  type CategoryFunction,
  groupsOf,
  holdsExpected,
  type MetricFunction,
  measureMetric,
  namedCategory,
  ofPrompts,
  promptsByCategory,
  saysExpected,
} from "./metrics.ts";
import {
  type EvaluatedAnswer,
  type EvaluatedModel,
  type PolicyLoadOptions,
  perplexityOf,
  type Sampling,
  sampleAnswers,
  sequenceLogProbs,
  withPolicy,
} from "./policy.ts";
import type { Comparison, Estimates, EvaluationReport, ModelReport, Sample } from "./report.ts";
import { measureRewardAccuracy, type RewardAccuracy } from "./reward-accuracy.ts";
import { type ByPrompt, estimateMean, pairedDifferences, winRate } from "./statistics.ts";

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

const REWARDS = ["reward", "heldOutReward"] as const;
type RewardName = (typeof REWARDS)[number];

/** What is known of one model's answers. */
interface Measured {
  readonly name: string;
  readonly answers: readonly EvaluatedAnswer[];
  readonly logProbs: readonly number[];
  readonly tokenizer: Tokenizer;
  readonly vocabSize: number;
  readonly perplexity: number | null;
  /** By metric, in the order of the answers. */
  readonly values: Map<string, readonly (number | null)[]>;
}

interface Plan {
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

function invalid(message: string, details: Readonly<Record<string, unknown>> = {}): RlhfError {
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
function planEvaluation(options: EvaluateOptions): Plan {
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

/** Log-probs are those of the distribution that answers were drawn from; greedy answers are measured at temperature 1. */
function measureOptionsOf({ sampling, microBatchTokens, options }: Plan): {
  temperature: number;
  microBatchTokens: number;
  signal: AbortSignal | undefined;
} {
  return { temperature: sampling.temperature || 1, microBatchTokens, signal: options.signal };
}

/** Samples the answers of one model and measures what needs it in memory. */
function measureModel(plan: Plan, name: string, source: EvaluatedModel): Promise<Measured> {
  const { options, prompts, numSamples, sampling } = plan;
  return withPolicy(source, options, async (policy) => {
    options.note?.(`${name}: answers ${prompts.length * numSamples} times`);
    const answers = await sampleAnswers(policy, prompts, numSamples, sampling, options.signal);
    const measuring = measureOptionsOf(plan);
    const logProbs = await sequenceLogProbs(policy, answers, measuring);
    const { references } = options;
    const perplexity = references ? await perplexityOf(policy, references, measuring) : null;
    const { tokenizer, model } = policy;
    return {
      name,
      answers,
      logProbs,
      tokenizer,
      vocabSize: model.vocabSize,
      perplexity,
      values: new Map(),
    };
  });
}

function checkVocabulary(what: string, vocabSize: number, measured: readonly Measured[]): void {
  const other = measured.find((model) => model.vocabSize !== vocabSize);
  if (other)
    throw invalid(
      `${what} has a vocabulary of ${vocabSize}, ${other.name} one of ${other.vocabSize}: tokens mean something else to it`,
    );
}

/** KL per answer: Σ over its tokens of log π − log π_reference, in nats; its mean over answers drawn from π estimates KL(π‖π_reference). */
async function measureKl(plan: Plan, measured: readonly Measured[]): Promise<void> {
  const { reference, options } = plan;
  options.note?.(`KL to ${reference.name}`);
  await withPolicy(reference.source, options, async (policy) => {
    checkVocabulary("the reference", policy.model.vocabSize, measured);
    for (const { answers, logProbs, values } of measured) {
      const others = await sequenceLogProbs(policy, answers, measureOptionsOf(plan));
      values.set(
        "kl",
        logProbs.map((logProb, i) => logProb - (others[i] as number)),
      );
    }
  });
}

/** Scores the answers of every model, and measures how well the reward orders `pairs`; null where there is no such reward or no pair. */
async function measureReward(
  plan: Plan,
  name: RewardName,
  measured: readonly Measured[],
): Promise<RewardAccuracy | null> {
  const { options, microBatchTokens } = plan;
  const given = options[name];
  if (given === undefined) return null;
  options.note?.(`scores answers: ${name}`);
  const { device, threads, dtype, compute } = options;
  const loaded =
    typeof given === "string" || isList(given)
      ? await loadReward(given, { device, threads, dtype, compute })
      : null;
  try {
    const source = loaded ?? (given as RewardSource);
    for (const { model } of rewardModels(source)) checkVocabulary(name, model.vocabSize, measured);
    const normalize = options.normalizeReward ?? true;
    for (const { answers, values } of measured) {
      throwIfAborted(options.signal, "evaluate");
      const { scores } = await scoreAnswers(source, answers, { microBatchTokens, normalize });
      values.set(name, [...scores]);
    }
    const { tokenizer } = measured[0] as Measured;
    const { pairs = [] } = options;
    return await measureRewardAccuracy(source, pairs, tokenizer, plan.category, microBatchTokens);
  } finally {
    loaded?.dispose();
  }
}

function isList(given: EvaluationReward): given is readonly string[] {
  return Array.isArray(given);
}

/** Answers as words for measures of diversity: the tokens that one tokenizer makes of every model's texts. */
function wordsOf(tokenizer: Tokenizer, measured: Measured): Int32Array[] {
  return measured.answers.map(({ response }) =>
    response === "" ? new Int32Array(0) : tokenizer.encode(response, { addSpecialTokens: false }),
  );
}

/** Measures that are no shares, also where all of them are 0 or 1. */
const AMOUNTS: ReadonlySet<string> = new Set(["reward", "heldOutReward", "kl", "length"]);

function estimatesOf(values: ReadonlyMap<string, ByPrompt>, areDifferences = false): Estimates {
  const estimates = [...values].map(
    ([name, rows]) => [name, estimateMean(rows, !areDifferences && !AMOUNTS.has(name))] as const,
  );
  return Object.fromEntries(estimates.flatMap(([name, estimate]) => (estimate ? [[name, estimate]] : [])));
}

function mapValues<V, W>(map: ReadonlyMap<string, V>, change: (value: V, key: string) => W): Map<string, W> {
  return new Map([...map].map(([key, value]) => [key, change(value, key)]));
}

type Values = ReadonlyMap<string, ByPrompt>;

function compare(plan: Plan, own: Values, baseline: Values, categories: Map<string, number[]>): Comparison {
  const differences = mapValues(own, (rows, name) => pairedDifferences(rows, baseline.get(name) ?? []));
  const lengths = [own, baseline].map((values) => values.get("length") ?? []) as [ByPrompt, ByPrompt];
  const winRates = plan.judges.flatMap((judge) => {
    const rate = winRate(own.get(judge) ?? [], baseline.get(judge) ?? [], ...lengths);
    return rate ? [[judge, rate] as const] : [];
  });
  return {
    differences: estimatesOf(differences, true),
    winRates: Object.fromEntries(winRates),
    categories: Object.fromEntries(
      mapValues(categories, (prompts) =>
        estimatesOf(
          mapValues(differences, (rows) => ofPrompts(rows, prompts)),
          true,
        ),
      ),
    ),
  };
}

function samplesOf(plan: Plan, measured: readonly Measured[]): Sample[] {
  const shown = plan.prompts.slice(0, plan.options.numShown ?? 10);
  return shown.map((row, p) => ({
    prompt: row.prompt,
    category: plan.category(row),
    answers: Object.fromEntries(
      measured.map(({ name, answers, values }) => {
        const index = p * plan.numSamples;
        const metrics = mapValues(values, (column) => column[index] ?? null);
        return [name, { response: answers[index]?.response ?? "", metrics: Object.fromEntries(metrics) }];
      }),
    ),
  }));
}

/** Everything that follows from the measured values. */
function summarise(
  plan: Plan,
  measured: readonly Measured[],
  diversity: readonly Diversity[],
  rewardAccuracy: EvaluationReport["rewardAccuracy"],
): Omit<EvaluationReport, "checks"> {
  const { numSamples, baseline } = plan;
  const categories = promptsByCategory(plan.prompts, plan.category);
  const grouped = new Map(
    measured.map(({ name, values }) => [name, mapValues(values, (column) => groupsOf(column, numSamples))]),
  );
  const models = measured.map(({ name, perplexity }, index): ModelReport => {
    const own = grouped.get(name) as Values;
    const byCategory = mapValues(categories, (prompts) =>
      estimatesOf(mapValues(own, (rows) => ofPrompts(rows, prompts))),
    );
    return {
      name,
      metrics: estimatesOf(own),
      categories: Object.fromEntries(byCategory),
      diversity: diversity[index] as Diversity,
      perplexity,
      comparison: name === baseline ? null : compare(plan, own, grouped.get(baseline) as Values, categories),
    };
  });
  const { sampling, prompts } = plan;
  return {
    format: 1,
    settings: { prompts: prompts.length, answersPerPrompt: numSamples, ...sampling },
    baseline,
    reference: plan.reference.name,
    models,
    rewardAccuracy,
    samples: samplesOf(plan, measured),
  };
}

/**
 * Compares models on the same prompts and random numbers: rewards, KL, diversity, win rates and metrics of your own, over all prompts
 * and by category; rewards on preference pairs; and checks of what came out. Writes report.json, report.md and report.html where `outputDir` is
 * given.
 *
 * Throws ERR_RLHF_ARGUMENT for options that do not fit, ERR_RLHF_REWARD for a reward, metric or check that fails, and what loading models,
 * generating and scoring throw.
 */
export async function evaluate(options: EvaluateOptions): Promise<EvaluationReport> {
  const plan = planEvaluation(options);
  const { numSamples } = plan;
  const measured: Measured[] = [];
  for (const [name, source] of plan.models) measured.push(await measureModel(plan, name, source));
  const { tokenizer } = measured[0] as Measured;
  const rewardAccuracy: Partial<Record<RewardName, RewardAccuracy>> = {};
  for (const name of REWARDS) {
    const accuracy = await measureReward(plan, name, measured);
    if (accuracy) rewardAccuracy[name] = accuracy;
  }
  await measureKl(plan, measured);
  const diversity: Diversity[] = [];
  for (const model of measured) {
    const { answers, values } = model;
    for (const [name, metric] of plan.metrics) values.set(name, await measureMetric(name, metric, answers));
    const words = wordsOf(tokenizer, model);
    values.set(
      "length",
      words.map(({ length }) => length),
    );
    values.set(
      "ended",
      answers.map(({ finishReason }) => Number(finishReason === "stop")),
    );
    diversity.push(await measureDiversity(numSamples > 1 ? groupsOf(words, numSamples) : [words]));
  }
  const { checks, outputDir } = options;
  const runs = readRuns(plan.runs);
  const found = summarise(plan, measured, diversity, rewardAccuracy);
  const report = { ...found, checks: checks ? await runChecks(checks, found, { runs, outputDir }) : [] };
  if (outputDir !== undefined) await writeReports(outputDir, report, chartsOf(runs));
  return report;
}

async function writeReports(
  directory: string,
  report: EvaluationReport,
  charts: readonly Chart[],
): Promise<void> {
  await writeJson(join(directory, "report.json"), report);
  await writeFileAtomically(join(directory, "report.md"), toMarkdown(report));
  await writeFileAtomically(join(directory, "report.html"), toHtml(report, charts));
}
