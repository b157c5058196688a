import { z } from "zod";
import { CPO_LOSSES, DPO_LOSSES, F_DIVERGENCES } from "../trainers/dpo-losses.ts";
import {
  adapterNeedsRank,
  common,
  fraction,
  nonNegative,
  path,
  policy,
  positive,
  positiveInteger,
  supervised,
} from "./schema-keys.ts";

/* The settings of the stages that learn from preferences without a reward model. */

const PREFERENCE_FORMATS = [
  "auto",
  "prompt-chosen-rejected",
  "hh-rlhf",
  "chat-pair",
  "chatbot-arena",
] as const;

const startingModel = path.describe("policy to start from, usually the SFT stage's result");
const betaKey = positive.optional();

/** Keys of the stages that learn from pairs of answers. */
const pairs = {
  model_path: startingModel,
  ...policy,
  ...common,
  ...supervised,
  format: z
    .enum(PREFERENCE_FORMATS)
    .optional()
    .describe("form of the rows; default: found from the first one"),
  overlong: z
    .enum(["truncate", "drop"])
    .optional()
    .describe("what happens to pairs over max_length; those whose prompt fills it are left out either way"),
  share_prompts: z
    .boolean()
    .optional()
    .describe("computes a pair's prompt once for both answers; default true"),
};

/** Keys of the stages that compare the policy with a frozen reference. */
const reference = {
  ref_model_path: path
    .optional()
    .describe(
      "reference policy; left out: the policy's starting point, without a copy where an adapter is trained",
    ),
  sync_ref_model: z.boolean().optional().describe("lets the reference follow the policy (TR-DPO)"),
  ref_model_mixup_alpha: z.number().gt(0).max(1).optional().describe("the policy's share when it does"),
  ref_model_sync_steps: positiveInteger.optional().describe("steps from one time to the next"),
};

const dpoLoss = z.enum(DPO_LOSSES);

export const dpo = z
  .strictObject({
    ...pairs,
    ...reference,
    precompute_ref_log_probs: z
      .boolean()
      .optional()
      .describe("measures the reference on all data first and keeps the result in output_dir/reference"),
    reference_free: z
      .boolean()
      .optional()
      .describe("compares with a uniform reference, which needs no model"),
    beta: betaKey.describe("strength of the tie to the reference; default 0.1"),
    loss_type: z
      .union([dpoLoss, z.array(dpoLoss).min(1)], {
        error: `expected one or a list of ${DPO_LOSSES.join(", ")}`,
      })
      .optional()
      .describe("loss, or a list of losses to add up; default sigmoid"),
    loss_weights: z.array(nonNegative).min(1).optional().describe("a weight for each loss; default 1"),
    label_smoothing: z
      .number()
      .min(0)
      .lt(0.5)
      .optional()
      .describe("probability that a label is wrong, in the losses that know one"),
    f_divergence: z
      .enum(F_DIVERGENCES)
      .optional()
      .describe("divergence from the reference; default reverse_kl"),
    f_divergence_alpha: z.number().optional().describe("of alpha_divergence; default 0.5"),
    ld_alpha: fraction
      .optional()
      .describe("weight of the tokens that the longer answer has more (LD-DPO); default 1"),
    use_weighting: z.boolean().optional().describe("weights pairs by their likelihood (WPO)"),
    discopop_tau: positive.optional().describe("temperature of discopop; default 0.05"),
  })
  .superRefine((stage, context) => {
    adapterNeedsRank(stage, context);
    const losses = typeof stage.loss_type === "object" ? stage.loss_type.length : 1;
    if (stage.loss_weights && stage.loss_weights.length !== losses)
      context.addIssue({
        code: "custom",
        path: ["loss_weights"],
        message: `must have one weight for each of the ${losses} losses of loss_type`,
      });
  });

export const kto = z
  .strictObject({
    model_path: startingModel,
    ...policy,
    ...common,
    ...supervised,
    ...reference,
    format: z
      .enum([...PREFERENCE_FORMATS, "prompt-completion-label"])
      .optional()
      .describe("form of the rows; default: found from the first one"),
    overlong: z.enum(["truncate", "drop"]).optional().describe("what happens to answers over max_length"),
    beta: betaKey.describe("strength of the tie to the reference; default 0.1"),
    desirable_weight: positive.optional().describe("weight of desirable answers' loss; default 1"),
    undesirable_weight: positive.optional().describe("weight of undesirable answers' loss; default 1"),
  })
  .superRefine(adapterNeedsRank);

export const orpo = z
  .strictObject({
    ...pairs,
    beta: betaKey.describe("weight of the odds ratio beside the likelihood of chosen answers; default 0.1"),
    nll_on: z
      .enum(["completion", "all"])
      .optional()
      .describe("tokens of the likelihood: the chosen answer's, or the prompt's too"),
  })
  .superRefine(adapterNeedsRank);

const contrastive = {
  ...pairs,
  label_smoothing: z.number().min(0).lt(0.5).optional().describe("probability that a label is wrong"),
};

export const cpo = z
  .strictObject({
    ...contrastive,
    beta: betaKey.describe("factor of the difference of log-probs; default 0.1"),
    loss_type: z.enum(CPO_LOSSES).optional().describe("loss of the margin; default sigmoid"),
    nll_weight: nonNegative.optional().describe("weight of the likelihood of chosen answers; default 1"),
  })
  .superRefine(adapterNeedsRank);

export const simpo = z
  .strictObject({
    ...contrastive,
    beta: betaKey.describe("factor of the difference of mean log-probs; default 2"),
    gamma: nonNegative.optional().describe("margin that the rewards should differ by; default 0.5"),
    nll_weight: nonNegative.optional().describe("weight of the likelihood of chosen answers; default 0"),
  })
  .superRefine(adapterNeedsRank);
