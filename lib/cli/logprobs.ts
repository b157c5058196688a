import type { Command } from "commander";
import { withInterrupt } from "./interrupt.ts";
import { writeJsonLines } from "./json-lines.ts";
import { measureSequences, readSequences } from "./measure.ts";
import { adapterOption, type MeasureOptions, measureOptions, number, openModel } from "./options.ts";

type LogprobsOptions = MeasureOptions & { readonly temperature: number; readonly adapter?: string };

/** `logprobs`: the log-probability of every token of sequences under a model. */
export function addLogprobsCommand(program: Command): void {
  const command = program
    .command("logprobs")
    .description("write {tokens, logProbs} for each sequence: one value per token, 0 for the first")
    .option("--temperature <t>", "divides the logits", number(1e-6), 1);
  for (const option of [...measureOptions(), adapterOption()]) command.addOption(option);
  command.action((options: LogprobsOptions) => withInterrupt((signal) => logprobs(options, signal)));
}

async function logprobs(options: LogprobsOptions, signal: AbortSignal): Promise<void> {
  const { packSequences } = await import("../model/batch.ts");
  const { temperature } = options;
  const { model, adapter } = await openModel(options);
  using _model = model;
  const measure = async (sequences: readonly Int32Array[]): Promise<Float32Array[]> => {
    const batch = packSequences(sequences.map((tokens) => ({ tokens, promptLength: 1 })));
    using pass = await model.forward(batch, { temperature, adapter });
    const logProb = await pass.logProb();
    return sequences.map((_, index) => logProb.subarray(batch.offsets[index], batch.offsets[index + 1]));
  };
  const sequences = await readSequences(options, model);
  const measured = measureSequences(sequences, options.microBatchTokens, signal, measure);
  await writeJsonLines(options.output, toRows(measured));
}

async function* toRows(
  measured: AsyncIterable<{ tokens: Int32Array; result: Float32Array }>,
): AsyncGenerator<object> {
  for await (const { tokens, result } of measured) yield { tokens: [...tokens], logProbs: [...result] };
}
