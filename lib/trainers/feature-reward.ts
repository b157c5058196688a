import { createHash } from "node:crypto";
import { RunBatches } from "../data/batching.ts";
import {
  type FeaturePair,
  type FeatureRow,
  hasScore,
  type ScoredFeatures,
  vectorsOf,
} from "../data/features.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import type { MemoryEstimate } from "../model/estimate-memory.ts";
import { FlatAdamW } from "../model/flat-parameters.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { FeatureRewardModel } from "../rewards/feature-reward-model.ts";
import type { CheckpointContents } from "./checkpoint.ts";
import { estimateFlatRun } from "./flat-memory.ts";
import { checkOptions, type OptionNames } from "./options.ts";
import {
  checkMargins,
  type JudgedRewards,
  judgeRewards,
  measureRewards,
  rewardMetrics,
} from "./reward-loss.ts";
import { REWARD_LOSS_RULES, type RewardLossConfig } from "./reward-settings.ts";
import {
  checkSettings,
  flag,
  LOOP_DEFAULTS,
  LOOP_RULES,
  type LoopConfig,
  positive,
  positiveInteger,
  type Rules,
  withDefaults,
} from "./settings.ts";
import { addSums, type Sums } from "./supervised.ts";
import { type RunOrigin, type StepOutcome, TrainingLoop, type TrainingStep } from "./training-loop.ts";

export type { FeaturePair, FeatureRow, ScoredFeatures };

/** Settings of training on feature vectors. The learning rate is 1e-3 and the schedule "linear" unless set. */
export interface FeatureRewardTrainerConfig extends LoopConfig, RewardLossConfig {
  /** Rows per optimizer step. Default 32. */
  readonly batchSize?: number;
  /** Passes over the data; a fraction ends inside one. Default 10. */
  readonly numEpochs?: number;
  /** Optimizer steps in all, in place of numEpochs. */
  readonly maxSteps?: number;
  /**
   * Makes each feature mean 0 and deviation 1 over the training data; the model keeps both. A model that has them already, from an
   * earlier training, keeps its own. Default true.
   */
  readonly normalizeFeatures?: boolean;
}

const DEFAULTS = {
  ...LOOP_DEFAULTS,
  learningRate: 1e-3,
  schedule: "linear" as const,
  batchSize: 32,
  numEpochs: 10,
  normalizeFeatures: true,
};

const RULES: Rules<FeatureRewardTrainerConfig> = {
  ...LOOP_RULES,
  ...REWARD_LOSS_RULES,
  batchSize: positiveInteger,
  numEpochs: positive,
  maxSteps: positiveInteger,
  normalizeFeatures: flag,
};

export interface FeatureRewardTrainerOptions {
  readonly model: FeatureRewardModel;
  /** Pairs of feature vectors, vectors with a score, or both. */
  readonly trainData: readonly FeatureRow[];
  readonly evalData?: readonly FeatureRow[];
  readonly config?: FeatureRewardTrainerConfig;
  /** Where metrics.jsonl, checkpoints and the model go; left out: nowhere. */
  readonly outputDir?: string;
}

const OPTIONS: OptionNames<FeatureRewardTrainerOptions> = {
  model: "required",
  trainData: "required",
  evalData: "optional",
  config: "optional",
  outputDir: "optional",
};

const PART = "reward";
/** Rows of one evaluation pass: metrics are the same, memory is bounded. */
const ROWS_AT_ONCE = 2048;

/**
 * Training of a reward model on feature vectors: Bradley-Terry's loss of pairs, or another one, and the squared error of vectors with a
 * score. The same seed gives the same bits.
 */
export class FeatureRewardTrainer extends TrainingLoop<typeof DEFAULTS & FeatureRewardTrainerConfig> {
  /** What is trained. */
  readonly model: FeatureRewardModel;
  protected readonly name = "feature-reward";
  protected readonly shownMetrics = ["loss", "accuracy", "mse", "eval/loss"];
  readonly #train: readonly FeatureRow[];
  readonly #eval: readonly FeatureRow[];
  readonly #batches: RunBatches;
  readonly #optimizer: FlatAdamW;

