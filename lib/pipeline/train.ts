import type { Trainer, TrainOptions } from "../trainers/trainer.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";

/** How a stage trains: interruptible, and going on only from checkpoints of this very stage. */
export function trainOptions(context: StageContext): TrainOptions {
  return { signal: context.signal, resume: context.resume ? "auto" : false };
}

/**
 * Trains, and tells held-out metrics before and after. They are measured before a checkpoint is restored, so "before" is the
 * untrained model also in a run that goes on.
 */
export async function trainAndCompare(
  trainer: Trainer,
  names: readonly string[],
  context: StageContext,
): Promise<StageSummary> {
  const before = await trainer.evaluate();
  const { metrics } = await trainer.train(trainOptions(context));
  const after = names.every((name) => name in metrics) ? metrics : await trainer.evaluate();
  const measured = names.filter((name) => name in before && name in after);
  return Object.fromEntries(
    measured.flatMap((name) => [
      [`${name}, before`, before[name] as number],
      [`${name}, after`, after[name] as number],
    ]),
  );
}
