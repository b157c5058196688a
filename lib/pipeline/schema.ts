import { z } from "zod";
import { environmentPpo } from "./environment-schema.ts";
import { evaluate } from "./evaluation-schema.ts";
import { featureReward } from "./feature-reward-schema.ts";
import { init, newModel, sftFormat } from "./init-schema.ts";
import { grpo, ppo, reinforcePlusPlus, rloo } from "./online-schema.ts";
import { cpo, dpo, kto, orpo, simpo } from "./preference-schema.ts";
import { combination, combinationFits, rewardLossKeys } from "./reward-keys.ts";
import {
  adapterNeedsRank,
  common,
  compute,
  device,
  dtype,
  exactlyOne,
  path,
  policy,
  positiveInteger,
  seed,
  supervised,
} from "./schema-keys.ts";

/**
 * The settings of every stage, as YAML keys. A key's camelCase form is the setting of the trainer's `config`; settings that are
 * left out keep the trainer's defaults, so that each default stands in one place.
 */

const sft = z
  .strictObject({
    model_path: path.optional().describe("Hugging Face model directory to start from"),
    ...policy,
    init: newModel.optional(),
    ...common,
    ...supervised,
    format: sftFormat.optional(),
    streaming: z
      .boolean()
      .optional()
      .describe("keeps tokens in files of output_dir while it trains: for data larger than memory"),
    overlong: z.enum(["truncate", "drop"]).optional().describe("what happens to examples over max_length"),
    loss_on: z
      .enum(["completion", "all"])
      .optional()
      .describe("tokens to learn: the response alone, or the prompt too"),
  })
  .superRefine((stage, context) => {
    exactlyOne(stage, ["model_path", "init"], context);
    adapterNeedsRank(stage, context);
    if (stage.streaming && stage.init)
      context.addIssue({
        code: "custom",
        path: ["streaming"],
        message: "streaming and init exclude each other: a tokenizer is trained on rows in memory",
      });
  });

const reward = z
  .strictObject({
    model_path: path.describe("Hugging Face model directory to start from, usually the SFT stage's"),
    ...common,
    ...supervised,
    format: z
      .enum([
        "auto",
        "prompt-chosen-rejected",
        "hh-rlhf",
        "chat-pair",
        "chatbot-arena",
        "prompt-response-score",
      ])
      .optional()
      .describe("form of the rows; default: found from the first one"),
    ties: z.enum(["keep", "drop"]).optional().describe("pairs judged alike: learnt as ties, or left out"),
    overlong: z
      .enum(["drop", "truncate-prompt"])
      .optional()
      .describe("pairs over max_length: left out, or the beginning of their prompt cut off"),
    freeze_base: z.boolean().optional().describe("trains the head alone on the frozen model"),
    head: z.enum(["linear", "mlp"]).optional().describe("linear, or hidden → hidden/2 → 1 with ReLU"),
    head_init: z
      .enum(["zero", "openai", "openrlhf"])
      .optional()
      .describe("deviation of the head's last layer: 0, 1/√(d + 1) or 1/(d + 1)"),
    ...rewardLossKeys,
    normalize_reward: z.boolean().optional().describe("measures and saves mean and deviation of the rewards"),
    members: positiveInteger
      .optional()
      .describe("trains so many reward models with seeds of their own, as an ensemble"),
    split_seed: seed.optional().describe("decides which rows are held out; left out: the seed"),
    ...combination,
  })
  .superRefine((stage, context) => {
    adapterNeedsRank(stage, context);
    combinationFits(stage, stage.members !== undefined && stage.members > 1, "members over 1", context);
    if (stage.freeze_base && stage.lora_r !== undefined) {
      context.addIssue({
        code: "custom",
        path: ["freeze_base"],
        message: "freeze_base and lora_r exclude each other",
      });
    }
  });

/** The schema of each kind of stage. */
export const stageSchemas = {
  init,
  sft,
  reward,
  ppo,
  grpo,
  rloo,
  "reinforce-plus-plus": reinforcePlusPlus,
  dpo,
  kto,
  orpo,
  cpo,
  simpo,
  "feature-reward": featureReward,
  "environment-ppo": environmentPpo,
  evaluate,
} as const;

