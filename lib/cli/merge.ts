import { stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { type Command, Option } from "commander";
import { RlhfError } from "../errors.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type ModelOptions, modelOptions } from "./options.ts";

interface MergeOptions extends ModelOptions {
  readonly adapter: string;
  readonly outputDir: string;
}

/** `merge`: a base model and a PEFT adapter as one model directory. */
export function addMergeCommand(program: Command): void {
  const command = program
    .command("merge")
    .description("add an adapter to its base model's weights and write the result as a model of its own");
  for (const option of modelOptions()) command.addOption(option);
  command
    .addOption(
      new Option(
        "--adapter <directory>",
        "PEFT directory: adapter_config.json and adapter_model.safetensors",
      ).makeOptionMandatory(),
    )
    .addOption(new Option("--output-dir <directory>", "where the merged model goes").makeOptionMandatory())
    .action((options: MergeOptions) => merge(options));
}

const NAME = "adapter";

async function merge(options: MergeOptions): Promise<void> {
  const { model: base, adapter, outputDir, device, threads } = options;
  for (const [flag, directory] of Object.entries({ "--model": base, "--adapter": adapter }))
    if (resolve(directory) === resolve(outputDir))
      throw new RlhfError(
        "ERR_RLHF_USAGE",
        `merge: --output-dir is the directory of ${flag}, which it would write over; name another one`,
      );
  const { CausalLM } = await import("../model/causal-lm.ts");
  const { RewardModel } = await import("../model/reward-model.ts");
  const { readPeftDirectory } = await import("../model/peft.ts");
  const { score } = await readPeftDirectory(adapter);
  using model = await CausalLM.load(base, { device, threads });
  if (score) {
    using reward = await RewardModel.load(adapter, { backbone: model });
    await reward.save(outputDir);
  } else {
    await model.loadAdapter(NAME, adapter);
    await model.save(outputDir, { merge: NAME });
  }
  await saveTokenizer([adapter, base], outputDir);
}

/** The adapter's tokenizer where training saved one, else the base's; none where there is none. */
async function saveTokenizer(sources: readonly string[], outputDir: string): Promise<void> {
  for (const source of sources) {
    const found = await stat(join(source, "tokenizer.json")).catch(() => null);
    if (found) return (await Tokenizer.load(source)).save(outputDir);
  }
}
