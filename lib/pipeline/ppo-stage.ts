import { loadPrompts } from "../data/prompts.ts";
import { RlhfError } from "../errors.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { RewardModel } from "../model/reward-model.ts";
import type { RewardSource } from "../rewards/reward.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { PPOTrainer } from "../trainers/ppo.ts";
import type { StageSummary } from "./manifest.ts";
import { loadRewardModule } from "./reward-module.ts";
import type { StageContext } from "./run.ts";
import type { PpoStage } from "./schema.ts";
import { describeReport, loadOptions, trainerConfig } from "./settings.ts";

/** Aligns a policy with PPO and saves it in the stage's output directory. */
export async function runPpoStage(settings: PpoStage, context: StageContext): Promise<StageSummary> {
  const prompts = await loadPrompts(settings.prompts_path, { onBadRow: settings.on_bad_row });
  context.log(`  ${describeReport(prompts.report)}`);
  const tokenizer = await Tokenizer.load(settings.model_path);
  using model = await CausalLM.load(settings.model_path, loadOptions(settings));
  const reward = await openReward(settings, model);
  try {
    const trainer = new PPOTrainer({
      model,
      tokenizer,
      reward,
      prompts,
      config: { ...trainerConfig(settings, "numIterations"), ...stopConfig(settings, tokenizer) },
      outputDir: settings.output_dir,
      resume: context.resume,
      signal: context.signal,
    });
    await trainer.train();
    await trainer.save(settings.output_dir);
  } finally {
    if (reward instanceof RewardModel) reward.dispose();
  }
  return {};
}

/**
 * The stage's reward. A reward model may share the policy's weights in memory only when those stay frozen, under an adapter.
 */
function openReward(settings: PpoStage, policy: CausalLM): Promise<RewardSource> {
  if (settings.reward_module !== undefined) return loadRewardModule(settings.reward_module);
  const { device, dtype } = settings;
  const backbone = policy.trainable === "none" ? { backbone: policy } : {};
  return RewardModel.load(settings.reward_model_path as string, { device, dtype, ...backbone });
}

/** Tokens to stop at may be given by id or by content. */
function stopConfig(settings: PpoStage, tokenizer: Tokenizer): { stop?: number[] } {
  if (settings.stop === undefined) return {};
  const stop = settings.stop.map((token) => {
    const id = typeof token === "number" ? token : tokenizer.tokenToId(token);
    if (id === null) {
      throw new RlhfError(
        "ERR_RLHF_CONFIG",
        `stop: the tokenizer has no token ${JSON.stringify(token)}; give a token's id or exact content`,
        { token },
      );
    }
    return id;
  });
  return { stop };
}
