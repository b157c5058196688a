import type { TokenizedPrompt } from "../data/types.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { HeadOptions } from "../model/heads.ts";
import { type RewardSource, rewardModels } from "../rewards/reward.ts";
import { frozenWorkload, largestMicroBatch, referenceAdapter, type TrainerWorkload } from "./memory.ts";
import { VALUE, VALUE_ADAPTER, valueStart } from "./ppo-networks.ts";
import { type PPOSettings, valueHeadOptions } from "./ppo-settings.ts";
import type { TrainingTarget } from "./target.ts";

/** The models that PPO will have, before the copies among them are made. */
export function ppoWorkloads(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  settings: PPOSettings,
  prompts: readonly TokenizedPrompt[],
): TrainerWorkload[] {
  const { maxNewTokens, microBatchTokens, batchSize, valueModel } = settings;
  const lengths = prompts.map((prompt) => prompt.tokens.length);
  const pass = largestMicroBatch(
    lengths.map((length) => length + maxNewTokens),
    microBatchTokens,
    batchSize,
  );
  const promptTokens = lengths.reduce((longest, length) => Math.max(longest, length), 1);
  const generation = { prompts: batchSize, promptTokens, maxNewTokens };
  const { adapter } = target;
  const head = valueHeadOptions(settings);
  const heads: Record<string, HeadOptions> = model.heads.has(VALUE) ? {} : { [VALUE]: head };
  const adapters = adaptersToAdd(model, target, settings);
  const policy: TrainerWorkload = { model, adapters, generation, evaluates: true, ...pass };
  const workloads: TrainerWorkload[] = [];
  if (valueModel === "separate") {
    workloads.push({ ...policy, networks: [{ adapter }] });
    const value = { heads: { [VALUE]: head }, head: VALUE, evaluates: true, ...pass, statistics: false };
    const { model: start } = valueStart(model, target, reward, settings);
    workloads.push({ model: start, bare: true, trainable: "all", dtype: "float32", ...value });
  } else {
    const networks =
      valueModel === "shared"
        ? [{ adapter, head: VALUE }]
        : [{ adapter }, { adapter: VALUE_ADAPTER, head: VALUE }];
    workloads.push({ ...policy, heads, networks });
  }
  if (target.kind !== "lora")
    workloads.push({ ...frozenWorkload({ model }, pass), bare: true, trainable: "none" });
  for (const member of typeof reward === "function" ? [] : rewardModels(reward)) {
    if (member.model === model) continue;
    workloads.push({ ...frozenWorkload(member, pass), statistics: false });
  }
  return workloads;
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
