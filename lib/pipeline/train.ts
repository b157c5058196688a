import type { CommonSettings } from "../trainers/settings.ts";
import type { Trainer } from "../trainers/trainer.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";

/**
 * Trains, and tells held-out metrics before and after. They are measured before a checkpoint is restored, so "before" is the
 * untrained model also in a run that goes on.
 */
export async function trainAndCompare(
  trainer: Trainer<CommonSettings>,
  names: readonly string[],
  context: StageContext,
): Promise<StageSummary> {
  const before = await trainer.evaluate();
  // Checkpoints are gone on from only when they are of this very stage.
  const { metrics } = await trainer.train({
    signal: context.signal,
    resume: context.resume ? "auto" : false,
  });
  const after = names.every((name) => name in metrics) ? metrics : await trainer.evaluate();
  const measured = names.filter((name) => name in before && name in after);
  return Object.fromEntries(
    measured.flatMap((name) => [
      [`${name}, before`, before[name] as number],
      [`${name}, after`, after[name] as number],
    ]),
  );
}
