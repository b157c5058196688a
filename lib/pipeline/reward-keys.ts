import { z } from "zod";
import { ENSEMBLE_COMBINATIONS } from "../rewards/ensemble-files.ts";
import {
  type IssueContext,
  nonNegative,
  nonNegativeInteger,
  path,
  positive,
  positiveInteger,
} from "./schema-keys.ts";

/** Where rewards come from other than from reward models, and how functions and services are called. */
export const rewardCallKeys = {
  reward_module: path
    .optional()
    .describe(
      "JavaScript or TypeScript file with a default export (prompt, response) => number, or a FunctionReward, BatchReward or HttpReward",
    ),
  reward_url: z
    .string()
    .regex(/^https?:\/\//, "expected an address that begins with http:// or https://")
    .optional()
    .describe("service that scores answers posted to it as JSON"),
  reward_headers: z
    .record(z.string().min(1), z.string())
    .optional()
    .describe(`headers for reward_url; $\{NAME} in a value is the environment variable`),
  reward_batch_size: positiveInteger.optional().describe("most answers of one request to reward_url"),
  reward_concurrency: positiveInteger
    .optional()
    .describe("most calls of the reward function or service under way at a time"),
  reward_timeout: positive.nullable().optional().describe("seconds that one call may take; null: any time"),
  reward_retries: nonNegativeInteger.optional().describe("how often a call that failed is made again"),
  reward_cache: nonNegativeInteger
    .optional()
    .describe("scores to remember, so that an answer seen before is not scored again"),
};

const OF_SERVICE = ["reward_headers", "reward_batch_size"];
const OF_CALLS = ["reward_concurrency", "reward_timeout", "reward_retries", "reward_cache"];

/** Reports keys that the stage's source of rewards has no use for. */
export function rewardCallsFit(stage: Readonly<Record<string, unknown>>, context: IssueContext): void {
  const check = (keys: readonly string[], fits: boolean, condition: string): void => {
    for (const key of keys)
      if (stage[key] !== undefined && !fits)
        context.addIssue({ code: "custom", path: [key], message: `has no effect without ${condition}` });
  };
  const isService = stage.reward_url !== undefined;
  check(OF_SERVICE, isService, "reward_url");
  check(OF_CALLS, isService || stage.reward_module !== undefined, "reward_module or reward_url");
}

/** How the scores of an ensemble become one. */
export const combination = {
  combine: z
    .enum(ENSEMBLE_COMBINATIONS)
    .optional()
    .describe("an ensemble's reward: mean, min, or mean-std, mean − kappa·deviation"),
  kappa: nonNegative.optional().describe("weight of the deviation in mean-std"),
};

/** Reports keys of an ensemble where there is none. */
export function combinationFits(
  stage: Readonly<Record<string, unknown>>,
  isEnsemble: boolean,
  condition: string,
  context: IssueContext,
): void {
  for (const key of ["combine", "kappa"])
    if (stage[key] !== undefined && !isEnsemble)
      context.addIssue({ code: "custom", path: [key], message: `has no effect without ${condition}` });
}

/** Keys of how rewards are judged, of text and of feature vectors. */
export const rewardLossKeys = {
  loss: z.enum(["bradley-terry", "cross-entropy", "log-exp", "hinge"]).optional().describe("loss of pairs"),
  margin: nonNegative
    .optional()
    .describe("by how much rewards should differ, beside the rows' own margins; hinge: 1"),
  label_smoothing: z.number().min(0).lt(0.5).optional().describe("probability that a label is wrong"),
  score_weight: nonNegative.optional().describe("weight of the squared error of answers with a score"),
  center_coefficient: nonNegative
    .optional()
    .describe("weight of (chosen + rejected)², which keeps rewards near zero"),
};
