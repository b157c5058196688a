import { join } from "node:path";
import { isRlhfError, RlhfError, throwIfAborted } from "../errors.ts";
import type { MemoryEstimate } from "../model/estimate-memory.ts";
import { type Metrics, MetricsWriter } from "../monitor/metrics.ts";
import { ConsoleProgress, consoleNotes, type ProgressReporter, silentProgress } from "../monitor/progress.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import { BestModel, bestGoal } from "./best.ts";
import {
  type Checkpoint,
  type CheckpointContents,
  type CheckpointState,
  checkSameRun,
  findCheckpoint,
  removeLeftovers,
  restoreCheckpoint,
  saveCheckpoint,
} from "./checkpoint.ts";
import { RunLock } from "./run-lock.ts";
import { learningRateAt } from "./schedule.ts";
import type { LoopSettings } from "./settings.ts";
import {
  PREPARE_OPTIONS,
  type PrepareOptions,
  TRAIN_OPTIONS,
  type TrainingStep,
  type TrainOptions,
  type TrainResult,
} from "./train-options.ts";

export type { PrepareOptions, TrainingStep, TrainOptions, TrainResult };

/** What one step of an algorithm measured. */
export interface StepOutcome {
  readonly metrics: Metrics;
  /** Tokens it trained on, or made: for the speed. Left out where there are none. */
  readonly tokens?: number;
}

/** Settings that steer how a run is watched, not what it computes; a run may be resumed with others. */
export const FREE_SETTINGS: ReadonlySet<string> = new Set([
  "evalSteps",
  "evalEpisodes",
  "evalEpisodeSteps",
  "saveSteps",
  "saveTotalLimit",
  "loggingSteps",
  "recomputeLayers",
  "memoryBudget",
]);

/** What a run began from. */
export interface RunOrigin extends Pick<CheckpointState, "data" | "models"> {
  /** What decides the run's course as its settings do. */
  readonly settings?: Readonly<Record<string, unknown>>;
}

/**
 * The one training loop: learning-rate schedule, evaluation, metrics, checkpoints, resumption. An algorithm says what one step
 * is (`runStep`), what a checkpoint holds (`checkpointContents`, `algorithmState`) and how its result is saved.
 */
export abstract class TrainingLoop<
  Settings extends LoopSettings = LoopSettings,
  State extends object = Readonly<Record<string, number>>,
