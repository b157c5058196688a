/** The report of the quickstart as lines of text. */
import { formatNumber } from "../../lib/evaluation/report.ts";
import type { EvaluationReport, ModelReport } from "../../lib/index.ts";
import { CATEGORIES } from "./world.ts";

const SHOWN_PROMPTS = 6;

const percent = (share: number | undefined): string =>
  share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;

const decimals = (value: number | undefined, digits: number): string => value?.toFixed(digits) ?? "–";

/** Every model's means. */
export function modelLines({ models }: EvaluationReport): string[] {
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

/** Every check, also those that do not hold. */
export function checkLines({ checks }: EvaluationReport): string[] {
  return checks.map(({ name, figure, requirement, holds }) => {
    const measured = figure === null ? "–" : formatNumber(figure);
    return `  ${holds ? "holds" : "FAILS"}  ${name.padEnd(78)}${measured.padStart(9)}  (${requirement})`;
  });
}

/** Answers to some prompts side by side. */
export function sampleLines({ samples }: EvaluationReport): string[] {
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
