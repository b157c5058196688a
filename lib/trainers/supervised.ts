import { longestFirst, planMicroBatches, RunBatches } from "../data/batching.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { TrainedPart } from "./checkpoint.ts";
import { type LargestPass, largestMicroBatch, type TrainerWorkload, trainingWorkload } from "./memory.ts";
import {
  COMMON_DEFAULTS,
  COMMON_RULES,
  type CommonSettings,
  positive,
  positiveInteger,
  type Rules,
  type TrainerConfig,
} from "./settings.ts";
import { type StepOutcome, Trainer, type TrainingStep } from "./trainer.ts";

/** Settings of trainers that pass over a data set. */
export interface SupervisedConfig extends TrainerConfig {
  /** Batches per optimizer step. The loss is averaged over all of them together. Default 1. */
  readonly gradientAccumulationSteps?: number;
  /** Passes over the data; a fraction ends inside one. */
  readonly numEpochs?: number;
  /** Optimizer steps in all, in place of numEpochs. */
  readonly maxSteps?: number;
}

export type SupervisedSettings = CommonSettings &
  SupervisedConfig &
  Required<Pick<SupervisedConfig, "gradientAccumulationSteps" | "numEpochs">>;

/** Defaults of all trainers that pass over a data set. */
export const SUPERVISED_DEFAULTS = {
  ...COMMON_DEFAULTS,
  batchSize: 8,
  gradientAccumulationSteps: 1,
  numEpochs: 1,
  schedule: "linear" as const,
};

export const SUPERVISED_RULES: Rules<SupervisedConfig> = {
  ...COMMON_RULES,
  gradientAccumulationSteps: positiveInteger,
  numEpochs: positive,
  maxSteps: positiveInteger,
};

/** Examples by their index; `TokenDataset` is one that may be larger than memory. */
export interface ExampleSource<Example> {
  readonly length: number;
  get(indices: ArrayLike<number>): Promise<readonly Example[]>;
}

/** Examples that are held in memory. */
class MemorySource<Example> implements ExampleSource<Example> {
  readonly examples: readonly Example[];

  constructor(examples: readonly Example[]) {
    this.examples = examples;
  }

  get length(): number {
    return this.examples.length;
  }

  get(indices: ArrayLike<number>): Promise<readonly Example[]> {
    return Promise.resolve(Array.from(indices, (index) => this.examples[index] as Example));
  }
}

function asSource<Example>(examples: readonly Example[] | ExampleSource<Example>): ExampleSource<Example> {
  return "get" in examples ? examples : new MemorySource(examples);
}

function inMemory<Example>(source: ExampleSource<Example>): readonly Example[] {
  if (source instanceof MemorySource) return source.examples;
  throw new RlhfError("ERR_RLHF_ARGUMENT", "the examples are those of a TokenDataset: read them from there");
}

/** Sums that micro-batches add up, by name; of what is named min_… and max_… the least and the greatest is kept. */
export type Sums = Readonly<Record<string, number>>;

function joined(name: string, a: number, b: number): number {
  if (name.startsWith("min_")) return Math.min(a, b);
  return name.startsWith("max_") ? Math.max(a, b) : a + b;
}

export function addSums(total: Sums, more: Sums): Sums {
  const sums = { ...total };
  for (const [name, value] of Object.entries(more)) {
    const before = sums[name];
    sums[name] = before === undefined ? value : joined(name, before, value);
  }
  return sums;
}

/**
 * A trainer that passes over examples in a random order, some at each step, and can measure its loss on held-out ones. The examples
 * of a step, and all held-out ones, are a window: whatever a loss averages or compares, it does over the whole of it.
 */
export abstract class SupervisedTrainer<
  Example,
  Settings extends SupervisedSettings = SupervisedSettings,
  Window = undefined,
