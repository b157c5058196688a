import type { ReportCheck } from "./checks.ts";
import type { Diversity } from "./diversity.ts";
import type { RewardAccuracy } from "./reward-accuracy.ts";
import type { Estimate, WinRate } from "./statistics.ts";

/** Means by the name of what was measured. */
export type Estimates = Readonly<Record<string, Estimate>>;

/** A model against the baseline, answer by answer on the same prompts and seeds. */
export interface Comparison {
  /** The model's mean minus the baseline's, with the interval of the paired differences. */
  readonly differences: Estimates;
  /** By judge. */
  readonly winRates: Readonly<Record<string, WinRate>>;
  /** The differences on the prompts of each category. */
  readonly categories: Readonly<Record<string, Estimates>>;
}

export interface ModelReport {
  readonly name: string;
  /** Over all answers: `reward`, `heldOutReward`, `kl`, `length`, `ended`, `correct` and custom metrics. */
  readonly metrics: Estimates;
  /** The same over the prompts of each category. */
  readonly categories: Readonly<Record<string, Estimates>>;
  readonly diversity: Diversity;
  /** Of the references; null where there were none. */
  readonly perplexity: number | null;
  /** Null for the baseline itself. */
  readonly comparison: Comparison | null;
}

/** One answer to a prompt of each model, side by side. */
export interface Sample {
  readonly prompt: string;
  readonly category: string | null;
  readonly answers: Readonly<
    Record<string, { readonly response: string; readonly metrics: Readonly<Record<string, number | null>> }>
  >;
}

/** What `evaluate` found; report.json holds it as it is. */
export interface EvaluationReport {
  readonly format: 1;
  readonly settings: Readonly<Record<string, string | number>>;
  /** The model that the others are compared with, and what the KL is measured to. */
  readonly baseline: string;
  readonly reference: string;
  readonly models: readonly ModelReport[];
  /** Of `reward` and `heldOutReward` on preference pairs, where both are given. */
  readonly rewardAccuracy: Readonly<Record<string, RewardAccuracy>>;
  readonly checks: readonly ReportCheck[];
  readonly samples: readonly Sample[];
}

/** A number for a table: whole numbers as they are, others with four significant digits. */
export function formatNumber(value: number): string {
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5
    ? String(Number(value.toPrecision(4)))
    : value.toExponential(2).replace("e+", "e");
}

/** "mean [low, high]". */
export function formatEstimate(estimate: Pick<Estimate, "mean" | "low" | "high"> | undefined): string {
  if (estimate === undefined) return "–";
  const { mean, low, high } = estimate;
  if (low === null || high === null) return formatNumber(mean);
  return `${formatNumber(mean)} [${formatNumber(low)}, ${formatNumber(high)}]`;
}

/** "62 % [48, 74]". */
export function formatRate(rate: { rate: number; low: number; high: number } | undefined): string {
  if (rate === undefined) return "–";
  const percent = (value: number): string => (100 * value).toFixed(1);
  return `${percent(rate.rate)} % [${percent(rate.low)}, ${percent(rate.high)}]`;
}

/** A table of texts, for reports in any form; the first row is its head. */
export interface Table {
  readonly title: string;
  readonly rows: readonly (readonly string[])[];
}

function namesOf(records: readonly Readonly<Record<string, unknown>>[]): string[] {
  return [...new Set(records.flatMap((record) => Object.keys(record)))];
}

function estimateTable(
  title: string,
  columns: readonly { readonly name: string; readonly values: Estimates }[],
): Table {
  const names = namesOf(columns.map(({ values }) => values));
  return {
    title,
    rows: [
      ["", ...columns.map(({ name }) => name)],
      ...names.map((name) => [name, ...columns.map(({ values }) => formatEstimate(values[name]))]),
    ],
  };
}

function diversityTable(models: readonly ModelReport[]): Table {
  const measures = Object.keys(models[0]?.diversity ?? {}) as (keyof Diversity)[];
  const rows = measures.map((measure) => [
    measure,
    ...models.map(({ diversity }) => formatNumber(diversity[measure])),
  ]);
  if (models.some(({ perplexity }) => perplexity !== null))
    rows.push([
      "perplexity",
      ...models.map(({ perplexity }) => (perplexity === null ? "–" : formatNumber(perplexity))),
    ]);
  return { title: "Diversity and perplexity", rows: [["", ...models.map(({ name }) => name)], ...rows] };
}

function winRateTable(baseline: string, models: readonly ModelReport[]): Table[] {
  const rows = models.flatMap(({ name, comparison }) =>
    Object.entries(comparison?.winRates ?? {}).map(([judge, win]) => [
      name,
      judge,
      formatRate(win),
      formatRate(win.lengthControlled),
      `${win.wins} / ${win.ties} / ${win.losses}`,
    ]),
  );
  if (rows.length === 0) return [];
  const head = ["", "judge", "win rate", "length-controlled", "wins / ties / losses"];
  return [{ title: `Win rate against ${baseline}`, rows: [head, ...rows] }];
}

function rewardAccuracyTable(accuracies: EvaluationReport["rewardAccuracy"]): Table[] {
  const all = Object.entries(accuracies);
  if (all.length === 0) return [];
  const line = (name: string, estimate: (accuracy: RewardAccuracy) => Estimate | undefined): string[] => [
    name,
    ...all.map(([, accuracy]) => formatEstimate(estimate(accuracy))),
  ];
  const rows = [
    ["", ...all.map(([name]) => name)],
    line("all pairs", ({ accuracy }) => accuracy),
    ...namesOf(all.map(([, { categories }]) => categories)).map((category) =>
      line(category, ({ categories }) => categories[category]),
    ),
  ];
  return [{ title: "Preference pairs ordered rightly", rows }];
}

function checkTable(checks: readonly ReportCheck[]): Table[] {
  if (checks.length === 0) return [];
  const rows = checks.map(({ name, figure, requirement, holds }) => [
    name,
    figure === null ? "–" : formatNumber(figure),
    requirement,
    holds ? "holds" : "does not hold",
  ]);
  return [{ title: "Checks", rows: [["", "measured", "required", ""], ...rows] }];
}

/** The report's tables: checks, means, categories, differences from the baseline, win rates, rewards, diversity. */
export function reportTables({ models, baseline, rewardAccuracy, checks }: EvaluationReport): Table[] {
  const compared = models.flatMap(({ name, comparison }) => (comparison ? [{ name, comparison }] : []));
  const categories = namesOf(models.map((model) => model.categories));
  return [
    ...checkTable(checks),
    estimateTable(
      "Means",
      models.map(({ name, metrics }) => ({ name, values: metrics })),
    ),
    ...categories.map((category) =>
      estimateTable(
        `Category ${category}`,
        models.map(({ name, categories }) => ({ name, values: categories[category] ?? {} })),
      ),
    ),
    ...(compared.length === 0
      ? []
      : [
          estimateTable(
            `Difference from ${baseline}`,
            compared.map(({ name, comparison }) => ({ name, values: comparison.differences })),
          ),
        ]),
    ...winRateTable(baseline, models),
    ...rewardAccuracyTable(rewardAccuracy),
    diversityTable(models),
  ];
}

/** What the tables' numbers are. */
export const LEGEND =
  "Brackets hold 95 % confidence intervals over prompts. kl: nats per answer to the reference; length: tokens; ended: share of answers that ended themselves. Higher diversity is more varied, but for selfBleu4, jaccard2 and repetition4, where lower is.";
