import type { SftRow } from "../data/types.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type SFTConfig, SFTTrainer } from "../trainers/sft.ts";
import { initModel } from "./init-model.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { SftStage } from "./schema.ts";
import { describeTokenized, loadOptions, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { sftData } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** Fine-tunes a model on prompts and responses and saves it in the stage's output directory. */
export async function runSftStage(settings: SftStage, context: StageContext): Promise<StageSummary> {
  const data = await sftData(settings, context.log);
  const { model, tokenizer } = await openModel(settings, data.train);
  using _model = model;
  using trainer = new SFTTrainer({
    model,
    tokenizer,
    trainData: data.train,
    evalData: data.eval,
    config: { maxSteps: stepsOfEpochs(settings), ...trainerConfig<SftStage, SFTConfig>(settings) },
    outputDir: settings.output_dir,
  });
  context.log(`  ${describeTokenized(trainer.tokenized)}`);
  const comparison = await trainAndCompare(trainer, context);
  await trainer.save(settings.output_dir);
  return beforeAndAfter(comparison, "eval/loss");
}

async function openModel(
  settings: SftStage,
  rows: readonly SftRow[],
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  const options = loadOptions(settings);
  if (settings.init) return initModel(settings.init, rows, { ...options, seed: settings.seed ?? 0 });
  const directory = settings.model_path as string;
  return { tokenizer: await Tokenizer.load(directory), model: await CausalLM.load(directory, options) };
}
