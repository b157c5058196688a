import { join } from "node:path";
import type { Command } from "commander";
import { formatEstimate, formatNumber, formatRate } from "../evaluation/report.ts";
import type { EvaluationSettings } from "../pipeline/evaluation-schema.ts";
import { readStage } from "../pipeline/settings-file.ts";
import { addStageFlags, stageFlags } from "./flags.ts";
import { withInterrupt } from "./interrupt.ts";

/** `evaluate`: several models on the same prompts; writes report.json, report.md and report.html. */
export function addEvaluateCommand(program: Command): void {
  const command = program
    .command("evaluate")
    .description("compare models on the same prompts and write a report")
    .option("--config <file>", "YAML file with these settings; flags win over it");
  addStageFlags(command, "evaluate");
  command.action((options: { config?: string }) =>
    withInterrupt(async (signal) => {
      const stage = await readStage("evaluate", options.config, stageFlags(command, "evaluate"));
      const settings = stage.settings as EvaluationSettings;
      const { runEvaluation } = await import("../pipeline/evaluation-stage.ts");
      const note = (text: string): void => void process.stderr.write(`${text}\n`);
      const report = await runEvaluation(settings, { signal, note });
      for (const { name, metrics, comparison } of report.models) {
        process.stdout.write(`${name}\n`);
        for (const [metric, estimate] of Object.entries(metrics))
          process.stdout.write(`  ${metric.padEnd(20)}${formatEstimate(estimate)}\n`);
        for (const [judge, win] of Object.entries(comparison?.winRates ?? {}))
          process.stdout.write(`  ${`wins by ${judge}`.padEnd(20)}${formatRate(win)}\n`);
      }
      for (const { name, figure, requirement, holds } of report.checks)
        process.stdout.write(
          `${holds ? "holds" : "FAILS"}  ${name}: ${figure === null ? "–" : formatNumber(figure)} (${requirement})\n`,
        );
      process.stdout.write(`${join(settings.output_dir, "report.html")}\n`);
    }),
  );
}
