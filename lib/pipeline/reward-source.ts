import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { isCalledReward, type RewardCallOptions } from "../rewards/calls.ts";
import { loadReward } from "../rewards/ensemble.ts";
import { FunctionReward } from "../rewards/function-reward.ts";
import { HttpReward } from "../rewards/http-reward.ts";
import type { RewardSource } from "../rewards/reward.ts";
import { loadRewardModule } from "./reward-module.ts";
import type { PpoStage } from "./schema.ts";

/** The settings of a stage that say where its rewards come from. */
export type RewardSourceSettings = Pick<
  PpoStage,
  Extract<keyof PpoStage, `reward_${string}`> | "device" | "dtype" | "compute" | "combine" | "kappa"
>;

/**
 * The stage's reward. A reward model may share the policy's weights in memory only when those stay frozen, under an adapter.
 */
export async function openReward(settings: RewardSourceSettings, policy: CausalLM): Promise<RewardSource> {
  const calls = callOptions(settings);
  if (settings.reward_url !== undefined) {
    const { reward_headers: headers, reward_batch_size: batchSize } = settings;
    return new HttpReward(settings.reward_url, { ...calls, headers, batchSize });
  }
  if (settings.reward_module !== undefined) return await openModule(settings.reward_module, calls);
  const { device, dtype, compute, combine, kappa } = settings;
  const backbone = policy.trainable === "none" ? { backbone: policy } : {};
  const options = { device, dtype, compute, combine, kappa, ...backbone };
  return await loadReward(settings.reward_model_path as string | string[], options);
}

/** Frees the models that `openReward` loaded. */
export function closeReward(reward: RewardSource): void {
  if (typeof reward !== "function" && !isCalledReward(reward)) reward.dispose();
}

function callOptions(settings: RewardSourceSettings): RewardCallOptions {
  const { reward_concurrency: concurrency, reward_timeout: seconds, reward_retries: retries } = settings;
  const timeoutMs = typeof seconds === "number" ? Math.max(1, Math.round(seconds * 1000)) : seconds;
  return { concurrency, timeoutMs, retries, cacheSize: settings.reward_cache };
}

async function openModule(file: string, calls: RewardCallOptions): Promise<RewardSource> {
  const reward = await loadRewardModule(file);
  if (typeof reward === "function") return new FunctionReward(reward, calls);
  if (Object.values(calls).some((value) => value !== undefined))
    throw new RlhfError(
      "ERR_RLHF_CONFIG",
      `${file}: its default export says itself how it is called: take reward_concurrency, reward_timeout, reward_retries and reward_cache out of the stage`,
      { file },
    );
  return reward;
}