> implements Disposable
{
  /** All settings, defaults filled in. */
  readonly config: Settings;
  /** Where metrics.jsonl and checkpoints go; undefined: nowhere. */
  readonly outputDir: string | undefined;
  protected abstract readonly name: string;
  /** Metrics that the console shows. */
  protected abstract readonly shownMetrics: readonly string[];
  /** What to do where updates are left out because a loss or gradient is not finite. */
  protected readonly cureOfSkipped: string =
    "lower the learning rate, or let it rise over more warm-up steps";
  #step = 0;
  #skippedUpdates = 0;
  /** The step of the newest checkpoint that this trainer wrote or went on from. */
  #savedStep = 0;
  #origin: RunOrigin | null = null;
  #best: BestModel | null = null;
  #busy = false;
  #disposed = false;

  protected constructor(config: Settings, outputDir: string | undefined) {
    this.config = config;
    this.outputDir = outputDir;
  }

  /** Steps of the whole run. */
  abstract readonly totalSteps: number;
  /** Measures held-out data; metrics named "eval/…", none where there is no such data. */
  abstract evaluate(signal?: AbortSignal): Promise<Metrics>;
  /** Writes what was trained, by default into `final` in `outputDir`. */
  abstract save(directory?: string): Promise<void>;
  /** Frees what the trainer made beside JavaScript's own memory; called once. */
  protected release(): void {}
  /** One step of the algorithm at this learning rate. */
  protected abstract runStep(learningRate: number): Promise<StepOutcome>;
  /** Weights and what optimizers keep of them. */
  protected abstract checkpointContents(): CheckpointContents;
  /** What the run begins from; asked for once, before the first step, and only where there may be checkpoints. */
  protected abstract origin(): Promise<RunOrigin>;
  /** Warnings that a finished step gives rise to, with the cure; each is to be told once. */
  protected warningsOf(_step: TrainingStep): readonly string[] {
    return [];
  }
  /** What the algorithm keeps from step to step, beside the step counter, as JSON can hold it. */
  protected abstract algorithmState(): State;
  protected abstract restoreAlgorithmState(state: State): void;
  /** Called before the first step, and before each that is asked for by itself; costs nothing when it is called again. */
  protected begin({ signal, progress }: PrepareOptions = {}): Promise<void> {
    return this.prepare({ signal, progress });
  }
  /** Throws gradients away that a failed step may have left; never rejects. */
  protected discardGradients(): Promise<void> {
    return Promise.resolve();
  }

  /** The memory that the run will hold, by use, before it is taken. */
  abstract estimateMemory(): Promise<MemoryEstimate>;

  /**
   * Makes what the first step, an evaluation and a restored checkpoint need. They call it themselves; where it takes long, an
   * earlier call shows its progress and can be stopped.
   */
  async prepare(options: PrepareOptions = {}): Promise<void> {
    refuseUnknownOptions("prepare", options, PREPARE_OPTIONS);
    await this.makeReady(options);
  }

  /** What `prepare` does; nothing where a trainer needs nothing. */
  protected async makeReady(_options: PrepareOptions): Promise<void> {}

  /** Steps done. */
  get step(): number {
    return this.#step;
  }

  /** Updates left out because a loss or gradient was not finite. */
  get skippedUpdates(): number {
    return this.#skippedUpdates;
  }

  /** The learning rate of the next step. */
  get learningRate(): number {
    return learningRateAt(this.#step, { ...this.config, totalSteps: this.totalSteps });
  }

  /** Throws ERR_RLHF_DISPOSED after `dispose`. */
  protected requireAlive(): void {
    if (!this.#disposed) return;
    throw new RlhfError(
      "ERR_RLHF_DISPOSED",
      `this ${this.name} trainer was used after dispose(); make another one`,
    );
  }

  /** Runs a part of training, refused while another one runs: both would count the same step, from the same gradients and files. */
  async #alone<T>(run: () => Promise<T>): Promise<T> {
    this.requireAlive();
    if (this.#busy)
      throw new RlhfError(
        "ERR_RLHF_BUSY",
        `this ${this.name} trainer is training already: await the train() or trainStep() that was called before`,
      );
    this.#busy = true;
    try {
      return await run();
    } finally {
      this.#busy = false;
    }
  }

  /**
   * Trains to the end of the run; see `steps`. Throws ERR_RLHF_ABORTED after a checkpoint when the signal is raised.
   */
  train(options: TrainOptions = {}): Promise<TrainResult> {
    return this.#alone(() => this.#train(options));
  }

  async #train(options: TrainOptions): Promise<TrainResult> {
    refuseUnknownOptions("train", options, TRAIN_OPTIONS);
    using _lock = this.#lock();
    await this.#start({ ...options, progress: options.progress ?? consoleNotes });
    const progress =
      options.progress ??
      new ConsoleProgress({
        label: this.name,
        totalSteps: this.totalSteps,
        startStep: this.#step,
        show: this.shownMetrics,
      });
    let metrics: Metrics = {};
    for await (const step of this.#loop({ ...options, progress })) metrics = { ...metrics, ...step.metrics };
    return { steps: this.#step, metrics };
  }

  /**
   * Trains step by step: `for await (const { step, metrics } of trainer.steps())`. Leaving the loop ends training; calling
   * `steps` or `train` again goes on. Throws ERR_RLHF_LOCKED while another process writes to `outputDir`, ERR_RLHF_CHECKPOINT where
   * the checkpoint there is of other settings, data or models, and ERR_RLHF_BUSY while the trainer is training.
   */
  async *steps(options: TrainOptions = {}): AsyncGenerator<TrainingStep, void, undefined> {
    const loop = this.#loop(options);
    try {
      for (;;) {
        // While the caller looks at a step, the trainer is free.
        const next = await this.#alone(() => loop.next());
        if (next.done) return;
        yield next.value;
      }
    } finally {
      await loop.return();
    }
  }

  async *#loop(options: TrainOptions): AsyncGenerator<TrainingStep, void, undefined> {
    refuseUnknownOptions("train", options, TRAIN_OPTIONS);
    const { signal, progress = silentProgress } = options;
    throwIfAborted(signal, `${this.name} training`);
    using lock = this.#lock();
    await this.#start(options);
    using metricsFile = this.#openMetrics();
    try {
      while (this.#step < this.totalSteps) {
        const metrics = await this.#finishedStep(progress).catch(async (error: unknown) => {
          // Rewards are asked for before anything is updated: what was reached is whole, and a service may come back.
          if (isRlhfError(error) && error.code === "ERR_RLHF_REWARD")
            await this.#checkpoint(metricsFile, progress);
          throw error;
        });
        const step = this.#step;
        if (step % this.config.loggingSteps === 0 || this.#isEvaluated(step))
          metricsFile?.write(step, metrics);
        lock?.requireHeld();
        if (this.#isEvaluated(step)) await this.#keepBest(metrics, progress);
        if (signal?.aborted || this.#isSaved(step)) await this.#checkpoint(metricsFile, progress);
        throwIfAborted(signal, `${this.name} training after step ${step} of ${this.totalSteps}`);
        yield { step, metrics };
      }
      if (this.#skippedUpdates > 0 && !this.skipsAreUsual)
        progress.note(
          `${this.name}: warning: ${this.#skippedUpdates} updates in all were left out because a loss or gradient was not finite`,
        );
    } finally {
      progress.finish();
    }
  }

  /**
   * Runs and counts one step of the algorithm. One that fails before it updates anything leaves the trainer as it was, so that it
   * can be tried again.
   */
  protected countedStep(run: (learningRate: number) => Promise<StepOutcome>): Promise<StepOutcome> {
    return this.#alone(() => this.#counted(run));
  }

  async #counted(run: (learningRate: number) => Promise<StepOutcome>): Promise<StepOutcome> {
    await this.begin();
    await this.#findOrigin();
    const learningRate = this.learningRate;
    const began = performance.now();
    const state = this.algorithmState();
    const { metrics, tokens } = await run(learningRate).catch(async (error: unknown) => {
      this.restoreAlgorithmState(state);
      await this.discardGradients();
      throw error;
    });
    this.#step++;
    const seconds = (performance.now() - began) / 1000;
    const speed: Metrics = tokens === undefined ? {} : { "tokens/s": tokens / seconds };
    return { metrics: { ...metrics, ...this.updateMetrics(), lr: learningRate, ...speed }, tokens };
  }

  /** Whether held-out data is measured after a step: after the last one, and every `evalSteps`. */
  #isEvaluated(step: number): boolean {
    const { evalSteps } = this.config;
    return step === this.totalSteps || (evalSteps !== undefined && step % evalSteps === 0);
  }

  async #finishedStep(progress: ProgressReporter): Promise<Metrics> {
    const skippedBefore = this.#skippedUpdates;
    const outcome = await this.#counted((learningRate) => this.runStep(learningRate));
    const metrics = this.#isEvaluated(this.#step)
      ? { ...outcome.metrics, ...(await this.evaluate()) }
      : outcome.metrics;
    progress.update(this.#step, metrics, outcome.tokens);
    const warnings = [...this.warningsOf({ step: this.#step, metrics })];
    if (skippedBefore === 0 && this.#skippedUpdates > 0 && !this.skipsAreUsual)
      warnings.push(
        `an update of step ${this.#step} was left out because its loss or gradient was not finite: ${this.cureOfSkipped}`,
      );
    for (const warning of warnings) progress.note(`${this.name}: warning: ${warning}`);
    return metrics;
  }

  /** Whether updates are left out in the normal course of things, too. */
  protected get skipsAreUsual(): boolean {
    return false;
  }

  /** What every step's metrics tell of the updates, whatever the algorithm. */
  protected updateMetrics(): Metrics {
    return {};
  }

  /** Counts an update that was left out, because the loss or the gradient was not finite. */
  protected countSkipped(): void {
    this.#skippedUpdates++;
  }

  /** The directory to save to when none is named. */
  protected saveDirectory(directory: string | undefined): string {
    if (directory !== undefined && (typeof directory !== "string" || directory === ""))
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `save: expected the path of a directory, got ${JSON.stringify(directory)}`,
      );
    if (directory !== undefined) return directory;
    if (this.outputDir === undefined) {
      throw new RlhfError("ERR_RLHF_ARGUMENT", "save: name a directory, or give the trainer an outputDir");
    }
    return join(this.outputDir, "final");
  }

  async #start(options: TrainOptions): Promise<void> {
    await this.begin(options);
    await this.#findOrigin();
    if (this.#step > 0 || this.outputDir === undefined) return;
    const checkpoint = options.resume === false ? null : await findCheckpoint(this.outputDir);
    if (checkpoint) await this.#restore(checkpoint, this.outputDir);
    const { bestMetric, bestMetricGoal } = this.config;
    if (bestMetric === undefined) return;
    this.#best = await BestModel.open(
      this.outputDir,
      bestGoal(bestMetric, bestMetricGoal),
      checkpoint === null,
    );
  }

  async #restore(checkpoint: Checkpoint, outputDir: string): Promise<void> {
    checkSameRun(checkpoint, this.#state());
    await restoreCheckpoint(checkpoint, this.checkpointContents());
    this.restoreAlgorithmState(checkpoint.state.algorithm as State);
    this.#step = checkpoint.state.step;
    this.#savedStep = this.#step;
    this.#skippedUpdates = checkpoint.state.skippedUpdates;
    await removeLeftovers(outputDir, this.#step, this.config.saveTotalLimit);
  }

  #lock(): RunLock | null {
    return this.outputDir === undefined ? null : RunLock.acquire(this.outputDir);
  }

  async #findOrigin(): Promise<void> {
    if (this.#origin === null && this.outputDir !== undefined) this.#origin = await this.origin();
  }

  #state(): CheckpointState {
    const own = Object.entries(this.config).filter(([name]) => !FREE_SETTINGS.has(name));
    const { data = "", models = [], settings = {} } = this.#origin ?? {};
    return {
      trainer: this.name,
      step: this.#step,
      skippedUpdates: this.#skippedUpdates,
      settings: { ...Object.fromEntries(own), ...settings, totalSteps: this.totalSteps },
      data,
      models,
      algorithm: this.algorithmState(),
    };
  }

  #openMetrics(): MetricsWriter | undefined {
    if (this.outputDir === undefined) return undefined;
    return new MetricsWriter(
      join(this.outputDir, "metrics.jsonl"),
      this.#step === 0 ? undefined : this.#step,
    );
  }

  async #keepBest(metrics: Metrics, progress: ProgressReporter): Promise<void> {
    const kept = await this.#best?.keep(this.#step, metrics, (directory) => this.save(directory));
    if (kept)
      progress.note(`${this.name}: ${this.config.bestMetric} is the best so far; the model is in best`);
  }

  #isSaved(step: number): boolean {
    const { saveSteps } = this.config;
    return saveSteps !== undefined && step % saveSteps === 0;
  }

  async #checkpoint(metricsFile: MetricsWriter | undefined, progress: ProgressReporter): Promise<void> {
    if (this.outputDir === undefined || this.#step === this.#savedStep) return;
    // A checkpoint must not outlive, in a crash of the machine, the records of its steps.
    metricsFile?.sync();
    const { saveTotalLimit } = this.config;
    const contents = this.checkpointContents();
    const directory = await saveCheckpoint(this.outputDir, this.#state(), contents, saveTotalLimit);
    this.#savedStep = this.#step;
    progress.note(`${this.name}: checkpoint in ${directory}`);
  }

  /** Frees what the trainer made; models that were given to it stay. It trains no more: ERR_RLHF_DISPOSED. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
