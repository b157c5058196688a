import { z } from "zod";
import { COMPUTE_TYPES } from "../engine/compute-type.ts";
import { parseMemoryBudget } from "../engine/memory.ts";

/*
 * Keys that several kinds of stages share, and checks across keys.
 */

export const positiveInteger = z.int().positive();
export const nonNegativeInteger = z.int().nonnegative();
export const positive = z.number().positive();
export const nonNegative = z.number().nonnegative();
export const fraction = z.number().min(0).max(1);
const beta = z.number().min(0).lt(1);
export const path = z.string().min(1);
export const paths = z.union([path, z.array(path).min(1)], {
  error: ({ input }) => (input === undefined ? "is required" : "expected a path or a list of paths"),
});

export const device = z
  .enum(["auto", "cpu", "cuda"])
  .describe("where the model runs; auto takes CUDA where it works");
export const dtype = z
  .enum(["float32", "bfloat16", "float16"])
  .describe(
    "how a model's matrices are kept in memory; those that train in float32, or in bfloat16 with stochastic rounding",
  );
export const compute = z
  .enum(COMPUTE_TYPES)
  .describe(
    "what matrix products are computed in; bfloat16 is faster where the processor has it, and less exact; bfloat16x3 is between the two, on the CPU alone; float16 on cuda alone",
  );
export const seed = z.int().nonnegative().describe("everything random follows from it");

const memoryBudgetError = 'expected a number of bytes or text such as "12GiB"';
const modulesError = 'expected a list of module names, "all-linear" or a regular expression';

/** A name alone is no regular expression: it would have to match a layer's whole path. */
const modules = z.union(
  [
    z.literal("all-linear"),
    z.string().regex(/[*+?()[\]|\\^$]/, modulesError),
    z.array(z.string().min(1)).min(1),
  ],
  modulesError,
);

/** Keys of every stage that trains. */
export const loopKeys = {
  output_dir: path.describe("directory of the results: model files, checkpoints, metrics.jsonl"),
  seed: seed.optional(),
  device: device.optional(),
  learning_rate: positive.optional().describe("peak learning rate"),
  warmup_steps: nonNegativeInteger
    .optional()
    .describe("optimizer steps in which the learning rate rises to its peak"),
  schedule: z
    .enum(["constant", "linear", "cosine"])
    .optional()
    .describe("course of the learning rate after the warm-up"),
  betas: z
    .tuple([beta, beta], "expected two numbers from 0 to below 1")
    .optional()
    .describe("AdamW's decay rates, two numbers"),
  eps: positive.optional().describe("AdamW's epsilon"),
  weight_decay: nonNegative.optional().describe("AdamW's, of every weight that trains"),
  max_grad_norm: positive
    .nullable()
    .optional()
    .describe("gradients are scaled down to this global norm; null: never"),
  eval_steps: positiveInteger.optional().describe("steps between evaluations"),
  save_steps: positiveInteger.optional().describe("steps between checkpoints"),
  save_total_limit: positiveInteger.optional().describe("checkpoints to keep"),
  best_metric: z
    .string()
    .min(1)
    .optional()
    .describe(
      "keeps the model of the evaluation with the best value of this metric in best/; needs eval_steps",
    ),
  best_metric_goal: z
    .enum(["min", "max"])
    .optional()
    .describe("which value of best_metric is the best; default: min for a loss, else max"),
  logging_steps: positiveInteger.optional().describe("steps between lines of metrics.jsonl"),
};

/** Keys of PPO's updates, on language models and on environments. */
export const ppoUpdateKeys = {
  num_ppo_epochs: positiveInteger.optional().describe("passes over each batch of rollouts"),
  target_kl: positive
    .nullable()
    .optional()
    .describe("approximate KL that ends the inner epochs; null: never"),
  clip_range: positive.optional().describe("ratios of probabilities are clipped to 1 plus and minus this"),
  value_clip_range: positive
    .nullable()
    .optional()
    .describe("values are clipped to the old ones plus and minus this; null: never"),
  value_loss_coefficient: nonNegative.optional().describe("weight of the value loss"),
  entropy_coefficient: nonNegative.optional().describe("weight of the entropy bonus"),
  gamma: fraction.optional().describe("discount per token or step"),
  lambda: fraction.optional().describe("of generalised advantage estimation"),
  whiten_advantages: z.boolean().optional().describe("over the batch of rollouts"),
};

