import { groupAdvantages } from "./group-advantages.ts";
import { GRPO_DEFAULTS, GRPO_RULES, type GRPOConfig, type GRPOSettings } from "./group-settings.ts";
import { GroupTrainer, type MeasuredGroups } from "./group-trainer.ts";
import type { OnlineTrainerOptions } from "./online.ts";
import type { RolloutBatch } from "./rollouts.ts";

/**
 * Group-relative policy optimisation (Shao et al. 2024) and its kin: DAPO and Dr. GRPO by `lossAggregation` and `clipRangeHigh`,
 * GSPO by `ratioLevel`, CISPO by `surrogate`.
 */
export class GRPOTrainer extends GroupTrainer<GRPOConfig, GRPOSettings> {
  protected readonly name = "grpo";

  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong, alone or together. */
  constructor(options: OnlineTrainerOptions<GRPOConfig>) {
    super(options, { className: "GRPOTrainer", defaults: GRPO_DEFAULTS, rules: GRPO_RULES });
  }

  protected override advantagesOf({ scores }: MeasuredGroups): Float32Array {
    const { groupSize, scaleRewards } = this.config;
    return groupAdvantages(scores, groupSize, scaleRewards);
  }

  protected override get loss() {
    const {
      clipRange,
      clipRangeHigh = clipRange,
      klCoefficient,
      weighKl,
      ratioLevel,
      surrogate,
    } = this.config;
    return {
      level: ratioLevel === "sequence" ? ("sequence-mean" as const) : ("token" as const),
      surrogate: surrogate === "cispo" ? ("truncated" as const) : ("clipped" as const),
      lowestRatio: 1 - clipRange,
      highestRatio: 1 + clipRangeHigh,
      klCoefficient,
      weighKl,
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
