import { RlhfError } from "../errors.ts";
import { type CalledReward, isCalledReward } from "../rewards/calls.ts";
import type { RewardFunction } from "../rewards/function-reward.ts";
import { importUserModule } from "./user-module.ts";

/**
 * Imports a module whose default export is a reward function, or one with settings of how it is called. Throws ERR_RLHF_REWARD when it cannot be imported (TypeScript
 * needs Node 22.18 or later, or tsx) or exports something else.
 */
export async function loadRewardModule(file: string): Promise<RewardFunction | CalledReward> {
  const module = await importUserModule(file, "the reward module", "ERR_RLHF_REWARD");
  if (isCalledReward(module.default)) return module.default;
  if (typeof module.default !== "function") {
    const message = `${file}: the reward module must have a default export (prompt, response) => number, or a FunctionReward, BatchReward or HttpReward`;
    throw new RlhfError("ERR_RLHF_REWARD", message, { file });
  }
  return module.default as RewardFunction;
}