> extends Trainer<Settings> {
  readonly #train: ExampleSource<Example>;
  readonly #eval: ExampleSource<Example>;
  readonly #batches: RunBatches;

  protected constructor(
    config: Settings,
    outputDir: string | undefined,
    train: readonly Example[] | ExampleSource<Example>,
    evaluation: readonly Example[] | ExampleSource<Example>,
  ) {
    super(config, outputDir);
    this.#train = asSource(train);
    this.#eval = asSource(evaluation);
    this.#batches = new RunBatches(this.#train.length, this.#windowSize, this.config.seed);
  }

  /** The examples that are trained on. Throws ERR_RLHF_ARGUMENT where they are not held in memory. */
  get trainExamples(): readonly Example[] {
    return inMemory(this.#train);
  }

  /** The held-out examples. Throws ERR_RLHF_ARGUMENT where they are not held in memory. */
  get evalExamples(): readonly Example[] {
    return inMemory(this.#eval);
  }

  /** Tokens that an example adds to a forward pass. */
  protected abstract tokensOf(example: Example): number;
  /** What the loss of some examples is averaged over: tokens, pairs. */
  protected abstract lossCount(examples: readonly Example[]): number;
  /** What the loss of every micro-batch has to know of the whole window, beside what it is averaged over. */
  protected windowOf(_examples: readonly Example[], _signal?: AbortSignal): Promise<Window> {
    return Promise.resolve(undefined as Window);
  }
  /**
   * The sums of one micro-batch, the sum of its losses under "loss". With a `scale` it also adds scale·loss's gradient to the
   * accumulated one.
   */
  protected abstract runMicroBatch(
    examples: readonly Example[],
    scale: number | null,
    window: Window,
  ): Promise<Sums>;
  /** Means from the sums of a whole window or evaluation. */
  protected abstract toMetrics(sums: Sums): Metrics;
  /** As above, of all held-out examples. */
  protected evaluationMetrics(sums: Sums): Metrics {
    return this.toMetrics(sums);
  }
  protected abstract readonly part: TrainedPart;
  /** Called when the weights have been updated, with the number of steps done then. */
  protected updated(_steps: number): Promise<void> {
    return Promise.resolve();
  }

  protected get parts(): readonly TrainedPart[] {
    return [this.part];
  }

  /** Examples per optimizer step. */
  get #windowSize(): number {
    return this.config.batchSize * this.config.gradientAccumulationSteps;
  }

  get totalSteps(): number {
    return this.#batches.totalSteps(this.config);
  }

  #examplesOfStep(step: number): Promise<readonly Example[]> {
    return this.#train.get(this.#batches.indicesOf(step));
  }

  /** One optimizer step, on the next examples in order or on the ones given. */
  async trainStep(examples?: readonly Example[]): Promise<TrainingStep> {
    if (examples !== undefined && !(Array.isArray(examples) && examples.length > 0))
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        "trainStep: expected a list of one example or more; without it, the next ones in order are taken",
      );
    const { metrics } = await this.countedStep(async (learningRate) =>
      this.#optimize(examples ?? (await this.#examplesOfStep(this.step)), learningRate),
    );
    return { step: this.step, metrics };
  }

  protected async runStep(learningRate: number): Promise<StepOutcome> {
    return this.#optimize(await this.#examplesOfStep(this.step), learningRate);
  }

  async #optimize(examples: readonly Example[], learningRate: number): Promise<StepOutcome> {
    const scale = 1 / this.lossCount(examples);
    const sums = await this.#sumOver(examples, scale);
    const { gradNorm } = await this.update(this.part, sums.loss ?? Number.NaN, learningRate);
    await this.updated(this.step + 1);
    const epoch = (this.step + 1) / this.#batches.stepsPerEpoch;
    return {
      metrics: { ...this.toMetrics(sums), gradNorm, epoch },
      tokens: examples.reduce((sum, example) => sum + this.tokensOf(example), 0),
    };
  }

  async #sumOver(examples: readonly Example[], scale: number | null, signal?: AbortSignal): Promise<Sums> {
    const window = await this.windowOf(examples, signal);
    let sums: Sums = {};
    for (const microBatch of this.microBatches(examples)) {
      throwIfAborted(signal, "evaluation");
      sums = addSums(sums, await this.runMicroBatch(microBatch, scale, window));
    }
    return sums;
  }

  /** Examples, shared out to forward passes. */
  protected microBatches(examples: readonly Example[]): Example[][] {
    const lengths = examples.map((example) => this.tokensOf(example));
    return planMicroBatches(lengths, this.config.microBatchTokens).map((indices) =>
      indices.map((index) => examples[index] as Example),
    );
  }

  protected memoryWorkloads(): readonly TrainerWorkload[] {
    return [trainingWorkload(this.part, this.largestPass)];
  }

  /** The largest micro-batch that training and evaluation can come to. */
  protected get largestPass(): LargestPass {
    const { maxLength = 1, microBatchTokens } = this.config;
    // Lengths of examples in files are not known without reading them all; an answer is not over maxLength, and a pair has two.
    const lengths = [this.#train, this.#eval].flatMap((source) =>
      source instanceof MemorySource ? source.examples.map((each) => this.tokensOf(each)) : [2 * maxLength],
    );
    return largestMicroBatch(lengths, microBatchTokens, Math.max(this.#windowSize, this.#eval.length));
  }

  /** Metrics of the held-out examples under "eval/…"; none where there are none. */
  async evaluate(signal?: AbortSignal): Promise<Metrics> {
    if (this.#eval.length === 0) return {};
    await this.prepare({ signal });
    const examples = await this.#eval.get(Array.from({ length: this.#eval.length }, (_, index) => index));
    const lengths = examples.map((example) => this.tokensOf(example));
    const ordered = longestFirst(lengths).map((index) => examples[index] as Example);
    const metrics = this.evaluationMetrics(await this.#sumOver(ordered, null, signal));
    return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`eval/${name}`, value]));
  }
}
