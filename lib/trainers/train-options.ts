import type { Metrics } from "../monitor/metrics.ts";
import type { ProgressReporter } from "../monitor/progress.ts";
import type { NamesOf } from "../option-names.ts";

/** One finished step: its number, counted from 1, and what was measured in it. */
export interface TrainingStep {
  readonly step: number;
  readonly metrics: Metrics;
}

export interface TrainOptions {
  /** Raised: the step that runs is finished, a checkpoint is written, and ERR_RLHF_ABORTED is thrown. */
  readonly signal?: AbortSignal;
  /** "auto" (default) goes on from the newest whole checkpoint of `outputDir`; false starts anew. */
  readonly resume?: "auto" | false;
  /** Where progress is told. Default: the console for `train`, nowhere for `steps`. */
  readonly progress?: ProgressReporter;
}

export type PrepareOptions = Pick<TrainOptions, "signal" | "progress">;

export const PREPARE_OPTIONS: NamesOf<PrepareOptions> = { signal: true, progress: true };
export const TRAIN_OPTIONS: NamesOf<TrainOptions> = { ...PREPARE_OPTIONS, resume: true };

/** What `train` achieved. */
export interface TrainResult {
  /** Steps done in all, earlier runs included. */
  readonly steps: number;
  /** Of the last step, with the last evaluation's under "eval/…". */
  readonly metrics: Metrics;
}
