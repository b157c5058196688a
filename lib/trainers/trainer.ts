import { join } from "node:path";
import { Random } from "../data/random.ts";
import type { Engine } from "../engine/engine.ts";
import { checkMemoryBudget, describeMemory, formatBytes } from "../engine/memory.ts";
import { isRlhfError, RlhfError, throwIfAborted } from "../errors.ts";
import { estimateMemory, type MemoryEstimate } from "../model/estimate-memory.ts";
import { hashModel } from "../model/fingerprint.ts";
import { type Metrics, MetricsWriter } from "../monitor/metrics.ts";
import { ConsoleProgress, consoleNotes, type ProgressReporter, silentProgress } from "../monitor/progress.ts";
import { BestModel, bestGoal } from "./best.ts";
import {
  type Checkpoint,
  type CheckpointState,
  checkSameRun,
  findCheckpoint,
  type KeptWeights,
  type ModelFingerprint,
  removeLeftovers,
  restoreParts,
  saveCheckpoint,
  type TrainedPart,
} from "./checkpoint.ts";
import type { TrainerWorkload } from "./memory.ts";
import { RunLock } from "./run-lock.ts";
import { learningRateAt } from "./schedule.ts";
import type { CommonSettings } from "./settings.ts";

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

/** What `train` achieved. */
export interface TrainResult {
  /** Steps done in all, earlier runs included. */
  readonly steps: number;
  /** Of the last step, with the last evaluation's under "eval/…". */
  readonly metrics: Metrics;
}

/** What one step of an algorithm measured. */
export interface StepOutcome {
  readonly metrics: Metrics;
  /** Tokens it trained on, or made: for the speed. */
  readonly tokens: number;
}

/** What one optimizer step did. */
export interface UpdateOutcome {
  readonly gradNorm: number;
  readonly skipped: boolean;
}

/** Settings that steer how a run is watched, not what it computes; a run may be resumed with others. */
export const FREE_SETTINGS: ReadonlySet<string> = new Set([
  "evalSteps",
  "saveSteps",
  "saveTotalLimit",
  "loggingSteps",
  "recomputeLayers",
  "memoryBudget",
]);

/**
 * The one training loop: learning-rate schedule, evaluation, metrics, checkpoints, resumption. An algorithm says what one step
 * is (`runStep`), which parameters it trains (`parts`) and how its result is saved.
 */
export abstract class Trainer<Settings extends CommonSettings = CommonSettings> implements Disposable {
  /** All settings, defaults filled in. */
  readonly config: Settings;
  /** Where metrics.jsonl and checkpoints go; undefined: nowhere. */
  readonly outputDir: string | undefined;
  protected abstract readonly name: string;
  /** Metrics that the console shows. */
  protected abstract readonly shownMetrics: readonly string[];
  #step = 0;
  #skippedUpdates = 0;
  /** The step of the newest checkpoint that this trainer wrote or went on from. */
  #savedStep = 0;
  #models: readonly ModelFingerprint[] | null = null;
  #best: BestModel | null = null;
  #memoryChecked = false;

  protected constructor(config: Settings, outputDir: string | undefined) {
    this.config = config;
    this.outputDir = outputDir;
  }

  /** Steps of the whole run. */
  abstract readonly totalSteps: number;
  /** Measures held-out data; metrics named "eval/…", none where there is no such data. */
  abstract evaluate(signal?: AbortSignal): Promise<Metrics>;
  /** Writes the trained model as a Hugging Face directory, by default `final` in `outputDir`. */
  abstract save(directory?: string): Promise<void>;
  /** Frees what the trainer made; models that were given to it stay. */
  abstract dispose(): void;

  /** One step of the algorithm at this learning rate. */
  protected abstract runStep(learningRate: number): Promise<StepOutcome>;
  /** What is trained, and therefore kept in checkpoints. */
  protected abstract readonly parts: readonly TrainedPart[];
  /** Hash of the training data. */
  protected abstract readonly dataHash: string;
  /** Weights that a checkpoint has to hold although no optimizer updates them. */
  protected get keptWeights(): readonly KeptWeights[] {
    return [];
  }
  /** Warnings that a finished step gives rise to, with the cure; each is to be told once. */
  protected warningsOf(_step: TrainingStep): readonly string[] {
    return [];
  }
  /** What the algorithm keeps from step to step, beside the step counter. */
  protected algorithmState(): Readonly<Record<string, number>> {
    return {};
  }
  protected restoreAlgorithmState(_state: Readonly<Record<string, number>>): void {}

