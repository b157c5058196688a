/**
 * Splits HH-RLHF's pairs (make-data.ts) and runs pipeline.yaml on them: fine-tuning, reward models, DPO, PPO, evaluation. Interrupted
 * and run again, it goes on where it was.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describeError, exitCodeOf } from "../../lib/cli/exit.ts";
import { withInterrupt } from "../../lib/cli/interrupt.ts";
import { formatDuration } from "../../lib/monitor/format.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { readPipeline } from "../../lib/pipeline/settings-file.ts";
import { writeData } from "./make-data.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const runs = fileURLToPath(new URL("../../runs/hh-rlhf", import.meta.url));

async function run(signal: AbortSignal): Promise<void> {
  const began = performance.now();
  await writeData(join(runs, "data"));
  const stages = await readPipeline(join(here, "pipeline.yaml"));
  const results = await runPipeline(stages, { signal, again: "npx tsx examples/hh-rlhf/run.ts" });
  const lines = results.flatMap(({ kind, outputDir, summary }) => [
    "",
    `${kind}: ${outputDir}`,
    ...Object.entries(summary).map(([name, value]) => `  ${name.padEnd(40)}${value.toFixed(3).padStart(9)}`),
  ]);
  const seconds = (performance.now() - began) / 1000;
  lines.push("", `Done in ${formatDuration(seconds)}. Open ${join(runs, "evaluation/report.html")}`);
  process.stdout.write(`${lines.join("\n")}\n`);
}

withInterrupt(run).catch((error: unknown) => {
  process.stderr.write(`hh-rlhf: ${describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
});
