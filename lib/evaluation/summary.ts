import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { Diversity } from "./diversity.ts";
import { groupsOf, ofPrompts, promptsByCategory } from "./metrics.ts";
import type { Plan } from "./plan.ts";
import type { EvaluatedAnswer } from "./policy.ts";
import type { Comparison, Estimates, EvaluationReport, ModelReport, Sample } from "./report.ts";
import { type ByPrompt, estimateMean, pairedDifferences, winRate } from "./statistics.ts";

/** What is known of one model's answers. */
export interface Measured {
  readonly name: string;
  readonly answers: readonly EvaluatedAnswer[];
  readonly logProbs: readonly number[];
  readonly tokenizer: Tokenizer;
  readonly vocabSize: number;
  readonly perplexity: number | null;
  /** By metric, in the order of the answers. */
  readonly values: Map<string, readonly (number | null)[]>;
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
export function summarise(
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
