import type { MemoryEstimate } from "../model/estimate-memory.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { type ProgressReporter, silentProgress } from "../monitor/progress.ts";
import type { LoopSettings } from "../trainers/settings.ts";
import { Trainer } from "../trainers/trainer.ts";
import type { TrainingLoop } from "../trainers/training-loop.ts";
import type { StageSummary } from "./manifest.ts";
import type { StageContext } from "./run.ts";

/** Held-out metrics of a stage before and after training; none where it has no held-out data. */
export interface Comparison {
  readonly before: Metrics;
  readonly after: Metrics;
}

/** What a stage ends with that is to be estimated and not run. */
export class StageEstimated extends Error {
  readonly estimate: MemoryEstimate;

  constructor(estimate: MemoryEstimate) {
    super("the memory of a stage was estimated");
    this.estimate = estimate;
  }
}

/**
 * Trains, when the memory of a language model is there, and measures held-out data before and after; or tells how much memory that is.
 * "Before" is measured before a checkpoint is restored, so it is the untrained model also in a run that goes on.
 */
export async function trainAndCompare(
  trainer: TrainingLoop<LoopSettings, object>,
  context: StageContext,
): Promise<Comparison> {
  if (context.estimates) throw new StageEstimated(await trainer.estimateMemory());
  if (trainer instanceof Trainer) await trainer.checkMemory({ progress: notesTo(context) });
  const { signal } = context;
  await trainer.prepare({ signal, progress: notesTo(context) });
  const before = await trainer.evaluate(signal);
  // Checkpoints are gone on from only when they are of this very stage.
  const { metrics } = await trainer.train({
    signal,
    resume: context.resume ? "auto" : false,
  });
  // A run resumed at its very end has no last step to take them from.
  const measured = Object.keys(before).every((name) => name in metrics);
  return { before, after: measured ? metrics : await trainer.evaluate() };
}

function notesTo(context: StageContext): ProgressReporter {
  return { ...silentProgress, note: (text) => context.log(`  ${text}`) };
}

/** One metric of a comparison for a stage's summary. */
export function beforeAndAfter(comparison: Comparison, name: string): StageSummary {
  const { before, after } = comparison;
  const [first, last] = [before[name], after[name]];
  if (first === undefined || last === undefined) return {};
  return { [`${name} before`]: first, [`${name} after`]: last };
}
