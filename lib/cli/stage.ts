import type { Command } from "commander";
import {
  defaultMemoryBudget,
  formatBytes,
  MEMORY_USES,
  type MemoryBudget,
  type MemoryBytes,
  toMemoryBudget,
  totalBytes,
} from "../engine/memory.ts";
import type { TrainingKind, TrainingStage } from "../pipeline/schema.ts";
import { readStage } from "../pipeline/settings-file.ts";
import { addStageFlags, stageFlags } from "./flags.ts";
import { withInterrupt } from "./interrupt.ts";

const DESCRIPTIONS: Readonly<Record<TrainingKind, string>> = {
  sft: "fine-tune a model on prompts and responses",
  reward: "train a reward model on preference pairs",
  ppo: "align a model with PPO against a reward model or function",
  grpo: "align a model by comparing answers to one prompt (GRPO, DAPO, Dr. GRPO, GSPO, CISPO)",
  rloo: "align a model by comparing each answer with the others to its prompt (RLOO)",
  dpo: "align a model with preference pairs directly (DPO and its kin)",
  kto: "align a model with answers judged good or bad (KTO)",
  orpo: "align a model with preference pairs by odds ratios, without a reference (ORPO)",
  cpo: "align a model with preference pairs by contrast, without a reference (CPO)",
  simpo: "align a model with preference pairs by mean log-probs, without a reference (SimPO)",
};

/** A line for each use, the sum, and the budget. */
function describeEstimate(bytes: MemoryBytes, memoryBudget: MemoryBudget | undefined): string {
  const budget = memoryBudget === undefined ? defaultMemoryBudget() : toMemoryBudget(memoryBudget);
  const uses = MEMORY_USES.filter((use) => bytes[use] > 0).map((use) => [use, bytes[use]] as const);
  const rows = [...uses, ["total", totalBytes(bytes)] as const, ["budget", budget] as const];
  return rows.map(([name, value]) => `${name.padEnd(14)}${formatBytes(value).padStart(10)}\n`).join("");
}

/** `sft`, `reward`, `ppo`, `dpo`, …: one stage, from flags, a YAML file of the stage's keys, or both. */
export function addStageCommand(program: Command, kind: TrainingKind): void {
  const command = program
    .command(kind)
    .description(DESCRIPTIONS[kind])
    .option("--config <file>", "YAML file with settings of this stage; flags win over it")
    .option("--force", "run also when the results are complete", false)
    .option("--estimate", "print the memory that the stage would take, and stop", false);
  addStageFlags(command, kind);
  command.action(async (options: { config?: string; force: boolean; estimate: boolean }) => {
    const stage = (await readStage(kind, options.config, stageFlags(command, kind))) as TrainingStage;
    const { estimateStage, runPipeline } = await import("../pipeline/run.ts");
    if (options.estimate) {
      const { bytes } = await estimateStage(stage);
      process.stdout.write(describeEstimate(bytes, stage.settings.memory_budget));
      return;
    }
    const again = `node-rlhf ${process.argv.slice(2).join(" ")}`;
    await withInterrupt((signal) => runPipeline([stage], { signal, force: options.force, again }));
  });
}
