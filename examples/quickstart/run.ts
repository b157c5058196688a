/**
 * `npm run quickstart`: makes the world's data in runs/quickstart, runs pipeline.yaml on it, and prints what the report shows. Run
 * again, it skips the stages that are complete; delete runs/quickstart to start afresh.
 */
import { join, relative } from "node:path";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import { formatDuration } from "../../lib/monitor/format.ts";
import { checkLines, modelLines, sampleLines } from "./print.ts";
import { quickstart, RUNS } from "./quickstart.ts";

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
