import type { TokenizedPrompt } from "../data/types.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { type RewardSource, rewardModels } from "../rewards/reward.ts";
import type { GroupSettings } from "./group-settings.ts";
import { frozenWorkload, largestMicroBatch, referenceAdapter, type TrainerWorkload } from "./memory.ts";
import type { TrainingTarget } from "./target.ts";

/** The models that GRPO and RLOO will have, before the copies among them are made. */
export function groupWorkloads(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  settings: GroupSettings,
  prompts: readonly TokenizedPrompt[],
): TrainerWorkload[] {
  const { maxNewTokens, microBatchTokens, batchSize, klCoefficient } = settings;
  const lengths = prompts.map((prompt) => prompt.tokens.length);
  const pass = largestMicroBatch(
    lengths.map((length) => length + maxNewTokens),
    microBatchTokens,
    batchSize,
  );
  const promptTokens = lengths.reduce((longest, length) => Math.max(longest, length), 1);
  const generation = { prompts: batchSize, promptTokens, maxNewTokens };
  const { adapter } = target;
  const adapters = klCoefficient === 0 ? {} : referenceAdapter(model, target);
  const workloads: TrainerWorkload[] = [
    { model, adapters, networks: [{ adapter }], generation, evaluates: true, ...pass },
  ];
  if (klCoefficient !== 0 && target.kind !== "lora")
    workloads.push({ ...frozenWorkload({ model }, pass), bare: true, trainable: "none" });
  for (const member of rewardModels(reward)) {
    if (member.model === model) continue;
    workloads.push({ ...frozenWorkload(member, pass), statistics: false });
  }
  return workloads;
}
