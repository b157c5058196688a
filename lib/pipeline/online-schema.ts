import { z } from "zod";
import { rolloutKeys, rolloutKeysFit } from "./rollout-keys.ts";
import {
  fraction,
  type IssueContext,
  nonNegative,
  positive,
  positiveInteger,
  ppoUpdateKeys,
} from "./schema-keys.ts";

/* The settings of the stages that learn from answers they sample. */

export const ppo = z
  .strictObject({
    ...rolloutKeys,
    ...ppoUpdateKeys,
    kl_coefficient: nonNegative.optional().describe("weight of the per-token KL in the reward"),
    kl_estimator: z
      .enum(["k1", "k2", "k3", "full"])
      .optional()
      .describe("of the sampled token, or over the whole vocabulary"),
    kl_target: positive.nullable().optional().describe("adapts kl_coefficient towards this KL per answer"),
    kl_horizon: positive.optional().describe("answers in which kl_coefficient adapts to kl_target"),
    dual_clip: z
      .number()
      .gt(1)
      .nullable()
      .optional()
      .describe("bounds the loss of negative advantages at this multiple; over 1 + clip_range"),
    reward_placement: z
      .enum(["last-token", "after-end"])
      .optional()
      .describe("where the score is given: at the last token, or one place after the end"),
    whiten_rewards: z.boolean().optional().describe("over the batch of rollouts"),
    value_model: z
      .enum(["shared", "adapter", "separate"])
      .optional()
      .describe("head on the policy, adapter of its own, or model of its own"),
    value_init: z.enum(["policy", "reward"]).optional().describe("what a value model of its own starts from"),
    value_head: z.enum(["mlp", "linear"]).optional().describe("with a hidden layer, or without"),
  })
  .superRefine(rolloutKeysFit);

/** Keys of the stages without a value function. */
const groupKeys = {
  ...rolloutKeys,
  group_size: positiveInteger.optional().describe("answers per prompt; batch_size is a multiple of it"),
  update_epochs: positiveInteger.optional().describe("passes over each batch of rollouts"),
  clip_range: z.number().gt(0).max(1).optional().describe("ratios under 1 − this are clipped"),
  clip_range_high: positive.optional().describe("ratios over 1 + this are clipped; left out: clip_range"),
};

type GroupKeys = z.infer<z.ZodObject<typeof groupKeys>>;

function groupKeysFit(
  stage: GroupKeys,
  { usual, least = 2 }: { usual: number; least?: number },
  context: IssueContext,
): void {
  rolloutKeysFit(stage, context);
  const { batch_size: batchSize, group_size: groupSize = usual } = stage;
  if (groupSize < least)
    context.addIssue({
      code: "custom",
      path: ["group_size"],
      message: `must be at least ${least}: answers to one prompt are compared`,
    });
  if (batchSize === undefined || batchSize % groupSize === 0) return;
  context.addIssue({
    code: "custom",
    path: ["batch_size"],
    message: `must be a multiple of group_size (${groupSize})`,
  });
}

export const grpo = z
  .strictObject({
    ...groupKeys,
    kl_coefficient: nonNegative.optional().describe("weight of the k3 KL in the loss; 0 keeps no reference"),
    loss_aggregation: z
      .enum(["grpo", "bnpo", "dapo", "dr_grpo"])
      .optional()
      .describe("what the losses of tokens are summed over and divided by"),
    ratio_level: z.enum(["token", "sequence"]).optional().describe("sequence: GSPO"),
    surrogate: z
      .enum(["clipped", "cispo"])
      .optional()
      .describe("PPO's clipped loss, or CISPO's weighted likelihood"),
    scale_rewards: z
      .enum(["group", "batch", "none"])
      .optional()
      .describe("what advantages are divided by: a deviation, or nothing"),
    weigh_kl: z.boolean().optional().describe("the ratio multiplies the KL of the loss"),
  })
  .superRefine((stage, context) => groupKeysFit(stage, { usual: 8 }, context));

export const rloo = z
  .strictObject({
    ...groupKeys,
    kl_coefficient: nonNegative
      .optional()
      .describe("weight of the KL that is taken off the scores; 0 keeps no reference"),
    whiten_advantages: z.boolean().optional().describe("over the batch of rollouts"),
  })
  .superRefine((stage, context) => groupKeysFit(stage, { usual: 2 }, context));

export const reinforcePlusPlus = z
  .strictObject({
    ...groupKeys,
    kl_coefficient: nonNegative
      .optional()
      .describe("weight of the per-token KL in the reward; 0 keeps no reference"),
    kl_estimator: z.enum(["k1", "k2", "k3"]).optional().describe("of the sampled token"),
    gamma: fraction.optional().describe("discount per token"),
    baseline: z
      .enum(["batch", "group"])
      .optional()
      .describe("group: the mean score of a prompt's answers is taken off theirs"),
  })
  .superRefine((stage, context) =>
    groupKeysFit(stage, { usual: 1, least: stage.baseline === "group" ? 2 : 1 }, context),
  );

export type PpoStage = z.infer<typeof ppo>;
export type GrpoStage = z.infer<typeof grpo>;
export type RlooStage = z.infer<typeof rloo>;
export type ReinforcePlusPlusStage = z.infer<typeof reinforcePlusPlus>;