  /**
   * Makes what the first step, an evaluation and a restored checkpoint need. They call it themselves; where it takes long, an
   * earlier call shows its progress and can be stopped.
   */
  async prepare(_options: Pick<TrainOptions, "signal" | "progress"> = {}): Promise<void> {}

  /** The models of a run at their largest passes, for the memory estimate. */
  protected abstract memoryWorkloads(): readonly TrainerWorkload[];

  /**
   * The memory that the engine will hold for this run, by use, before it is taken. Results of losses, and other models of the same
   * engine, come on top.
   */
  estimateMemory(): Promise<MemoryEstimate> {
    const { recomputeLayers } = this.config;
    const workloads = this.memoryWorkloads().map((workload) => ({ recomputeLayers, ...workload }));
    return estimateMemory(workloads, { threads: this.#engine.info.threads });
  }

  get #engine(): Engine {
    return (this.memoryWorkloads()[0] as TrainerWorkload).model.engine;
  }

  /**
   * Tells the estimate, and throws ERR_RLHF_MEMORY, with the setting to lower, when it is over the budget. Training begins with it;
   * an earlier call comes before an evaluation.
   */
  async checkMemory({ progress = silentProgress }: Pick<TrainOptions, "progress"> = {}): Promise<void> {
    if (this.#memoryChecked) return;
    const { memoryBudget } = this.config;
    if (memoryBudget !== undefined) this.#engine.setMemoryBudget(memoryBudget);
    const { bytes } = await this.estimateMemory();
    const { budget } = this.#engine.memory();
    progress.note(`${this.name}: memory ${describeMemory(bytes)}; the budget is ${formatBytes(budget)}`);
    checkMemoryBudget(bytes, budget, `${this.name} training`);
    this.#memoryChecked = true;
  }

  /** Steps done. */
  get step(): number {
    return this.#step;
  }

  /** Updates left out because a loss or gradient was not finite. */
  get skippedUpdates(): number {
    return this.#skippedUpdates;
  }

  /** The seed of the next step's dropout. */
  protected get dropoutSeed(): number {
    return new Random(this.config.seed, `dropout step ${this.#step}`).integer(2 ** 31);
  }

  /** The learning rate of the next step. */
  get learningRate(): number {
    return learningRateAt(this.#step, { ...this.config, totalSteps: this.totalSteps });
  }

  /** Trains to the end of the run; see `steps`. Throws ERR_RLHF_ABORTED after a checkpoint when the signal is raised. */
  async train(options: TrainOptions = {}): Promise<TrainResult> {
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
    for await (const step of this.steps({ ...options, progress })) metrics = { ...metrics, ...step.metrics };
    return { steps: this.#step, metrics };
  }

  /**
   * Trains step by step: `for await (const { step, metrics } of trainer.steps())`. Leaving the loop ends training; calling
   * `steps` or `train` again goes on. Throws ERR_RLHF_LOCKED while another process writes to `outputDir`, and ERR_RLHF_CHECKPOINT where
   * the checkpoint there is of other settings, data or models.
   */
  async *steps(options: TrainOptions = {}): AsyncGenerator<TrainingStep, void, undefined> {
    const { signal, progress = silentProgress } = options;
    throwIfAborted(signal, `${this.name} training`);
    using _lock = this.#lock();
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
        if (this.#isEvaluated(step)) await this.#keepBest(metrics, progress);
        if (signal?.aborted || this.#isSaved(step)) await this.#checkpoint(metricsFile, progress);
        throwIfAborted(signal, `${this.name} training after step ${step} of ${this.totalSteps}`);
        yield { step, metrics };
      }
    } finally {
      progress.finish();
    }
  }

  /**
   * Runs and counts one step of the algorithm. One that fails before it updates anything leaves the trainer as it was, so that it
   * can be tried again.
   */
  protected async countedStep(run: (learningRate: number) => Promise<StepOutcome>): Promise<StepOutcome> {
    await this.checkMemory();
    await this.prepare();
    await this.#fingerprintModels();
    this.#setRecomputation();
    const learningRate = this.learningRate;
    const began = performance.now();
    const state = this.algorithmState();
    const { metrics, tokens } = await run(learningRate).catch(async (error: unknown) => {
      this.restoreAlgorithmState(state);
      for (const { model, optimizer } of this.parts) {
        // The first error is the one to tell.
        await model.zeroGradients(optimizer.groups).catch(() => undefined);
      }
      throw error;
    });
    this.#step++;
    const seconds = (performance.now() - began) / 1000;
    return { metrics: { ...metrics, lr: learningRate, "tokens/s": tokens / seconds }, tokens };
  }

  #setRecomputation(): void {
    const { recomputeLayers } = this.config;
    if (recomputeLayers === undefined) return;
    for (const { model } of this.parts) model.recomputeLayers = recomputeLayers;
  }

  /** Whether held-out data is measured after a step: after the last one, and every `evalSteps`. */
  #isEvaluated(step: number): boolean {
    const { evalSteps } = this.config;
    return step === this.totalSteps || (evalSteps !== undefined && step % evalSteps === 0);
  }

  async #finishedStep(progress: ProgressReporter): Promise<Metrics> {
    const outcome = await this.countedStep((learningRate) => this.runStep(learningRate));
    const metrics = this.#isEvaluated(this.#step)
      ? { ...outcome.metrics, ...(await this.evaluate()) }
      : outcome.metrics;
    progress.update(this.#step, metrics, outcome.tokens);
    for (const warning of this.warningsOf({ step: this.#step, metrics }))
      progress.note(`${this.name}: warning: ${warning}`);
    return metrics;
  }

  /**
   * Applies accumulated gradients. When the loss was not finite they are thrown away; a norm that is not finite makes the
   * optimizer leave the update out. Both are counted in `skippedUpdates`.
   */
  protected async update(part: TrainedPart, loss: number, learningRate: number): Promise<UpdateOutcome> {
    if (!Number.isFinite(loss)) {
      await part.model.zeroGradients(part.optimizer.groups);
      this.#skippedUpdates++;
      return { gradNorm: Number.NaN, skipped: true };
    }
    const outcome = await part.optimizer.step({ learningRate, maxGradNorm: this.config.maxGradNorm ?? 0 });
    if (outcome.skipped) this.#skippedUpdates++;
    return outcome;
  }

  /** The directory to save to when none is named. */
  protected saveDirectory(directory: string | undefined): string {
    if (directory !== undefined) return directory;
    if (this.outputDir === undefined) {
      throw new RlhfError("ERR_RLHF_ARGUMENT", "save: name a directory, or give the trainer an outputDir");
    }
    return join(this.outputDir, "final");
  }

  async #start(options: TrainOptions): Promise<void> {
    await this.checkMemory(options);
    await this.prepare(options);
    await this.#fingerprintModels();
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
    await restoreParts(checkpoint, this.parts, this.keptWeights);
    this.restoreAlgorithmState(checkpoint.state.algorithm);
    this.#step = checkpoint.state.step;
    this.#savedStep = this.#step;
    this.#skippedUpdates = checkpoint.state.skippedUpdates;
    await removeLeftovers(outputDir, this.#step, this.config.saveTotalLimit);
  }

  #lock(): RunLock | null {
    return this.outputDir === undefined ? null : RunLock.acquire(this.outputDir);
  }

  /** Before the first step, and only where there may be checkpoints. */
  async #fingerprintModels(): Promise<void> {
    if (this.#models !== null || this.outputDir === undefined) return;
    const models = [...new Set(this.memoryWorkloads().map((workload) => workload.model))];
    const fingerprints: ModelFingerprint[] = [];
    for (const model of models)
      fingerprints.push({ directory: model.directory, hash: await hashModel(model) });
    this.#models = fingerprints;
  }

  #state(): CheckpointState {
    const settings = Object.entries(this.config).filter(([name]) => !FREE_SETTINGS.has(name));
    return {
      trainer: this.name,
      step: this.#step,
      skippedUpdates: this.#skippedUpdates,
      settings: { ...Object.fromEntries(settings), totalSteps: this.totalSteps },
      data: this.dataHash,
      models: this.#models ?? [],
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
    const { parts, keptWeights } = this;
    const directory = await saveCheckpoint(this.outputDir, this.#state(), parts, keptWeights, saveTotalLimit);
    this.#savedStep = this.#step;
    progress.note(`${this.name}: checkpoint in ${directory}`);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