  /** Throws ERR_RLHF_ARGUMENT for wrong settings, and ERR_RLHF_DATA, ERR_RLHF_SHAPE or ERR_RLHF_NON_FINITE, with the row, for wrong data. */
  constructor(options: FeatureRewardTrainerOptions) {
    checkOptions("FeatureRewardTrainer", options, OPTIONS, RULES);
    const { model, trainData, evalData = [], outputDir } = options;
    const config = withDefaults(DEFAULTS, options.config ?? {});
    checkSettings<FeatureRewardTrainerConfig>(config, RULES);
    checkRows(model, trainData, "trainData", config);
    checkRows(model, evalData, "evalData", config);
    if (trainData.length === 0) throw new RlhfError("ERR_RLHF_DATA", "trainData has no rows");
    super(config, outputDir);
    this.model = model;
    this.#train = trainData;
    this.#eval = evalData;
    this.#batches = new RunBatches(trainData.length, this.config.batchSize, this.config.seed);
    this.#optimizer = new FlatAdamW(model.engine, model.network.parameters);
    if (this.config.normalizeFeatures && model.scale === null)
      model.measureScale(trainData.flatMap(vectorsOf));
  }

  get totalSteps(): number {
    return this.#batches.totalSteps(this.config);
  }

  /** One optimizer step, on the next rows in order or on the ones given. */
  async trainStep(rows?: readonly FeatureRow[]): Promise<TrainingStep> {
    if (rows) checkRows(this.model, rows, "rows", this.config);
    const { metrics } = await this.countedStep((learningRate) =>
      this.#optimize(rows ?? this.#rowsOfStep(), learningRate),
    );
    return { step: this.step, metrics };
  }

  protected runStep(learningRate: number): Promise<StepOutcome> {
    return this.#optimize(this.#rowsOfStep(), learningRate);
  }

  #rowsOfStep(): FeatureRow[] {
    return Array.from(this.#batches.indicesOf(this.step), (index) => this.#train[index] as FeatureRow);
  }

