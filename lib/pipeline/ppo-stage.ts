import { PPOTrainer } from "../trainers/ppo.ts";
import { PPO_DEFAULTS, type PPOConfig } from "../trainers/ppo-settings.ts";
import type { StageSummary } from "./manifest.ts";
import { runRolloutStage } from "./rollout-stage.ts";
import type { StageContext } from "./run.ts";
import type { PpoStage } from "./schema.ts";
import { trainerConfig } from "./settings.ts";

/** Aligns a policy with PPO and saves it in the stage's output directory. */
export function runPpoStage(settings: PpoStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<PpoStage, "num_epochs">, PPOConfig>(keys);
  return runRolloutStage(
    settings,
    context,
    PPO_DEFAULTS,
    (given) => new PPOTrainer({ ...given, config: { ...given.config, ...config } }),
    // Scores less their own running mean show no progress.
    settings.shape_rewards ? "objective/raw_scores" : "objective/scores",
  );
}
