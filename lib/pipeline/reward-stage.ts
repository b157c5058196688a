import { CausalLM } from "../model/causal-lm.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type RewardConfig, RewardModelTrainer } from "../trainers/reward.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { RewardStage } from "./schema.ts";
import { describeTokenized, loadOptions, stepsOfEpochs, trainerConfig } from "./settings.ts";
import { preferenceData } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

/** Trains a reward model on preference pairs and saves it in the stage's output directory. */
export async function runRewardStage(settings: RewardStage, context: StageContext): Promise<StageSummary> {
  const data = await preferenceData(settings, context.log);
  const tokenizer = await Tokenizer.load(settings.model_path);
  using model = await CausalLM.load(settings.model_path, loadOptions(settings));
  using trainer = new RewardModelTrainer({
    model,
    tokenizer,
    trainData: data.train,
    evalData: data.eval,
    config: { maxSteps: stepsOfEpochs(settings), ...trainerConfig<RewardStage, RewardConfig>(settings) },
    outputDir: settings.output_dir,
  });
  context.log(`  ${describeTokenized(trainer.tokenized)}`);
  const comparison = await trainAndCompare(trainer, context);
  await trainer.save(settings.output_dir);
  const accuracy = comparison.after["eval/accuracy"];
  return {
    ...beforeAndAfter(comparison, "eval/loss"),
    // A new head scores all answers alike, so there is no accuracy before.
    ...(accuracy === undefined ? {} : { "eval/accuracy after": accuracy }),
  };
}
