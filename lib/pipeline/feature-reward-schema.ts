import { z } from "zod";
import { rewardLossKeys } from "./reward-keys.ts";
import { common, loopKeys, path, positiveInteger, supervised } from "./schema-keys.ts";

const { on_bad_row, batch_size } = common;
const { data_path, eval_data_path, eval_fraction, max_rows, duplicates, num_epochs, max_steps } = supervised;

/** Keys that say what a new model is like. */
const NEW_MODEL = {
  hidden_dim: positiveInteger.optional().describe("width of the hidden layers; default 64"),
  num_layers: positiveInteger.optional().describe("hidden layers; default 2"),
  activation: z.enum(["relu", "tanh"]).optional().describe("of the hidden layers; default relu"),
};

/** The settings of a reward model on feature vectors, as YAML keys. */
export const featureReward = z
  .strictObject({
    model_path: path
      .optional()
      .describe("directory of a feature-reward stage to go on from; left out: a new model"),
    ...NEW_MODEL,
    data_path,
    eval_data_path,
    eval_fraction,
    format: z
      .enum(["auto", "features-score", "features-chosen-rejected"])
      .optional()
      .describe("form of the rows; default: found from each"),
    max_rows,
    duplicates,
    on_bad_row,
    ...loopKeys,
    batch_size: batch_size.unwrap().optional().describe("rows per optimizer step"),
    num_epochs: num_epochs.unwrap().optional().describe("passes over the data; default 10"),
    max_steps,
    normalize_features: z
      .boolean()
      .optional()
      .describe("makes each feature mean 0 and deviation 1 over the training data"),
    ...rewardLossKeys,
  })
  .superRefine((stage, context) => {
    if (stage.model_path === undefined) return;
    for (const key of Object.keys(NEW_MODEL) as (keyof typeof NEW_MODEL)[])
      if (stage[key] !== undefined)
        context.addIssue({ code: "custom", path: [key], message: "has no effect beside model_path" });
  });

export type FeatureRewardStage = z.infer<typeof featureReward>;
