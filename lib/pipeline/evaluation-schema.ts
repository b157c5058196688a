import { z } from "zod";
import {
  compute,
  device,
  dtype,
  fraction,
  nonNegative,
  nonNegativeInteger,
  path,
  paths,
  positive,
  positiveInteger,
  seed,
} from "./schema-keys.ts";

/** Words "name=path" as a mapping. */
function byName(words: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    words.map((word) => [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)]),
  );
}

/** Paths by name: in a file a mapping, as a flag words "name=path". */
const namedPaths = z.union(
  [
    z.record(z.string().min(1), path),
    z
      .array(z.string().regex(/^[^=/]+=./))
      .min(1)
      .transform(byName),
  ],
  {
    error: ({ input }) => (input === undefined ? "is required" : "expected name: path, as a flag name=path"),
  },
);

/** The settings of `evaluate`, as YAML keys; defaults are those of the function. */
export const evaluate = z
  .strictObject({
    models: namedPaths.describe("models to compare, name=directory; the first is the baseline"),
    prompts_path: paths.describe("prompts that the models answer"),
    output_dir: path.describe("directory of report.json, report.md and report.html"),
    baseline: z.string().optional().describe("name of the model that the others are compared with"),
    ref_model_path: path.optional().describe("model that the KL is measured to; default: the baseline"),
    reward_model_path: paths.optional().describe("reward model or ensemble that was trained for"),
    reward_module: path.optional().describe("file with a default export (prompt, response) => number"),
    held_out_reward_model_path: paths.optional().describe("reward model that was not trained for"),
    normalize_reward: z.boolean().optional().describe("false: raw scores of reward models"),
    pairs_path: paths.optional().describe("preference pairs that the reward models are to order rightly"),
    references_path: paths.optional().describe("prompts and responses whose perplexity is measured"),
    metrics_module: path
      .optional()
      .describe(
        "file that exports metrics {name: (prompt, response, context) => number}, category(row), checks(report, context) or several of them",
      ),
    judges: z.array(z.string()).min(1).optional().describe("metrics that decide win rates; default: rewards"),
    runs: namedPaths.optional().describe("runs whose curves are shown, name=directory; default: the models"),
    num_samples: positiveInteger.optional().describe("answers per prompt"),
    num_shown: nonNegativeInteger.optional().describe("prompts whose answers are shown"),
    max_prompts: positiveInteger.optional().describe("only so many prompts"),
    max_new_tokens: positiveInteger.optional().describe("longest answer in tokens"),
    min_new_tokens: nonNegativeInteger.optional().describe("shortest answer in tokens"),
    temperature: nonNegative.optional().describe("0: always the likeliest token"),
    top_k: nonNegativeInteger.optional().describe("only the k likeliest tokens; 0: all"),
    top_p: fraction.optional().describe("only the likeliest tokens that hold this probability"),
    min_p: fraction.optional().describe("only tokens with this share of the likeliest one's probability"),
    repetition_penalty: positive.optional().describe("over 1: tokens that occurred get less likely"),
    micro_batch_tokens: positiveInteger.optional().describe("most tokens of one forward pass"),
    seed: seed.optional(),
    device: device.optional(),
    dtype: dtype.optional(),
    compute: compute.optional(),
    threads: positiveInteger.optional().describe("CPU threads; default: all"),
  })
  .superRefine((settings, context) => {
    if (settings.reward_model_path === undefined || settings.reward_module === undefined) return;
    context.addIssue({
      code: "custom",
      path: ["reward_module"],
      message: "reward_model_path and reward_module exclude each other",
    });
  });

export type EvaluationSettings = z.infer<typeof evaluate>;