export type StageKind = keyof typeof stageSchemas;
const OTHER_KINDS = ["init", "feature-reward", "environment-ppo", "evaluate"] as const satisfies StageKind[];
/** The stages that train a language model. */
export type TrainingKind = Exclude<StageKind, (typeof OTHER_KINDS)[number]>;
export type SftStage = z.infer<typeof sft>;
export type RewardStage = z.infer<typeof reward>;
export type { EnvironmentPpoStage } from "./environment-schema.ts";
export type { FeatureRewardStage } from "./feature-reward-schema.ts";
export type { InitConfig, InitStage } from "./init-schema.ts";
export type { GrpoStage, PpoStage, ReinforcePlusPlusStage, RlooStage } from "./online-schema.ts";
export type DpoStage = z.infer<typeof dpo>;
export type KtoStage = z.infer<typeof kto>;
export type OrpoStage = z.infer<typeof orpo>;
export type CpoStage = z.infer<typeof cpo>;
export type SimpoStage = z.infer<typeof simpo>;

export const stageKinds = Object.keys(stageSchemas) as StageKind[];
export const trainingKinds = stageKinds.filter(
  (kind): kind is TrainingKind => !(OTHER_KINDS as readonly StageKind[]).includes(kind),
);

const modelAliases = {
  model_name: "model_path",
  base_model: "model_path",
  model: "model_path",
  gradient_checkpointing: "recompute_layers",
};
const policyAliases = { ...modelAliases, sft_model_path: "model_path" };
const rolloutAliases = {
  ...policyAliases,
  data_path: "prompts_path",
  num_episodes: "num_iterations",
  max_steps: "num_iterations",
};
const groupAliases = { ...rolloutAliases, num_generations: "group_size" };
const referenceAliases = { ref_model: "ref_model_path", ref_model_name: "ref_model_path" };

/** Names that tutorials use for our keys, by stage. They are taken in YAML and, with dashes, as flags. */
export const stageAliases: Readonly<Record<StageKind, Readonly<Record<string, string>>>> = {
  init: {},
  sft: modelAliases,
  reward: policyAliases,
  dpo: {
    ...policyAliases,
    ...referenceAliases,
    f_divergence_type: "f_divergence",
    f_alpha_divergence_coef: "f_divergence_alpha",
  },
  kto: { ...policyAliases, ...referenceAliases },
  orpo: policyAliases,
  cpo: { ...policyAliases, cpo_alpha: "nll_weight" },
  simpo: { ...policyAliases, simpo_gamma: "gamma", cpo_alpha: "nll_weight" },
  ppo: rolloutAliases,
  grpo: groupAliases,
  rloo: groupAliases,
  "reinforce-plus-plus": groupAliases,
  "feature-reward": {},
  "environment-ppo": {},
  evaluate: referenceAliases,
};

/** A whole pipeline file; `seed`, `device`, `dtype` and `compute` hold for every stage that does not set its own. */
export const pipelineSchema = z.strictObject({
  seed: seed.optional(),
  device: device.optional(),
  dtype: dtype.optional(),
  compute: compute.optional(),
  stages: z
    .array(
      z
        .strictObject({
          init: init.optional(),
          sft: sft.optional(),
          reward: reward.optional(),
          ppo: ppo.optional(),
          grpo: grpo.optional(),
          rloo: rloo.optional(),
          "reinforce-plus-plus": reinforcePlusPlus.optional(),
          dpo: dpo.optional(),
          kto: kto.optional(),
          orpo: orpo.optional(),
          cpo: cpo.optional(),
          simpo: simpo.optional(),
          "feature-reward": featureReward.optional(),
          "environment-ppo": environmentPpo.optional(),
          evaluate: evaluate.optional(),
        })
        .refine((stage) => Object.keys(stage).length === 1, {
          message: "each entry of stages is one stage: start the next one with its own dash",
        }),
    )
    .min(1),
});

export type PipelineFile = z.infer<typeof pipelineSchema>;

/** One stage of a pipeline with the settings that hold for it. */
export type Stage = {
  [Kind in StageKind]: {
    readonly kind: Kind;
    readonly settings: z.infer<(typeof stageSchemas)[Kind]>;
    /** file:line:column of the stage, where it stands in a pipeline file. */
    readonly at?: string;
  };
}[StageKind];

/** A stage whose memory can be estimated: all that train. */
export type EstimatedStage = Exclude<Stage, { readonly kind: "init" | "evaluate" }>;

/** A stage that trains a language model. */
export type TrainingStage = Extract<Stage, { readonly kind: TrainingKind }>;

/** A YAML key as a setting of the TypeScript API: learning_rate → learningRate. */
export function camelCase(key: string): string {
  return key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}
