import { Command } from "commander";
import type { InspectSettings } from "../pipeline/inspect-stage.ts";
import { type TrainingKind, trainingKinds } from "../pipeline/schema.ts";
import { readPartialStage } from "../pipeline/settings-file.ts";
import { addStageFlags, stageFlags } from "./flags.ts";
import { describeInspection } from "./inspection-text.ts";
import { integer } from "./options.ts";

interface InspectCommandOptions {
  readonly config?: string;
  readonly rows: number;
  readonly random: boolean;
  readonly tokens: boolean;
  readonly json: boolean;
  readonly color?: boolean;
}

/** `inspect-data <stage>`: what a stage's trainer sees of its data. */
export function addInspectDataCommand(program: Command): void {
  const command = program
    .command("inspect-data")
    .description(
      "show what a stage's trainer sees: tokens, what is learnt, lengths, what was left out and why",
    );
  for (const kind of trainingKinds) command.addCommand(inspectCommand(kind));
}

function inspectCommand(kind: TrainingKind): Command {
  const command = new Command(kind)
    .description(`the data of a ${kind} stage; takes the flags and the YAML file of node-rlhf ${kind}`)
    .option("--config <file>", "YAML file with settings of this stage; flags win over it")
    .option("--rows <n>", "examples to show", integer(0), 3)
    .option("--random", "shows examples drawn at random, in place of the first ones", false)
    .option("--tokens", "lists every token with its id and whether it is learnt", false)
    .option("--json", "writes one JSON object", false)
    .option("--color", "colours what is learnt also where the output is no terminal")
    .option("--no-color", "marks what is learnt by brackets");
  addStageFlags(command, kind);
  command.action(async (options: InspectCommandOptions) => {
    const settings = await readPartialStage(kind, options.config, stageFlags(command, kind));
    const { inspectStage } = await import("../pipeline/inspect-stage.ts");
    const inspection = await inspectStage(kind, settings as InspectSettings, {
      examples: options.rows,
      random: options.random,
    });
    const color = options.color ?? (process.stdout.isTTY === true && !process.env.NO_COLOR);
    const text = options.json
      ? `${JSON.stringify(inspection)}\n`
      : describeInspection(inspection, { color, tokens: options.tokens });
    process.stdout.write(text);
  });
  return command;
}
