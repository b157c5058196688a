import type { TokenizedPrompt } from "../data/types.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { RewardSource } from "../rewards/reward.ts";
import { needsReference } from "./group-networks.ts";
import type { GroupSettings } from "./group-settings.ts";
import { comparesInLoss } from "./kl-loss.ts";
import { rolloutWorkloads, type TrainerWorkload } from "./memory.ts";
import type { TrainingTarget } from "./target.ts";

/** The models that a trainer without a value function will have, before the copies among them are made. */
export function groupWorkloads(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  settings: GroupSettings,
  prompts: readonly TokenizedPrompt[],
): TrainerWorkload[] {
  const reference = needsReference(settings);
  const { policy, frozen } = rolloutWorkloads(model, target, reward, settings, prompts, { reference });
  const generation = policy.generation && { ...policy.generation, answersPerPrompt: settings.groupSize };
  const { adapter } = target;
  const divergence = comparesInLoss(settings);
  return [{ ...policy, generation, networks: [{ adapter }], divergence }, ...frozen];
}
