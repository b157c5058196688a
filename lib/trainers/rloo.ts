import { leaveOneOutAdvantages, sampleDeviation } from "./group-advantages.ts";
import { RLOO_DEFAULTS, RLOO_RULES, type RLOOConfig, type RLOOSettings } from "./group-settings.ts";
import { GroupTrainer, type MeasuredGroups } from "./group-trainer.ts";
import type { OnlineTrainerOptions } from "./online.ts";
import type { RolloutBatch } from "./rollouts.ts";

/**
 * REINFORCE leave-one-out (Ahmadian et al. 2024): the baseline of an answer is the mean score of the others to its prompt, the KL to
 * the starting point counts in the score, and an answer is one action with one ratio, clipped as in PPO.
 */
export class RLOOTrainer extends GroupTrainer<RLOOConfig, RLOOSettings> {
  protected readonly name = "rloo";

  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong, alone or together. */
  constructor(options: OnlineTrainerOptions<RLOOConfig>) {
    super(options, { className: "RLOOTrainer", defaults: RLOO_DEFAULTS, rules: RLOO_RULES });
  }

  protected override advantagesOf({ batch, scores, logProb, refLogProb }: MeasuredGroups): Float32Array {
    const { groupSize, klCoefficient, whitenAdvantages } = this.config;
    const { mask, offsets } = batch.packed;
    const penalized = scores.map((score, s) => {
      if (!refLogProb) return score;
      let kl = 0;
      for (let t = offsets[s] as number; t < (offsets[s + 1] as number); t++)
        if (mask[t] !== 0) kl += (logProb[t] as number) - (refLogProb[t] as number);
      return score - klCoefficient * kl;
    });
    const advantages = leaveOneOutAdvantages(penalized, groupSize);
    if (!whitenAdvantages) return advantages;
    // Their mean is 0 as it is: each group's is.
    const deviation = sampleDeviation(advantages);
    return advantages.map((advantage) => advantage / (deviation + 1e-4));
  }

  protected override get loss() {
    const { clipRange, clipRangeHigh = clipRange } = this.config;
    return {
      level: "sequence-sum" as const,
      lowestRatio: 1 - clipRange,
      highestRatio: 1 + clipRangeHigh,
    };
  }

  /** The mean over answers, whose tokens share one loss. */
  protected override weightsOf(batch: RolloutBatch, minibatch: Int32Array): Float32Array {
    return Float32Array.from(
      minibatch,
      (rollout) => 1 / (minibatch.length * batch.responseTokens([rollout])),
    );
  }
}
