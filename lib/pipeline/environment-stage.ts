import type { Environment } from "../environment/environment.ts";
import type { EnvironmentPPOConfig } from "../environment/settings.ts";
import { RlhfError } from "../errors.ts";
import { EnvironmentPPOTrainer } from "../trainers/environment-ppo.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";
import type { EnvironmentPpoStage } from "./schema.ts";
import { trainerConfig } from "./settings.ts";
import { beforeAndAfter, trainAndCompare } from "./train.ts";
import { importUserModule } from "./user-module.ts";

/** Imports a module whose default export makes environments. Throws ERR_RLHF_CONFIG when it cannot be imported or exports something else. */
async function loadEnvironments(file: string): Promise<(index: number) => Environment> {
  const { default: make } = await importUserModule(file, "the environment module", "ERR_RLHF_CONFIG");
  if (typeof make === "function") return make as (index: number) => Environment;
  throw new RlhfError(
    "ERR_RLHF_CONFIG",
    `${file}: the environment module must have a default export (index) => Environment`,
    { file },
  );
}

/** Learns a control task with PPO and saves the policy in the stage's output directory. */
export async function runEnvironmentPpoStage(
  settings: EnvironmentPpoStage,
  context: StageContext,
): Promise<StageSummary> {
  const { device } = settings;
  using trainer = new EnvironmentPPOTrainer({
    environment: await loadEnvironments(settings.environment_module),
    config: trainerConfig<EnvironmentPpoStage, EnvironmentPPOConfig>(settings),
    outputDir: settings.output_dir,
    ...(device === undefined ? {} : { device }),
  });
  const comparison = await trainAndCompare(trainer, context);
  await trainer.save(settings.output_dir);
  return beforeAndAfter(comparison, "eval/return");
}
