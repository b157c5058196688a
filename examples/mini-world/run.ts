/**
 * Makes the mini-world's data in runs/mini-world, runs pipeline.yaml on it, and measures every policy on phrasings that training
 * never showed; the figures go to runs/mini-world/measurements.json. Run again, it skips the stages that are complete.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import { formatDuration } from "../../lib/monitor/format.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { heldOutPairs, heldOutPrompts, writeData } from "./make-data.ts";
import { type Measurement, measure, rewardAccuracy } from "./measure.ts";
import { CATEGORIES } from "./world.ts";

const ANSWERS_PER_PROMPT = 4;
const SEED = 1;
const POLICIES = ["pretrain", "sft", "dpo", "ppo"] as const;

const here = fileURLToPath(new URL(".", import.meta.url));
const runs = fileURLToPath(new URL("../../runs/mini-world", import.meta.url));

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

function row(name: string, cells: readonly string[]): string {
  return `  ${name.padEnd(32)}${cells.map((cell) => cell.padStart(10)).join("")}`;
}

function tableOf(measured: Readonly<Record<string, Measurement>>): string[] {
  const all = Object.values(measured);
  const line = (name: string, cell: (one: Measurement) => string): string => row(name, all.map(cell));
  return [
    row("", Object.keys(measured)),
    ...CATEGORIES.map((category) => line(`${category} (right answers)`, (one) => percent(one[category]))),
    line("mean of the three", ({ overall }) => percent(overall)),
    line("reward", ({ reward }) => reward.toFixed(2)),
    line("KL per answer from SFT (nats)", ({ kl }) => kl.toFixed(2)),
    line("distinct-2", ({ distinct2 }) => distinct2.toFixed(4)),
    line("tokens per answer", ({ length }) => length.toFixed(1)),
  ];
}

async function run(signal: AbortSignal): Promise<void> {
  const began = performance.now();
  writeData(join(runs, "data"));
  const stages = await readPipeline(join(here, "pipeline.yaml"));
  await runPipeline(stages, { signal, again: "npx tsx examples/mini-world/run.ts" });
  const [sft, reward] = [join(runs, "sft"), join(runs, "reward")];
  const measured: Record<string, Measurement> = {};
  for (const name of POLICIES) {
    const options = { prompts: heldOutPrompts(), answersPerPrompt: ANSWERS_PER_PROMPT, seed: SEED };
    measured[name] = await measure({ ...options, policy: join(runs, name), sft, reward });
  }
  const accuracy = await rewardAccuracy(reward, heldOutPairs());
  const file = join(runs, "measurements.json");
  writeFileSync(file, `${JSON.stringify({ rewardAccuracy: accuracy, policies: measured }, null, 2)}\n`);
  const lines = [
    "",
    `Answers to ${heldOutPrompts().length} questions in held-out phrasings, ${ANSWERS_PER_PROMPT} each, graded by program`,
    ...tableOf(measured),
    "",
    "Held-out pairs that the reward model orders rightly",
    ...CATEGORIES.map((category) => row(category, [percent(accuracy[category])])),
    "",
    `Done in ${formatDuration((performance.now() - began) / 1000)}. Every answer is in ${file}`,
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

withInterrupt(run).catch((error: unknown) => {
  process.stderr.write(`mini-world: ${describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
});
