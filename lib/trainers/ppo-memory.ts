import type { TokenizedPrompt } from "../data/types.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { HeadOptions } from "../model/heads.ts";
import type { RewardSource } from "../rewards/reward.ts";
import { comparesInLoss } from "./kl-loss.ts";
import { referenceAdapter, rolloutWorkloads, type TrainerWorkload } from "./memory.ts";
import { VALUE, VALUE_ADAPTER, valueStart } from "./ppo-networks.ts";
import { lossIsInside, type PPOSettings, valueHeadOptions } from "./ppo-settings.ts";
import type { TrainingTarget } from "./target.ts";

/** The models that PPO will have, before the copies among them are made. */
export function ppoWorkloads(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  settings: PPOSettings,
  prompts: readonly TokenizedPrompt[],
): TrainerWorkload[] {
  const { pass, frozen, ...shared } = rolloutWorkloads(model, target, reward, settings, prompts, {
    reference: true,
  });
  const policy = {
    ...shared.policy,
    adapters: adaptersToAdd(model, target, settings),
    divergence: comparesInLoss(settings) || settings.klEstimator === "full",
    lossInside: lossIsInside(settings),
  };
  const { adapter } = target;
  const head = valueHeadOptions(settings);
  if (settings.valueModel === "separate") {
    const value = { heads: { [VALUE]: head }, head: VALUE, evaluates: true, ...pass, statistics: false };
    const { model: start } = valueStart(model, target, reward, settings);
    return [
      { ...policy, networks: [{ adapter }] },
      { model: start, bare: true, trainable: "all", ...value },
      ...frozen,
    ];
  }
  const heads: Record<string, HeadOptions> = model.heads.has(VALUE) ? {} : { [VALUE]: head };
  const networks =
    settings.valueModel === "shared"
      ? [{ adapter, head: VALUE }]
      : [{ adapter }, { adapter: VALUE_ADAPTER, head: VALUE }];
  return [{ ...policy, heads, networks }, ...frozen];
}

/** The value function's adapter, and the frozen copy of one that training goes on from. */
function adaptersToAdd(
  model: CausalLM,
  target: TrainingTarget,
  { valueModel }: PPOSettings,
): Record<string, AdapterOptions> {
  const reference = referenceAdapter(model, target);
  const trained = target.adapter === undefined ? undefined : model.adapters.get(target.adapter);
  if (!trained || valueModel !== "adapter" || model.adapters.has(VALUE_ADAPTER)) return reference;
  return { ...reference, [VALUE_ADAPTER]: trained };
}