/** Keys of every stage that trains a language model. */
export const common = {
  ...loopKeys,
  dtype: dtype.optional(),
  compute: compute.optional(),
  batch_size: positiveInteger
    .optional()
    .describe("sequences per optimizer step; for PPO rollouts per iteration"),
  micro_batch_tokens: positiveInteger
    .optional()
    .describe("most tokens of one forward pass; the memory setting"),
  recompute_layers: z
    .boolean()
    .optional()
    .describe("computes activations again in backward: less memory for one more forward pass, the same bits"),
  memory_budget: z
    .union(
      [positive, z.string().refine((text) => parseMemoryBudget(text) !== undefined, memoryBudgetError)],
      {
        error: memoryBudgetError,
      },
    )
    .optional()
    .describe("most memory of the engine, in bytes or as 12GiB; default: the machine's"),
  max_length: positiveInteger.optional().describe("longest sequence in tokens; for PPO longest prompt"),
  lora_r: positiveInteger
    .optional()
    .describe("rank of a LoRA adapter to train; left out: all weights are trained"),
  lora_alpha: positive.optional().describe("scale of the adapter is alpha / r"),
  lora_target_modules: modules
    .optional()
    .describe(
      "linear layers to adapt: names, all-linear, or a regular expression; default: the attention projections",
    ),
  lora_exclude_modules: modules.optional().describe("linear layers to leave out"),
  lora_layers_to_transform: z.array(nonNegativeInteger).optional().describe("numbers of the blocks to adapt"),
  lora_rank_pattern: z
    .record(z.string().min(1), positiveInteger)
    .optional()
    .describe("ranks of single layers, by regular expressions that match ends of their paths"),
  lora_alpha_pattern: z
    .record(z.string().min(1), positive)
    .optional()
    .describe("alphas of single layers, likewise"),
  lora_use_rslora: z.boolean().optional().describe("scale of the adapter is alpha / sqrt(r)"),
  lora_dropout: z
    .number()
    .min(0)
    .lt(1)
    .optional()
    .describe("share of a layer's inputs that training drops before A"),
  on_bad_row: z.enum(["error", "skip"]).optional().describe("what to do with malformed data rows"),
};

/** Keys of the stages that train a policy. */
export const policy = {
  adapter_path: path
    .optional()
    .describe("PEFT directory of an adapter of model_path to go on training, in place of a new one"),
  save_merged: z
    .boolean()
    .optional()
    .describe("false: the result is the adapter alone, in PEFT's form; default: merged into the weights"),
};

/** Keys of the stages that pass over a data set. */
export const supervised = {
  data_path: paths.describe(".json, .jsonl, .jsonl.gz or .parquet file or hub:owner/name/path, or several"),
  eval_data_path: paths.optional().describe("held-out data; left out: eval_fraction of data_path"),
  eval_fraction: z
    .number()
    .min(0)
    .max(0.9)
    .optional()
    .describe("share of data_path to hold out; default 0.05"),
  max_rows: positiveInteger.optional().describe("reads at most this many rows"),
  duplicates: z.enum(["keep", "drop"]).optional().describe("rows that say the same as one before"),
  num_epochs: positive.optional().describe("passes over the data; default 1"),
  max_steps: positiveInteger.optional().describe("ends training after this many optimizer steps"),
  steps_per_epoch: positiveInteger.optional().describe("with num_epochs: sets max_steps to their product"),
  gradient_accumulation_steps: positiveInteger.optional().describe("batches per optimizer step"),
};

/** What a check across keys is given to report with. */
export interface IssueContext {
  addIssue(issue: { code: "custom"; path: string[]; message: string }): void;
}

/** "a, b and c" */
function listed(keys: readonly string[]): string {
  return `${keys.slice(0, -1).join(", ")} and ${keys.at(-1)}`;
}

export function exactlyOne(
  stage: Readonly<Record<string, unknown>>,
  keys: readonly string[],
  context: IssueContext,
): void {
  const given = keys.filter((key) => stage[key] !== undefined);
  if (given.length === 1) return;
  const message =
    given.length === 0 ? `one of ${listed(keys)} is required` : `${listed(given)} exclude each other`;
  context.addIssue({ code: "custom", path: given.length === 0 ? [] : [given[1] as string], message });
}

export function adapterNeedsRank(stage: Readonly<Record<string, unknown>>, context: IssueContext): void {
  const rival =
    stage.adapter_path === undefined ? undefined : ["lora_r", "init"].find((key) => stage[key] !== undefined);
  if (rival)
    context.addIssue({
      code: "custom",
      path: ["adapter_path"],
      message: `adapter_path and ${rival} exclude each other`,
    });
  if (stage.lora_r !== undefined) return;
  if (stage.save_merged !== undefined && stage.adapter_path === undefined)
    context.addIssue({
      code: "custom",
      path: ["save_merged"],
      message: "has no effect without lora_r or adapter_path",
    });
  const orphan = Object.keys(stage).find((key) => key.startsWith("lora_") && stage[key] !== undefined);
  if (orphan) context.addIssue({ code: "custom", path: [orphan], message: "has no effect without lora_r" });
}
