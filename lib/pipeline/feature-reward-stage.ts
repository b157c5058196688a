import { type FeatureRow, loadFeatures, vectorsOf } from "../data/features.ts";
import { FeatureRewardModel } from "../rewards/feature-reward-model.ts";
import { FeatureRewardTrainer, type FeatureRewardTrainerConfig } from "../trainers/feature-reward.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { FeatureRewardStage } from "./schema.ts";
import { trainerConfig } from "./settings.ts";
import { trainAndEval } from "./stage-data.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";

function openModel(
  { model_path: path, hidden_dim, num_layers, activation, seed, device }: FeatureRewardStage,
  first: FeatureRow,
): Promise<FeatureRewardModel> | FeatureRewardModel {
  if (path !== undefined) return FeatureRewardModel.load(path, { device });
  const inputDim = vectorsOf(first)[0]?.length ?? 0;
  const shape = { hiddenDim: hidden_dim, numLayers: num_layers, activation };
  return FeatureRewardModel.create({ inputDim, ...shape, seed, device });
}

/** Trains a reward model on feature vectors and saves it in the stage's output directory. */
export async function runFeatureRewardStage(
  settings: FeatureRewardStage,
  context: StageContext,
): Promise<StageSummary> {
  const { format, duplicates, on_bad_row: onBadRow } = settings;
  const data = await trainAndEval<FeatureRow>(
    settings,
    (path, limit) => loadFeatures(path, { format, duplicates, onBadRow, limit }),
    (row) => row,
    context.log,
  );
  const model = await openModel(settings, data.train[0] as FeatureRow);
  const { hidden_dim: _width, num_layers: _layers, activation: _activation, ...own } = settings;
  using trainer = new FeatureRewardTrainer({
    model,
    trainData: data.train,
    evalData: data.eval,
    config: trainerConfig<typeof own, FeatureRewardTrainerConfig>(own),
    outputDir: settings.output_dir,
  });
  const comparison = await trainAndCompare(trainer, context);
  await trainer.save(settings.output_dir);
  const names = ["eval/loss", "eval/accuracy", "eval/mse"];
  return Object.assign({}, ...names.map((name) => beforeAndAfter(comparison, name)));
}
