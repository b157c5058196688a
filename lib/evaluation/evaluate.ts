import { join } from "node:path";
import { throwIfAborted } from "../errors.ts";
import { writeFileAtomically, writeJson } from "../model/files.ts";
import { loadReward } from "../rewards/ensemble.ts";
import { type RewardSource, rewardModels, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { runChecks } from "./checks.ts";
import { type Chart, chartsOf, readRuns } from "./curves.ts";
import { type Diversity, measureDiversity } from "./diversity.ts";
import { toHtml } from "./html.ts";
import { toMarkdown } from "./markdown.ts";
import { groupsOf, measureMetric } from "./metrics.ts";
import {
  type EvaluateOptions,
  type EvaluationReward,
  invalid,
  type Plan,
  planEvaluation,
  REWARDS,
  type RewardName,
} from "./plan.ts";
import { type EvaluatedModel, perplexityOf, sampleAnswers, sequenceLogProbs, withPolicy } from "./policy.ts";
import type { EvaluationReport } from "./report.ts";
import { measureRewardAccuracy, type RewardAccuracy } from "./reward-accuracy.ts";
import { type Measured, summarise } from "./summary.ts";

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

/** Measures what the texts alone show, their length in the tokens of `tokenizer`, and returns how much they differ. */
async function measureTexts(
  { metrics, numSamples }: Plan,
  model: Measured,
  tokenizer: Tokenizer,
): Promise<Diversity> {
  const { answers, values } = model;
  for (const [name, metric] of metrics) values.set(name, await measureMetric(name, metric, answers));
  const words = wordsOf(tokenizer, model);
  values.set(
    "length",
    words.map(({ length }) => length),
  );
  values.set(
    "ended",
    answers.map(({ finishReason }) => Number(finishReason === "stop")),
  );
  return measureDiversity(numSamples > 1 ? groupsOf(words, numSamples) : [words]);
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
  for (const model of measured) diversity.push(await measureTexts(plan, model, tokenizer));
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
