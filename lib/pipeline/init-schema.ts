import { z } from "zod";
import { MODEL_FAMILIES } from "../model/config.ts";
import { common, device, type IssueContext, path, positiveInteger, seed, supervised } from "./schema-keys.ts";

/** Forms of rows that text can be learnt from. */
export const sftFormat = z
  .enum([
    "auto",
    "prompt-response",
    "prompt-completion",
    "document-target",
    "messages",
    "text",
    "prompt-chosen-rejected",
    "hh-rlhf",
    "chat-pair",
    "chatbot-arena",
  ])
  .describe("form of the rows; default: found from the first one");

/** Sizes of a new model and of its tokenizer. */
const sizes = {
  family: z.enum(MODEL_FAMILIES).describe("architecture of the model"),
  hidden_size: positiveInteger.describe("width of the residual stream"),
  num_layers: positiveInteger.describe("blocks of attention and feed-forward layers"),
  num_heads: positiveInteger.describe("query heads of a block"),
  num_kv_heads: positiveInteger.optional().describe("fewer key and value heads than query heads"),
  head_dim: positiveInteger.optional().describe("width of a head; left out: hidden_size / num_heads"),
  intermediate_size: positiveInteger
    .optional()
    .describe("width of the feed-forward layers; left out: 4 hidden_size, of gated ones 8/3"),
  sliding_window: positiveInteger.optional().describe("how many tokens back attention reaches"),
  max_position_embeddings: positiveInteger
    .optional()
    .describe("longest sequence that the model has room for; default 512"),
  tie_word_embeddings: z
    .boolean()
    .optional()
    .describe("false: the head has weights of its own; default: the embedding's"),
  vocab_size: positiveInteger.describe("size of the tokenizer that is trained on the data"),
};

/** Sizes that not every family has. */
const FAMILIES_WITH = {
  num_kv_heads: ["llama", "mistral", "qwen2", "qwen3"],
  head_dim: ["llama", "mistral", "qwen3"],
  sliding_window: ["mistral", "qwen2", "qwen3"],
};

function familyHasThem(
  settings: { readonly family: string } & { readonly [Key in keyof typeof FAMILIES_WITH]?: unknown },
  context: IssueContext,
): void {
  const { family } = settings;
  for (const [key, families] of Object.entries(FAMILIES_WITH)) {
    if (settings[key as keyof typeof FAMILIES_WITH] === undefined || families.includes(family)) continue;
    const message = `${family} has no ${key}; these have: ${families.join(", ")}`;
    context.addIssue({ code: "custom", path: [key], message });
  }
}

/** A model that a stage makes for itself. */
export const newModel = z
  .strictObject(sizes)
  .superRefine(familyHasThem)
  .describe("a new model with random weights and a tokenizer trained on the data, instead of model_path");

const { on_bad_row } = common;
const { data_path, max_rows, duplicates } = supervised;

/** The stage that makes a model for others, as YAML keys. */
export const init = z
  .strictObject({
    ...sizes,
    data_path,
    format: sftFormat.optional(),
    max_rows,
    duplicates,
    on_bad_row,
    output_dir: path.describe("directory of the new model and its tokenizer"),
    seed: seed.optional(),
    device: device.optional(),
  })
  .superRefine(familyHasThem);

export type InitConfig = z.infer<typeof newModel>;
export type InitStage = z.infer<typeof init>;
