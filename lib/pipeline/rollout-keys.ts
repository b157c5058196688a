import { z } from "zod";
import { combination, combinationFits, rewardCallKeys, rewardCallsFit } from "./reward-keys.ts";
import {
  adapterNeedsRank,
  common,
  exactlyOne,
  type IssueContext,
  nonNegative,
  nonNegativeInteger,
  path,
  paths,
  policy,
  positive,
  positiveInteger,
} from "./schema-keys.ts";

/** Keys of the stages that learn from answers they sample: PPO, GRPO, RLOO, REINFORCE++. */
export const rolloutKeys = {
  model_path: path.describe("policy to start from; its starting point is the reference"),
  ...policy,
  prompts_path: paths.describe("prompts as strings or {prompt, …} rows"),
  eval_prompts_path: paths.optional().describe("prompts to measure the policy on, not to learn from"),
  shuffle_prompts: z.boolean().optional().describe("false: prompts are taken in the order of the file"),
  reward_model_path: paths
    .optional()
    .describe("directory of a reward model or an ensemble, or a list of them as an ensemble"),
  ...combination,
  ...rewardCallKeys,
  ...common,
  num_iterations: positiveInteger.optional().describe("rollout batches"),
  num_epochs: positive.optional().describe("with steps_per_epoch: sets num_iterations to their product"),
  steps_per_epoch: positiveInteger
    .optional()
    .describe("with num_epochs: sets num_iterations to their product"),
  max_new_tokens: positiveInteger.optional().describe("longest answer in tokens"),
  min_new_tokens: nonNegativeInteger.optional().describe("shortest answer in tokens"),
  num_minibatches: positiveInteger.optional().describe("optimizer steps per pass over a batch of rollouts"),
  kl_loss_coefficient: nonNegative.optional().describe("weight in the loss of the KL to the starting point"),
  kl_loss_direction: z
    .enum(["reverse", "forward"])
    .optional()
    .describe("reverse: KL(policy, reference); forward: KL(reference, policy)"),
  kl_loss_estimator: z
    .enum(["full", "k2"])
    .optional()
    .describe("the KL over the whole vocabulary, or half the squared log-ratio of the sampled tokens"),
  temperature: positive.optional().describe("of sampling and of every log-prob"),
  top_p: z.number().gt(0).max(1).optional().describe("only the likeliest tokens that hold this probability"),
  stop: z
    .array(z.union([nonNegativeInteger, z.string().min(1)]))
    .optional()
    .describe("ids or contents of tokens that end an answer; [] for none"),
  stop_strings: z
    .array(z.string().min(1))
    .optional()
    .describe("texts that end an answer too, wherever tokens begin and end"),
  normalize_reward: z
    .boolean()
    .optional()
    .describe("applies the mean and deviation that the reward model was saved with"),
  shape_rewards: z
    .boolean()
    .optional()
    .describe("less the running mean, divided by the running deviation of all scores so far"),
  reward_clip: positive.nullable().optional().describe("limits scores to plus and minus this"),
  length_penalty: nonNegative.optional().describe("off the score per token over length_penalty_start"),
  length_penalty_start: nonNegativeInteger
    .optional()
    .describe("tokens of an answer that length_penalty leaves free"),
  diversity_bonus: nonNegative.optional().describe("weight of a response's diversity in its score"),
  diversity_measure: z
    .enum(["distinct", "overlap"])
    .optional()
    .describe("distinct n-grams, or one minus the largest overlap with another response"),
  diversity_ngram: positiveInteger.optional().describe("tokens of an n-gram of diversity_bonus"),
  missing_eos_penalty: nonNegative
    .nullable()
    .optional()
    .describe("off the score of an answer that did not end itself"),
};

type RolloutKeys = z.infer<z.ZodObject<typeof rolloutKeys>>;

/** Reports keys that exclude each other. */
export function rolloutKeysFit(stage: RolloutKeys, context: IssueContext): void {
  exactlyOne(stage, ["reward_model_path", "reward_module", "reward_url"], context);
  rewardCallsFit(stage, context);
  combinationFits(stage, stage.reward_model_path !== undefined, "reward_model_path", context);
  adapterNeedsRank(stage, context);
  epochsNeedSteps(stage, context);
  const { min_new_tokens: least, max_new_tokens: most } = stage;
  if (least === undefined || most === undefined || least <= most) return;
  context.addIssue({
    code: "custom",
    path: ["min_new_tokens"],
    message: `must not be over max_new_tokens (${most})`,
  });
}

/** There is no data set to pass over: epochs are of so many steps each, in place of num_iterations. */
function epochsNeedSteps(stage: RolloutKeys, context: IssueContext): void {
  const issue = (key: string, message: string): void =>
    context.addIssue({ code: "custom", path: [key], message });
  if (stage.steps_per_epoch === undefined) {
    if (stage.num_epochs !== undefined) issue("num_epochs", "has no effect without steps_per_epoch");
  } else if (stage.num_iterations !== undefined) {
    issue("steps_per_epoch", "steps_per_epoch and num_iterations exclude each other");
  }
}
