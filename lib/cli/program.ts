import { Command, CommanderError, type OutputConfiguration } from "commander";
import { packageVersion } from "../package-root.ts";
import { trainingKinds } from "../pipeline/schema.ts";
import { addAddTokensCommand } from "./add-tokens.ts";
import { addChatCommand } from "./chat.ts";
import { addDoctorCommand } from "./doctor.ts";
import { addEvaluateCommand } from "./evaluate.ts";
import { describeError, EXIT, exitCodeOf } from "./exit.ts";
import { addGenerateCommand } from "./generate.ts";
import { addInspectDataCommand } from "./inspect-data.ts";
import { addLogprobsCommand } from "./logprobs.ts";
import { addMergeCommand } from "./merge.ts";
import { addRunCommand } from "./run.ts";
import { addScoreCommand } from "./score.ts";
import { addInitCommand, addStageCommand } from "./stage.ts";

/** All commands of the command line. */
export function createProgram(output: OutputConfiguration = {}): Command {
  const program = new Command("node-rlhf")
    .description("Reinforcement learning from human feedback for language models")
    .version(packageVersion())
    .configureOutput(output)
    .showSuggestionAfterError()
    .exitOverride();
  addRunCommand(program);
  addInitCommand(program);
  for (const kind of trainingKinds) addStageCommand(program, kind);
  addStageCommand(program, "feature-reward");
  addStageCommand(program, "environment-ppo");
  addGenerateCommand(program);
  addChatCommand(program);
  addLogprobsCommand(program);
  addScoreCommand(program);
  addEvaluateCommand(program);
  addInspectDataCommand(program);
  addAddTokensCommand(program);
  addMergeCommand(program);
  addDoctorCommand(program);
  return program;
}

/**
 * Runs the command line and returns its exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
 *
 * @param words the arguments after the program's name
 * @param tell takes what goes wrong; default: stderr
 */
export async function main(
  words: readonly string[],
  tell: (text: string) => void = (text) => void process.stderr.write(text),
): Promise<number> {
  try {
    await createProgram({ writeErr: tell }).parseAsync([...words], { from: "user" });
    return EXIT.done;
  } catch (error) {
    // commander has already written its message, or the help that was asked for.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    tell(`node-rlhf: ${describeError(error)}\n`);
    return exitCodeOf(error);
  }
}
