import { loadSft } from "../data/sft.ts";
import { printTrainableParameters } from "../trainers/functions.ts";
import { initModel } from "./init-model.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { InitStage } from "./schema.ts";
import { describeReport } from "./settings.ts";

/** Makes a model with random weights and a tokenizer trained on the stage's data, and saves both in its output directory. */
export async function runInitStage(settings: InitStage, { log }: StageContext): Promise<StageSummary> {
  const { format, duplicates, on_bad_row: onBadRow, max_rows: limit, device, seed = 0 } = settings;
  const rows = await loadSft(settings.data_path, { format, duplicates, onBadRow, limit });
  log(`  ${describeReport(rows.report)}`);
  const { model: made, tokenizer } = await initModel(settings, rows, { device, seed });
  using model = made;
  await model.save(settings.output_dir);
  await tokenizer.save(settings.output_dir);
  const { all } = printTrainableParameters(model, () => {});
  return { weights: all, tokens: tokenizer.vocabSize };
}
