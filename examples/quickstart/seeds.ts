/**
 * Runs the quickstart with several seeds, each with data, models and random numbers of its own, into runs/quickstart-seeds, and writes
 * bench/results/quickstart-seeds.json; prints the tables of docs/PERFORMANCE.md. Seeds that are complete are not run again.
 *
 *   npx tsx examples/quickstart/seeds.ts [SEED …]      0 1 2 3 4, unless given
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import type { EvaluationReport, ModelReport } from "../../lib/index.ts";
import { quickstart } from "./quickstart.ts";
import { CATEGORIES } from "./world.ts";

const SEEDS = [0, 1, 2, 3, 4];
const RUNS = fileURLToPath(new URL("../../runs/quickstart-seeds", import.meta.url));
const RESULTS = fileURLToPath(new URL("../../bench/results", import.meta.url));

interface SeedResult {
  readonly seed: number;
  readonly report: EvaluationReport;
}

const percent = (share: number | null | undefined): string =>
  typeof share === "number" ? (100 * share).toFixed(1) : "–";

function modelOf({ report }: SeedResult, name: string): ModelReport {
  const model = report.models.find((one) => one.name === name);
  if (model === undefined) throw new Error(`the report has no model ${name}`);
  return model;
}

/** What is kept of a model: its means by metric with intervals, and how it differs from SFT. */
function summaryOf({ metrics, categories, diversity, comparison }: ModelReport): object {
  return {
    metrics,
    right: Object.fromEntries(Object.entries(categories).map(([name, { right }]) => [name, right])),
    distinct2: diversity.distinct2,
    differenceFromSft: comparison?.differences.right ?? null,
    winRate: comparison?.winRates.right ?? null,
  };
}

function row(cells: readonly string[]): string {
  return `| ${cells.join(" | ")} |`;
}

/** "71.9 [67.0, 76.3]", in percent. */
function withInterval(
  estimate: { mean: number; low: number | null; high: number | null } | undefined,
): string {
  if (estimate === undefined) return "–";
  return `${percent(estimate.mean)} [${percent(estimate.low)}, ${percent(estimate.high)}]`;
}

function answerTable(results: readonly SeedResult[]): string[] {
  const gain = (result: SeedResult, name: string): string =>
    `${withInterval(modelOf(result, name).metrics.right)}; +${withInterval(modelOf(result, name).comparison?.differences.right)}`;
  return [
    row(["seed", "pretrained", "SFT", "DPO; above SFT", "PPO; above SFT"]),
    "|---|---|---|---|---|",
    ...results.map((result) =>
      row([
        String(result.seed),
        percent(modelOf(result, "base").metrics.right?.mean),
        withInterval(modelOf(result, "sft").metrics.right),
        gain(result, "dpo"),
        gain(result, "ppo"),
      ]),
    ),
  ];
}

function categoryTable(results: readonly SeedResult[]): string[] {
  const models = ["sft", "dpo", "ppo"];
  return [
    row(["seed", ...CATEGORIES.flatMap((category) => [`${category}: SFT / DPO / PPO`, "reward model"])]),
    `|${"---|".repeat(1 + 2 * CATEGORIES.length)}`,
    ...results.map((result) =>
      row([
        String(result.seed),
        ...CATEGORIES.flatMap((category) => [
          models.map((name) => percent(modelOf(result, name).categories[category]?.right?.mean)).join(" / "),
          percent(result.report.rewardAccuracy.reward?.categories[category]?.mean),
        ]),
      ]),
    ),
  ];
}

function checkTable(results: readonly SeedResult[]): string[] {
  const names = results[0]?.report.checks ?? [];
  return [
    row(["check", "required", ...results.map(({ seed }) => `seed ${seed}`), "holds in"]),
    `|${"---|".repeat(3 + results.length)}`,
    ...names.map(({ name, requirement }) => {
      const found = results.map(({ report }) => report.checks.find((check) => check.name === name));
      const figures = found.map((check) => {
        const figure = typeof check?.figure === "number" ? String(Number(check.figure.toPrecision(3))) : "–";
        return check?.holds ? figure : `**${figure}**`;
      });
      const held = found.filter((check) => check?.holds).length;
      return row([name, requirement, ...figures, `${held} of ${results.length}`]);
    }),
  ];
}

function write(results: readonly SeedResult[]): void {
  const file = {
    what: "examples/quickstart/seeds.ts: the quickstart with several seeds, measured on phrasings that nothing was trained or chosen on",
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    seeds: results.map(({ seed, report }) => ({
      seed,
      settings: report.settings,
      checks: report.checks,
      rewardAccuracy: report.rewardAccuracy,
      models: Object.fromEntries(report.models.map((model) => [model.name, summaryOf(model)])),
    })),
  };
  mkdirSync(RESULTS, { recursive: true });
  writeFileSync(join(RESULTS, "quickstart-seeds.json"), `${JSON.stringify(file, null, 1)}\n`);
}

async function run(signal: AbortSignal): Promise<void> {
  const given = process.argv.slice(2).map(Number);
  if (given.some((seed) => !Number.isSafeInteger(seed) || seed < 0))
    throw new Error(`seeds are integers of at least 0, got ${process.argv.slice(2).join(" ")}`);
  const results: SeedResult[] = [];
  for (const seed of given.length > 0 ? given : SEEDS) {
    process.stderr.write(`seed ${seed}\n`);
    const directory = join(RUNS, String(seed));
    results.push({ seed, report: await quickstart({ directory, seed, signal }) });
  }
  write(results);
  const tables = [answerTable(results), categoryTable(results), checkTable(results)];
  process.stdout.write(`${tables.map((table) => table.join("\n")).join("\n\n")}\n`);
}

withInterrupt(run).catch((error: unknown) => {
  process.stderr.write(`quickstart seeds: ${describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
});
