/**
 * `npm run quickstart`: makes the world's data in runs/quickstart, runs pipeline.yaml on it, and prints what the report shows. Run
 * again, it skips the stages that are complete; delete runs/quickstart to start afresh.
 */
import { join, relative } from "node:path";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import { formatNumber } from "../../lib/evaluation/report.ts";
import type { EvaluationReport, ModelReport } from "../../lib/index.ts";
import { formatDuration } from "../../lib/monitor/format.ts";
import { quickstart, RUNS } from "./quickstart.ts";
import { CATEGORIES } from "./world.ts";

const SHOWN_PROMPTS = 6;

const percent = (share: number | undefined): string =>
  share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;

const decimals = (value: number | undefined, digits: number): string => value?.toFixed(digits) ?? "–";

function modelLines({ models }: EvaluationReport): string[] {
  const line = (name: string, cell: (model: ModelReport) => string): string =>
    `  ${name.padEnd(34)}${models.map((model) => cell(model).padStart(10)).join("")}`;
  return [
    line("", ({ name }) => name),
    ...CATEGORIES.map((category) =>
      line(`right answers, ${category}`, ({ categories }) => percent(categories[category]?.right?.mean)),
    ),
    line("right answers, all", ({ metrics }) => percent(metrics.right?.mean)),
    line("reward", ({ metrics }) => decimals(metrics.reward?.mean, 2)),
    line("KL per answer from SFT, nats", ({ metrics }) => decimals(metrics.kl?.mean, 2)),
    line("distinct-2", ({ diversity }) => decimals(diversity.distinct2, 4)),
    line("tokens per answer", ({ metrics }) => decimals(metrics.length?.mean, 1)),
  ];
}

function checkLines({ checks }: EvaluationReport): string[] {
  return checks.map(({ name, figure, requirement, holds }) => {
    const measured = figure === null ? "–" : formatNumber(figure);
    return `  ${holds ? "holds" : "FAILS"}  ${name.padEnd(78)}${measured.padStart(9)}  (${requirement})`;
  });
}

function sampleLines({ samples }: EvaluationReport): string[] {
  return samples
    .slice(0, SHOWN_PROMPTS)
    .flatMap(({ prompt, answers }) => [
      `  ${prompt.split("\n")[0]}`,
      ...Object.entries(answers).map(
        ([name, { response, metrics }]) =>
          `    ${name.padEnd(5)}${metrics.right === 1 ? "right" : "wrong"} ${response.replaceAll("\n", "⏎")}`,
      ),
    ]);
}

async function run(signal: AbortSignal): Promise<void> {
  const began = performance.now();
  const report = await quickstart({ directory: RUNS, seed: 0, signal, again: "npm run quickstart" });
  const { prompts, answersPerPrompt } = report.settings;
  const held = report.checks.filter(({ holds }) => holds).length;
  const place = relative(process.cwd(), join(RUNS, "evaluation"));
  const lines = [
    "",
    `${prompts} questions in phrasings that nothing was trained or chosen on, ${answersPerPrompt} answers each, graded by program`,
    ...modelLines(report),
    "",
    "Answers side by side",
    ...sampleLines(report),
    "",
    `Checks: ${held} of ${report.checks.length} hold`,
    ...checkLines(report),
    "",
    `Done in ${formatDuration((performance.now() - began) / 1000)}. ${place} holds report.html (with curves), report.md and report.json; try:`,
    "  npx node-rlhf generate --model runs/quickstart/ppo --prompt $'Question: Where does Mira live?\\nAnswer:'",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

withInterrupt(run).catch((error: unknown) => {
  process.stderr.write(`quickstart: ${describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
});
