/**
 * The quickstart: runs pipeline.yaml (fine-tuning, reward model, PPO) on the data beside it and prints what changed. Run again,
 * it skips what is complete; delete runs/quickstart to start afresh.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import { formatDuration } from "../../lib/monitor/format.ts";
import { runPipeline, type StageResult } from "../../lib/pipeline/run.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { type PolicyReport, reportPolicy } from "./compare.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const ANSWERS_PER_PROMPT = 8;
const SHOWN_PROMPTS = 5;

function resultOf(results: readonly StageResult[], kind: StageResult["kind"]): StageResult {
  const result = results.find((candidate) => candidate.kind === kind);
  if (result === undefined) throw new Error(`pipeline.yaml has no ${kind} stage`);
  return result;
}

function summaryLines(results: readonly StageResult[]): string[] {
  return results.flatMap(({ kind, summary }) => [
    `${kind}`,
    ...Object.entries(summary).map(([name, value]) => `  ${name.padEnd(34)}${value.toFixed(3).padStart(8)}`),
  ]);
}

function comparisonLines(before: PolicyReport, after: PolicyReport): string[] {
  const percent = (value: number): string => `${(100 * value).toFixed(0)} %`;
  const line = (name: string, a: string, b: string): string =>
    `  ${name.padEnd(34)}${a.padStart(8)}${b.padStart(10)}`;
  return [
    line("", "SFT", "PPO"),
    line("mean reward", before.meanReward.toFixed(2), after.meanReward.toFixed(2)),
    line("KL per answer from SFT (nats)", before.kl.toFixed(2), after.kl.toFixed(2)),
    line("right answers", percent(before.right), percent(after.right)),
    line("kind answers", percent(before.kind), percent(after.kind)),
    line("rude answers", percent(before.rude), percent(after.rude)),
  ];
}

function sampleLines(before: PolicyReport, after: PolicyReport): string[] {
  return Array.from({ length: SHOWN_PROMPTS }, (_, shown) => {
    const index = shown * ANSWERS_PER_PROMPT;
    const [first, second] = [before.answers[index], after.answers[index]];
    if (first === undefined || second === undefined) return [];
    const told = (name: string, answer: typeof first): string =>
      `    ${name} (${answer.reward.toFixed(2).padStart(5)})${answer.text}`;
    return [`  ${first.prompt.split("\n")[0]}`, told("SFT", first), told("PPO", second)];
  }).flat();
}

async function quickstart(signal: AbortSignal): Promise<void> {
  const began = performance.now();
  const stages = await readPipeline(join(here, "pipeline.yaml"));
  const results = await runPipeline(stages, { signal, again: "npm run quickstart" });
  const sft = resultOf(results, "sft").outputDir;
  const reward = resultOf(results, "reward").outputDir;
  const ppo = resultOf(results, "ppo").outputDir;
  const prompts = (await loadPrompts(join(here, "data/held-out-prompts.jsonl"))).map((row) => row.prompt);
  const before = await reportPolicy(sft, sft, reward, prompts, ANSWERS_PER_PROMPT);
  const after = await reportPolicy(ppo, sft, reward, prompts, ANSWERS_PER_PROMPT);
  const lines = [
    "",
    "What the stages achieved",
    ...summaryLines(results),
    "",
    `What PPO changed, on ${prompts.length} prompts it was not trained on, ${ANSWERS_PER_PROMPT} answers each`,
    ...comparisonLines(before, after),
    "",
    "Answers side by side, with their rewards",
    ...sampleLines(before, after),
    "",
    `Done in ${formatDuration((performance.now() - began) / 1000)}. The models are in runs/quickstart; try:`,
    "  npx node-rlhf generate --model runs/quickstart/ppo --prompt $'Question: My dog is tired. What can I do?\\nAnswer:'",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

withInterrupt(quickstart).catch((error: unknown) => {
  process.stderr.write(`quickstart: ${describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
});
