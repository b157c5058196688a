import { rm } from "node:fs/promises";
import { TokenDataset } from "../data/token-dataset.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { fittingMaxLength } from "../trainers/settings.ts";
import { type SFTConfig, SFTTrainer } from "../trainers/sft.ts";
import { initModel } from "./init-model.ts";
import type { StageSummary } from "./manifest.ts";
import { openPolicy, savePolicy } from "./policy-model.ts";
import type { StageContext } from "./run.ts";
import type { SftStage } from "./schema.ts";
import { describeTokenized, loadOptions, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { type SftDatasets, streamSftData, tokensDirectory } from "./sft-data.ts";
import { sftData } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** Fine-tunes a model on prompts and responses and saves it in the stage's output directory. */
export async function runSftStage(settings: SftStage, context: StageContext): Promise<StageSummary> {
  const { model, tokenizer, data } = await open(settings, context);
  using _model = model;
  const { overlong: _overlong, lossOn: _lossOn, ...config } = trainerConfig<SftStage, SFTConfig>(settings);
  try {
    using trainer = new SFTTrainer({
      model,
      tokenizer,
      trainData: data.train,
      ...(data.eval ? { evalData: data.eval } : {}),
      config: { maxSteps: stepsOfEpochs(settings), ...config },
      outputDir: settings.output_dir,
    });
    context.log(`  ${describeTokenized(trainer.tokenized)}`);
    const comparison = await trainAndCompare(trainer, context);
    await savePolicy(trainer, settings);
    await rm(tokensDirectory(settings), { recursive: true, force: true });
    return beforeAndAfter(comparison, "eval/loss");
  } finally {
    await data.train.close();
    await data.eval?.close();
  }
}

/** The model, its tokenizer and the examples. A model that is made anew needs the rows for its tokenizer. */
async function open(
  settings: SftStage,
  context: StageContext,
): Promise<{ model: CausalLM; tokenizer: Tokenizer; data: SftDatasets }> {
  const rows = settings.streaming ? null : await sftData(settings, context.log);
  const { model, tokenizer } =
    settings.init && rows
      ? await initModel(settings.init, rows.train, { ...loadOptions(settings), seed: settings.seed ?? 0 })
      : await load(settings.model_path as string, settings);
  const { overlong, loss_on: lossOn } = settings;
  try {
    const maxLength = fittingMaxLength(settings.max_length, model.maxLength);
    const tokenize = { maxLength, overlong, lossOn, signal: context.signal };
    if (!rows) return { model, tokenizer, data: await streamSftData(settings, tokenizer, tokenize, context) };
    const train = await TokenDataset.create(rows.train, tokenizer, tokenize);
    const evaluation =
      rows.eval.length > 0 ? await TokenDataset.create(rows.eval, tokenizer, tokenize) : null;
    return { model, tokenizer, data: { train, eval: evaluation } };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

async function load(
  directory: string,
  settings: SftStage,
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  return { tokenizer: await Tokenizer.load(directory), model: await openPolicy(directory, settings) };
}