  async #optimize(rows: readonly FeatureRow[], learningRate: number): Promise<StepOutcome> {
    const { sums, gradient } = await this.#pass(rows, 1 / rows.length);
    const gradNorm = await this.#optimizer.step(gradient, { ...this.config, learningRate });
    if (!Number.isFinite(gradNorm)) this.countSkipped();
    const epoch = (this.step + 1) / this.#batches.stepsPerEpoch;
    return { metrics: { ...rewardMetrics(sums), gradNorm, epoch } };
  }

  /** The sums of some rows, and with a `scale` over 0 the gradient of scale·loss. */
  async #pass(rows: readonly FeatureRow[], scale: number): Promise<{ sums: Sums; gradient: Float32Array }> {
    const { network, engine } = this.model;
    const { vectors, judged } = arrange(rows);
    using pass = await network.forward(this.model.normalise(vectors));
    const { dValue, stats } = await judgeRewards(engine, pass.y, judged, this.config, scale);
    using slopes = dValue;
    const sums = { ...stats, ...measureRewards(pass.y, judged, scale === 0) };
    if (scale === 0) return { sums, gradient: new Float32Array(0) };
    return { sums, gradient: await network.backward(pass, await slopes.read()) };
  }

  /** The memory of the engine and of the network for this run, by use; the data come on top. */
  override estimateMemory(): Promise<MemoryEstimate> {
    const { network, engine, config: shape } = this.model;
    const most = [...this.#train].sort((a, b) => vectorsOf(b).length - vectorsOf(a).length);
    return estimateFlatRun(engine, network.parameters.length, async () => {
      using trainer = new FeatureRewardTrainer({
        model: FeatureRewardModel.create(shape),
        trainData: most.slice(0, this.config.batchSize),
        evalData: this.#eval,
        config: this.config,
      });
      await trainer.trainStep();
      await trainer.evaluate();
      return 0;
    });
  }

  /** Metrics of the held-out rows under "eval/…"; none where there are none. */
  async evaluate(signal?: AbortSignal): Promise<Metrics> {
    if (this.#eval.length === 0) return {};
    let sums: Sums = {};
    for (let row = 0; row < this.#eval.length; row += ROWS_AT_ONCE) {
      throwIfAborted(signal, "evaluation");
      const pass = await this.#pass(this.#eval.slice(row, row + ROWS_AT_ONCE), 0);
      sums = addSums(sums, pass.sums);
    }
    const metrics = Object.entries(rewardMetrics(sums));
    return Object.fromEntries(metrics.map(([name, value]) => [`eval/${name}`, value]));
  }

  /** Writes the model, for `FeatureRewardModel.load` to read, by default into `final` in `outputDir`. */
  async save(directory?: string): Promise<void> {
    await this.model.save(this.saveDirectory(directory));
  }

  protected origin(): Promise<RunOrigin> {
    const { network, scale, config } = this.model;
    const hash = createHash("sha256").update(JSON.stringify([config, scale]));
    const weights = network.parameters;
    hash.update(new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength));
    return Promise.resolve({
      data: hashOfRows(this.#train),
      models: [{ directory: null, hash: hash.digest("hex") }],
    });
  }

  protected checkpointContents(): CheckpointContents {
    const optimizer = this.#optimizer;
    const { slices } = this.model;
    return {
      tensors: optimizer.tensors(PART, slices),
      optimizerSteps: { [PART]: optimizer.stepCount },
      restore: (read, steps) => optimizer.restore(PART, slices, read, steps[PART] ?? 0),
    };
  }

  protected algorithmState(): Readonly<Record<string, number>> {
    return {};
  }

  protected restoreAlgorithmState(): void {}
}

/** The vectors of some rows, and which rewards belong together: first those of the pairs, then those with a score. */
function arrange(rows: readonly FeatureRow[]): { vectors: ArrayLike<number>[]; judged: JudgedRewards } {
  const pairs = rows.filter((row): row is FeaturePair => !hasScore(row));
  const answers = rows.filter(hasScore);
  const indices = (count: number, at: (i: number) => number): Int32Array =>
    Int32Array.from({ length: count }, (_, i) => at(i));
  return {
    vectors: [...pairs, ...answers].flatMap(vectorsOf),
    judged: {
      pairs: pairs.map(({ margin = 0, tie = false }) => ({ margin, tie })),
      chosen: indices(pairs.length, (i) => 2 * i),
      rejected: indices(pairs.length, (i) => 2 * i + 1),
      answers,
      scored: indices(answers.length, (i) => 2 * pairs.length + i),
    },
  };
}

/** Throws for a row that is none, with its place. */
function checkRows(
  model: FeatureRewardModel,
  rows: readonly FeatureRow[],
  where: string,
  config: RewardLossConfig,
): void {
  if (!Array.isArray(rows)) throw new RlhfError("ERR_RLHF_ARGUMENT", `${where} must be a list of rows`);
  rows.forEach((row: FeatureRow, index) => {
    const place = `${where}[${index}]`;
    const wrong = (what: string): RlhfError =>
      new RlhfError("ERR_RLHF_DATA", `${place} ${what}`, { row: index });
    if (
      typeof row !== "object" ||
      row === null ||
      !("score" in row || ("chosen" in row && "rejected" in row))
    )
      throw wrong("must be { chosen, rejected } or { features, score }");
    if (hasScore(row)) {
      if (typeof row.score !== "number" || !Number.isFinite(Math.fround(row.score)))
        throw wrong(`has the score ${row.score}, expected a finite number`);
      model.checkFeatures(row.features, `${place}.features`);
      return;
    }
    const { margin = 0 } = row;
    if (!Number.isFinite(margin) || margin < 0)
      throw wrong(`has the margin ${margin}, expected a number of at least 0`);
    model.checkFeatures(row.chosen, `${place}.chosen`);
    model.checkFeatures(row.rejected, `${place}.rejected`);
  });
  checkMargins(
    rows.map((row) => (hasScore(row) ? {} : row)),
    config,
  );
}

/** A hash of training data, which tells whether a checkpoint is of the same. */
function hashOfRows(rows: readonly FeatureRow[]): string {
  const hash = createHash("sha256");
  for (const row of rows) {
    const facts = hasScore(row) ? [1, row.score] : [2, row.margin ?? 0, row.tie ? 1 : 0];
    for (const values of [facts, ...vectorsOf(row)])
      hash.update(new Uint8Array(Float64Array.from(values).buffer));
  }
  return hash.digest("hex");
}
