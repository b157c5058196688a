import type { Command } from "commander";
import { readPipeline } from "../pipeline/settings-file.ts";
import { quoted, withInterrupt } from "./interrupt.ts";

/** `run pipeline.yaml`: all stages in order. */
export function addRunCommand(program: Command): void {
  program
    .command("run")
    .description("run the stages of a pipeline file; complete ones are skipped, an interrupted one goes on")
    .argument("<pipeline.yaml>", "the pipeline file")
    .option("--force", "run all stages again, also complete ones", false)
    .action(async (file: string, options: { force: boolean }) => {
      const stages = await readPipeline(file);
      const { runPipeline } = await import("../pipeline/run.ts");
      const again = `node-rlhf run ${quoted(file)}`;
      await withInterrupt((signal) => runPipeline(stages, { signal, force: options.force, again }));
    });
}
