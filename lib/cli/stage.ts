import type { Command } from "commander";
import { formatBytes, MEMORY_USES } from "../engine/memory.ts";
import type { StageEstimate } from "../pipeline/run.ts";
import type { EstimatedStage, Stage, StageKind } from "../pipeline/schema.ts";
import { readStage } from "../pipeline/settings-file.ts";
import { addStageFlags, stageFlags } from "./flags.ts";
import { quoted, withInterrupt } from "./interrupt.ts";

/** The stages that have a command of this form. */
type CommandKind = Exclude<StageKind, "evaluate">;

const DESCRIPTIONS: Readonly<Record<CommandKind, string>> = {
  init: "make a model with random weights and a tokenizer trained on data",
  sft: "fine-tune a model on prompts and responses",
  reward: "train a reward model on preference pairs",
  ppo: "align a model with PPO against a reward model or function",
  grpo: "align a model by comparing answers to one prompt (GRPO, DAPO, Dr. GRPO, GSPO, CISPO)",
  rloo: "align a model by comparing each answer with the others to its prompt (RLOO)",
  "reinforce-plus-plus": "align a model by policy gradients without a value function (REINFORCE++)",
  dpo: "align a model with preference pairs directly (DPO and its kin)",
  kto: "align a model with answers judged good or bad (KTO)",
  orpo: "align a model with preference pairs by odds ratios, without a reference (ORPO)",
  cpo: "align a model with preference pairs by contrast, without a reference (CPO)",
  simpo: "align a model with preference pairs by mean log-probs, without a reference (SimPO)",
  "feature-reward": "train a reward model on feature vectors",
  "environment-ppo": "learn a control task with PPO",
};

/** A line for each use, the most that is held at once, and the budget. */
function describeEstimate({ bytes, total, budget }: StageEstimate): string {
  const uses = MEMORY_USES.filter((use) => bytes[use] > 0).map((use) => [use, bytes[use]] as const);
  const rows = [...uses, ["total", total] as const, ["budget", budget] as const];
  return rows.map(([name, value]) => `${name.padEnd(14)}${formatBytes(value).padStart(10)}\n`).join("");
}

function stageCommand(program: Command, kind: CommandKind): Command {
  const command = program
    .command(kind)
    .description(DESCRIPTIONS[kind])
    .option("--config <file>", "YAML file with settings of this stage; flags win over it")
    .option("--force", "run also when the results are complete", false);
  addStageFlags(command, kind);
  return command;
}

/** The command line that goes on with an interrupted stage, for a shell; --force would begin it anew. */
function commandToGoOn(words: readonly string[]): string {
  return ["node-rlhf", ...words.filter((word) => word !== "--force").map(quoted)].join(" ");
}

async function runOne(stage: Stage, force: boolean): Promise<void> {
  const { runPipeline } = await import("../pipeline/run.ts");
  const again = commandToGoOn(process.argv.slice(2));
  await withInterrupt((signal) => runPipeline([stage], { signal, force, again }));
}

/** `sft`, `reward`, `ppo`, `dpo`, …: one stage, from flags, a YAML file of the stage's keys, or both. */
export function addStageCommand(program: Command, kind: EstimatedStage["kind"]): void {
  const command = stageCommand(program, kind).option(
    "--estimate",
    "print the memory that the stage would take, and stop",
    false,
  );
  command.action(async (options: { config?: string; force: boolean; estimate: boolean }) => {
    const stage = (await readStage(kind, options.config, stageFlags(command, kind))) as EstimatedStage;
    if (!options.estimate) return await runOne(stage, options.force);
    const { estimateStage } = await import("../pipeline/run.ts");
    process.stdout.write(describeEstimate(await estimateStage(stage)));
  });
}

/** `init`: the same without an estimate, for a stage that makes a model and trains none. */
export function addInitCommand(program: Command): void {
  const command = stageCommand(program, "init");
  command.action(async (options: { config?: string; force: boolean }) => {
    await runOne(await readStage("init", options.config, stageFlags(command, "init")), options.force);
  });
}
