import { z } from "zod";
import { loopKeys, path, positiveInteger, ppoUpdateKeys } from "./schema-keys.ts";

/** The settings of PPO on a control task, as YAML keys. */
export const environmentPpo = z.strictObject({
  environment_module: path.describe(
    "JavaScript or TypeScript file with a default export (index) => Environment",
  ),
  ...loopKeys,
  num_iterations: positiveInteger.optional().describe("rollouts, each followed by updates"),
  num_environments: positiveInteger.optional().describe("environments that run side by side"),
  steps_per_iteration: positiveInteger.optional().describe("steps of each environment per iteration"),
  hidden: z.array(positiveInteger).optional().describe("widths of the hidden layers"),
  activation: z.enum(["tanh", "relu"]).optional().describe("of the hidden layers"),
  initial_log_std: z
    .number()
    .optional()
    .describe("logarithm of the first standard deviation of continuous actions"),
  ...ppoUpdateKeys,
  num_minibatches: positiveInteger.optional().describe("optimizer steps per pass"),
  normalize_observations: z
    .boolean()
    .optional()
    .describe("by their mean over the first iteration and their running deviation from it"),
  scale_rewards: z.boolean().optional().describe("by the running deviation of the discounted return"),
  eval_episodes: positiveInteger.optional().describe("episodes of an evaluation"),
  eval_episode_steps: positiveInteger
    .optional()
    .describe("an evaluation cuts an episode off after so many steps"),
});

export type EnvironmentPpoStage = z.infer<typeof environmentPpo>;
