import {
  GRPO_DEFAULTS,
  type GRPOConfig,
  RLOO_DEFAULTS,
  type RLOOConfig,
} from "../trainers/group-settings.ts";
import { GRPOTrainer } from "../trainers/grpo.ts";
import { RLOOTrainer } from "../trainers/rloo.ts";
import type { StageSummary } from "./manifest.ts";
import { runRolloutStage } from "./rollout-stage.ts";
import type { StageContext } from "./run.ts";
import type { GrpoStage, RlooStage } from "./schema.ts";
import { trainerConfig } from "./settings.ts";

/** Aligns a policy with GRPO and saves it in the stage's output directory. */
export function runGrpoStage(settings: GrpoStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<GrpoStage, "num_epochs">, GRPOConfig>(keys);
  return runRolloutStage(
    settings,
    context,
    GRPO_DEFAULTS,
    (given) => new GRPOTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}

/** The same with RLOO. */
export function runRlooStage(settings: RlooStage, context: StageContext): Promise<StageSummary> {
  const { num_epochs: _, ...keys } = settings;
  const config = trainerConfig<Omit<RlooStage, "num_epochs">, RLOOConfig>(keys);
  return runRolloutStage(
    settings,
    context,
    RLOO_DEFAULTS,
    (given) => new RLOOTrainer({ ...given, config: { ...given.config, ...config } }),
  );
}
