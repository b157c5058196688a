import type { Command } from "commander";
import { withInterrupt } from "./interrupt.ts";
import { writeJsonLines } from "./json-lines.ts";
import { measureFile } from "./measure.ts";
import { type MeasureOptions, measureOptions } from "./options.ts";

/** `score`: the reward of sequences under a reward model. */
export function addScoreCommand(program: Command): void {
  const command = program
    .command("score")
    .description(
      "write {tokens, reward} for each sequence; {prompt, response} rows end in the end-of-sequence token",
    );
  for (const option of measureOptions()) command.addOption(option);
  command.action((options: MeasureOptions) => withInterrupt((signal) => score(options, signal)));
}

async function score(options: MeasureOptions, signal: AbortSignal): Promise<void> {
  const { RewardModel } = await import("../model/reward-model.ts");
  const { device, threads } = options;
  using reward = await RewardModel.load(options.model, { device, threads });
  const measure = async (sequences: readonly Int32Array[]): Promise<number[]> => [
    ...(await reward.score([...sequences])),
  ];
  await writeJsonLines(options.output, toRows(measureFile(options, true, signal, measure)));
}

async function* toRows(
  measured: AsyncIterable<{ tokens: Int32Array; result: number }>,
): AsyncGenerator<object> {
  for await (const { tokens, result } of measured) yield { tokens: [...tokens], reward: result };
}
