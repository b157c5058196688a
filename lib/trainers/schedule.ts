/** The course of the learning rate after the warm-up. "linear" and "cosine" fall towards 0 at the last step. */
export type Schedule = "constant" | "linear" | "cosine";

export interface ScheduleSettings {
  /** The peak. */
  readonly learningRate: number;
  /** Steps in which it rises linearly to the peak; the first step is already above 0. */
  readonly warmupSteps: number;
  readonly totalSteps: number;
  readonly schedule: Schedule;
}

/** The learning rate of a step, counted from 0. */
export function learningRateAt(step: number, settings: ScheduleSettings): number {
  const { learningRate, warmupSteps, totalSteps, schedule } = settings;
  if (step < warmupSteps) return (learningRate * (step + 1)) / warmupSteps;
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps));
  switch (schedule) {
    case "constant":
      return learningRate;
    case "linear":
      return learningRate * (1 - progress);
    case "cosine":
      return (learningRate * (1 + Math.cos(Math.PI * progress))) / 2;
  }
}
