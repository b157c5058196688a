import { groupAdvantages } from "./group-advantages.ts";
import {
  checkGroupCombination,
  GRPO_DEFAULTS,
  GRPO_RULES,
  type GRPOConfig,
  type GRPOSettings,
} from "./group-settings.ts";
import { GroupTrainer, type GroupTrainerOptions, type MeasuredGroups } from "./group-trainer.ts";
import { requireOptions } from "./required-options.ts";
import type { RolloutBatch } from "./rollouts.ts";
import { checkSettings, withDefaults } from "./settings.ts";

/**
 * Group-relative policy optimisation (Shao et al. 2024) and its kin: DAPO and Dr. GRPO by `lossAggregation` and `clipRangeHigh`,
 * GSPO by `ratioLevel`, CISPO by `surrogate`.
 */
export class GRPOTrainer extends GroupTrainer<GRPOSettings> {
  protected readonly name = "grpo";

  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong, alone or together. */
  constructor(options: GroupTrainerOptions<GRPOConfig>) {
    requireOptions("GRPOTrainer", options, ["model", "tokenizer", "reward", "prompts"]);
    const config = withDefaults(GRPO_DEFAULTS, options.config ?? {});
    checkSettings(config, GRPO_RULES);
    checkGroupCombination(config);
    super(options, config);
  }

  protected override advantagesOf({ scores }: MeasuredGroups): Float32Array {
    const { groupSize, scaleRewards } = this.config;
    return groupAdvantages(scores, groupSize, scaleRewards);
  }

  protected override get loss() {
    const { clipRange, clipRangeHigh = clipRange, klCoefficient, ratioLevel, surrogate } = this.config;
    return {
      level: ratioLevel === "sequence" ? ("sequence-mean" as const) : ("token" as const),
      surrogate: surrogate === "cispo" ? ("truncated" as const) : ("clipped" as const),
      lowestRatio: 1 - clipRange,
      highestRatio: 1 + clipRangeHigh,
      klCoefficient,
    };
  }

  protected override weightsOf(batch: RolloutBatch, minibatch: Int32Array): Float32Array {
    const { lossAggregation, numMinibatches, maxNewTokens } = this.config;
    const answers = minibatch.length;
    switch (lossAggregation) {
      case "grpo":
        return Float32Array.from(minibatch, (rollout) => 1 / (answers * batch.responseTokens([rollout])));
      case "bnpo":
        return new Float32Array(answers).fill(1 / batch.responseTokens(minibatch));
      case "dapo":
        return new Float32Array(answers).fill(Math.min(numMinibatches, batch.size) / batch.responseTokens());
      case "dr_grpo":
        return new Float32Array(answers).fill(1 / (answers * maxNewTokens));
    }
  }
}
