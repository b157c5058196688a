import { Random } from "../data/random.ts";
import type { Engine } from "../engine/engine.ts";
import { checkMemoryBudget, describeMemory, formatBytes, toMemoryBudget } from "../engine/memory.ts";
import { estimateMemory, type MemoryEstimate } from "../model/estimate-memory.ts";
import { hashModel } from "../model/fingerprint.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { silentProgress } from "../monitor/progress.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import {
  type CheckpointContents,
  type KeptWeights,
  type ModelFingerprint,
  modelContents,
  type TrainedPart,
} from "./checkpoint.ts";
import type { TrainerWorkload } from "./memory.ts";
import type { CommonSettings } from "./settings.ts";
import { type PrepareOptions, type RunOrigin, TrainingLoop, type TrainOptions } from "./training-loop.ts";

export type { StepOutcome, TrainingStep, TrainOptions, TrainResult } from "./training-loop.ts";

/** What one optimizer step did. */
export interface UpdateOutcome {
  readonly gradNorm: number;
  readonly skipped: boolean;
}

/**
 * The training loop of language models: which parameters an algorithm trains (`parts`), the memory that its passes take
 * (`memoryWorkloads`), and updates by the engine's optimizers.
 */
export abstract class Trainer<
  Settings extends CommonSettings = CommonSettings,
> extends TrainingLoop<Settings> {
  #memoryChecked = false;
  #packsLess = false;

  /** What is trained, and therefore kept in checkpoints. */
  protected abstract readonly parts: readonly TrainedPart[];
  /** Hash of the training data. */
  protected abstract readonly dataHash: string;
  /** Weights that a checkpoint has to hold although no optimizer updates them. */
  protected get keptWeights(): readonly KeptWeights[] {
    return [];
  }
  protected algorithmState(): Readonly<Record<string, number>> {
    return {};
  }
  protected restoreAlgorithmState(_state: Readonly<Record<string, number>>): void {}

  /** The models of a run at their largest passes, for the memory estimate. */
  protected abstract memoryWorkloads(): readonly TrainerWorkload[];

  /**
   * The memory that the engine will hold for this run, by use, before it is taken. Results of losses, and other models of the same
   * engine, come on top.
   */
  override async estimateMemory(): Promise<MemoryEstimate> {
    return (await this.#planMemory()).estimate;
  }

  /** The estimate, and whether frozen matrices are held packed for backward too: not where the budget has room for them once alone. */
  async #planMemory(): Promise<{ readonly estimate: MemoryEstimate; readonly packsLess: boolean }> {
    const { recomputeLayers, memoryBudget } = this.config;
    const estimated = (more: { readonly packsBackward?: false }) => {
      const workloads = this.memoryWorkloads().map((each) => ({ recomputeLayers, ...more, ...each }));
      return estimateMemory(workloads, this.#engine.options);
    };
    const budget = memoryBudget === undefined ? this.#engine.memory().budget : toMemoryBudget(memoryBudget);
    const estimate = await estimated({});
    if (estimate.total <= budget) return { estimate, packsLess: false };
    const less = await estimated({ packsBackward: false });
    return less.total <= budget ? { estimate: less, packsLess: true } : { estimate, packsLess: false };
  }

  get #engine(): Engine {
    return (this.memoryWorkloads()[0] as TrainerWorkload).model.engine;
  }

  /**
   * Tells the estimate, and throws ERR_RLHF_MEMORY, with the setting to lower, when it is over the budget. Training begins with it;
   * an earlier call comes before an evaluation.
   */
  async checkMemory(options: Pick<TrainOptions, "progress"> = {}): Promise<void> {
    refuseUnknownOptions("checkMemory", options, { progress: true });
    const { progress = silentProgress } = options;
    if (this.#memoryChecked) return;
    const { memoryBudget } = this.config;
    if (memoryBudget !== undefined) this.#engine.setMemoryBudget(memoryBudget);
    const { estimate, packsLess } = await this.#planMemory();
    const { budget } = this.#engine.memory();
    const described = describeMemory(estimate.bytes, estimate.total);
    const how = packsLess ? ", so frozen matrices are packed once, which takes steps a little longer" : "";
    progress.note(`${this.name}: memory ${described}; the budget is ${formatBytes(budget)}${how}`);
    checkMemoryBudget(estimate, budget, `${this.name} training`);
    this.#packsLess = packsLess;
    this.#memoryChecked = true;
  }

  protected override async begin(options: PrepareOptions = {}): Promise<void> {
    await this.checkMemory({ progress: options.progress });
    await super.begin(options);
    this.#setMemoryOptions();
  }

  #setMemoryOptions(): void {
    const { recomputeLayers } = this.config;
    for (const { model } of this.parts) {
      if (recomputeLayers !== undefined) model.recomputeLayers = recomputeLayers;
      if (this.#packsLess) model.packsBackward = false;
    }
  }

  /** The seed of the next step's dropout. */
  protected get dropoutSeed(): number {
    return new Random(this.config.seed, `dropout step ${this.step}`).integer(2 ** 31);
  }

  /**
   * Applies accumulated gradients. When the loss was not finite they are thrown away; a norm that is not finite makes the
   * optimizer leave the update out. Both are counted in `skippedUpdates`.
   */
  protected async update(part: TrainedPart, loss: number, learningRate: number): Promise<UpdateOutcome> {
    if (!Number.isFinite(loss)) {
      await part.model.zeroGradients(part.optimizer.groups);
      this.countSkipped();
      return { gradNorm: Number.NaN, skipped: true };
    }
    const outcome = await part.optimizer.step({ learningRate, maxGradNorm: this.config.maxGradNorm ?? 0 });
    if (outcome.skipped) this.countSkipped();
    return outcome;
  }

  /** The loss scales after the step, of products in float16: one for each model, named where several train. */
  protected override updateMetrics(): Metrics {
    const ofModels = this.parts.filter(
      ({ model }, index) => this.parts.findIndex((part) => part.model === model) === index,
    );
    const scales = ofModels.flatMap(({ name, optimizer }) => {
      const metric = ofModels.length === 1 ? "lossScale" : `lossScale/${name}`;
      return optimizer.lossScale === null ? [] : [[metric, optimizer.lossScale[0]] as const];
    });
    return Object.fromEntries(scales);
  }

  /** The loss scale of products in float16 is found by gradients that overflow. */
  protected override get skipsAreUsual(): boolean {
    return this.parts.some(({ optimizer }) => optimizer.lossScale !== null);
  }

  protected override async discardGradients(): Promise<void> {
    for (const { model, optimizer } of this.parts) {
      // The error that made the step fail is the one to tell.
      await model.zeroGradients(optimizer.groups).catch(() => undefined);
    }
  }

  protected checkpointContents(): CheckpointContents {
    return modelContents(this.parts, this.keptWeights);
  }

  protected async origin(): Promise<RunOrigin> {
    const models: ModelFingerprint[] = [];
    for (const model of new Set(this.memoryWorkloads().map((workload) => workload.model)))
      models.push({
        directory: model.directory,
        hash: await hashModel(model),
        compute: model.engine.info.compute,
      });
    return { data: this.dataHash, models };
  }
}
