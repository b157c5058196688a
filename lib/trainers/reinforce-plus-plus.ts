import { estimateAdvantages } from "./experience.ts";
import { groupAdvantages } from "./group-advantages.ts";
import {
  checkReinforceCombination,
  REINFORCE_DEFAULTS,
  REINFORCE_RULES,
  type ReinforcePlusPlusConfig,
  type ReinforcePlusPlusSettings,
} from "./group-settings.ts";
import { GroupTrainer, type MeasuredGroups } from "./group-trainer.ts";
import type { OnlineTrainerOptions } from "./online.ts";
import type { RolloutBatch } from "./rollouts.ts";

/**
 * REINFORCE++ (Hu 2025): PPO without a value function. A token's advantage is what is rewarded from it on, the KL penalty of every
 * token and the answer's score, made mean 0 and deviation 1 over all tokens of the batch; with `baseline` "group" after the mean score
 * of the prompt's answers is taken off (REINFORCE++-baseline).
 */
export class ReinforcePlusPlusTrainer extends GroupTrainer<
  ReinforcePlusPlusConfig,
  ReinforcePlusPlusSettings
> {
  protected readonly name = "reinforce-plus-plus";
  protected override readonly tokenAdvantages = true;

  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong, alone or together. */
  constructor(options: OnlineTrainerOptions<ReinforcePlusPlusConfig>) {
    super(options, {
      className: "ReinforcePlusPlusTrainer",
      defaults: REINFORCE_DEFAULTS,
      rules: REINFORCE_RULES,
      check: checkReinforceCombination,
    });
  }

  protected override async advantagesOf(measured: MeasuredGroups): Promise<Float32Array> {
    const { batch, logProb, refLogProb } = measured;
    const { groupSize, baseline, klCoefficient, klEstimator, gamma } = this.config;
    const scores =
      baseline === "group" ? groupAdvantages(measured.scores, groupSize, "none") : measured.scores;
    // Where all values are 0 and λ is 1, generalised advantage estimation adds up the discounted rewards from each token on.
    const value = new Float32Array(logProb.length);
    const { advantage } = await estimateAdvantages(
      this.model.engine,
      { batch, scores, logProb, refLogProb: refLogProb ?? logProb, divergence: null, value },
      klCoefficient,
      { klEstimator, gamma, lambda: 1, whitenRewards: false, whitenAdvantages: true },
    );
    return advantage;
  }

  protected override get loss() {
    const { clipRange, clipRangeHigh = clipRange } = this.config;
    return { lowestRatio: 1 - clipRange, highestRatio: 1 + clipRangeHigh };
  }

  /** The mean over the tokens of a minibatch. */
  protected override weightsOf(batch: RolloutBatch, minibatch: Int32Array): Float32Array {
    return new Float32Array(minibatch.length).fill(1 / batch.responseTokens(minibatch));
  }
}
