import { type Tokenized, tokenizeRewardData } from "../data/tokenize.ts";
import type { RewardRow, TokenizedReward } from "../data/types.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import { RewardModel } from "../model/reward-model.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { type Calibration, calibrationOf } from "../rewards/calibration.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { TrainedPart } from "./checkpoint.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import type { TrainerWorkload } from "./memory.ts";
import { checkOptions, TRAINER_OPTIONS } from "./options.ts";
import { countTokens, hashOfExamples, RewardBatch, sequencesOf } from "./reward-batch.ts";
import { checkMargins, judgeRewards, measureRewards, rewardMetrics } from "./reward-loss.ts";
import { headOptions, REWARD_RULES, type RewardConfig } from "./reward-settings.ts";
import { checkSettings, fittingMaxLength, withDefaults } from "./settings.ts";
import { SUPERVISED_DEFAULTS, type Sums, type SupervisedSettings, SupervisedTrainer } from "./supervised.ts";
import { addNewAdapter, chooseTarget, defaultLearningRate } from "./target.ts";
import type { TrainOptions, TrainResult } from "./trainer.ts";

export interface RewardModelTrainerOptions {
  /** The model to put a reward head on, or a reward model to train further. */
  readonly model: CausalLM | RewardModel;
  readonly tokenizer: Tokenizer;
  /** Pairs of answers, answers with a score, or both. */
  /** Rows, or what `tokenizeInSlices` made of them with `rewardRows`. */
  readonly trainData: RowsOrTokenized<RewardRow, TokenizedReward>;
  readonly evalData?: RowsOrTokenized<RewardRow, TokenizedReward>;
  readonly config?: RewardConfig;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

const LEARNING_RATES = { full: 1e-5, lora: 1e-4, frozen: 1e-3 };

/** Answers that mean and deviation of the rewards are measured on, spread over the training data. */
const STATISTICS_ANSWERS = 1024;

/** Training of a reward model: r, the head at a sequence's last token, on pairs of answers and on answers with a score. */
export class RewardModelTrainer extends SupervisedTrainer<
  TokenizedReward,
  SupervisedSettings & RewardConfig
> {
  readonly rewardModel: RewardModel;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: Tokenized<TokenizedReward>["report"];
  protected readonly name = "reward";
  protected readonly shownMetrics = ["loss", "accuracy", "margin", "eval/accuracy"];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;
  #calibration: Calibration | null = null;
  #measuredAt = -1;

  constructor(options: RewardModelTrainerOptions) {
    checkOptions("RewardModelTrainer", options, TRAINER_OPTIONS, REWARD_RULES);
    const { model: given, tokenizer } = options;
    const config = withDefaults(SUPERVISED_DEFAULTS, options.config ?? {});
    checkSettings(config, REWARD_RULES);
    checkMargins(itemsOf(options.trainData), config);
    const model = given instanceof RewardModel ? given.model : given;
    const target = chooseTarget(model, config, "default");
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const limits = { maxLength, overlong: config.overlong ?? "drop" };
    const tokenize = (data: RowsOrTokenized<RewardRow, TokenizedReward>): Tokenized<TokenizedReward> =>
      tokenizedData(
        data,
        maxLength,
        (rows) => tokenizeRewardData(rows, tokenizer, limits),
        (example) => sequencesOf([example]),
      );
    const train = tokenize(options.trainData);
    const { evalData } = options;
    const evaluation = evalData && itemsOf(evalData).length > 0 ? tokenize(evalData).examples : [];
    super({ ...config, learningRate, maxLength }, options.outputDir, train.examples, evaluation);
    const head = headOptions(config, model.config.hidden, config.seed);
    addNewAdapter(model, target);
    const adapter = target.adapter === undefined ? {} : { adapter: target.adapter };
    this.rewardModel =
      given instanceof RewardModel ? given.with(adapter) : RewardModel.create(model, { head, ...adapter });
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = hashOfExamples(train.examples);
    const optimizer = model.createOptimizer({
      ...adamWOptions(this.config),
      base: target.kind === "full",
      adapter: target.adapter,
      heads: [this.rewardModel.head],
    });
    this.part = { name: "reward", model, optimizer };
  }

  /** How far the probabilities of the last evaluation's pairs can be believed; null before it, and without held-out pairs. */
  get calibration(): Calibration | null {
    return this.#calibration;
  }

  protected override memoryWorkloads(): readonly TrainerWorkload[] {
    return super.memoryWorkloads().map((workload) => ({ ...workload, statistics: false, dropout: true }));
  }

  protected tokensOf(example: TokenizedReward): number {
    return countTokens(example);
  }

  protected lossCount(examples: readonly TokenizedReward[]): number {
    return examples.length;
  }

  protected async runMicroBatch(examples: readonly TokenizedReward[], scale: number | null): Promise<Sums> {
    const { model, adapter, head } = this.rewardModel;
    const batch = new RewardBatch(examples);
    const training = scale !== null;
    const dropoutSeed = training ? this.dropoutSeed : undefined;
    using pass = await model.forward(batch.packed, {
      adapter,
      head,
      statistics: false,
      values: "last",
      grad: training,
      dropoutSeed,
    });
    const { dValue, stats } = await judgeRewards(
      model.engine,
      pass.device.value,
      batch,
      this.config,
      scale ?? 0,
    );
    using gradient = dValue;
    const measured = measureRewards(await pass.value(), batch, !training);
    if (training) await pass.backward({ dValue: gradient });
    return { ...stats, ...measured };
  }

  protected toMetrics(sums: Sums): Metrics {
    return rewardMetrics(sums);
  }

  protected override evaluationMetrics(sums: Sums): Metrics {
    this.#calibration = calibrationOf(sums);
    return this.toMetrics(sums);
  }

  /** Trains to the end of the run, as every trainer does, and then measures the rewards' mean and deviation. */
  override async train(options: TrainOptions = {}): Promise<TrainResult> {
    const result = await super.train(options);
    await this.#measureStatistics();
    return result;
  }

  async #measureStatistics(): Promise<void> {
    if (this.config.normalizeReward === false) this.rewardModel.statistics = null;
    else if (this.#measuredAt !== this.step) {
      const sequences = sequencesOf(this.trainExamples).map(({ tokens }) => tokens);
      const { microBatchTokens } = this.config;
      await this.rewardModel.measureStatistics(spread(sequences, STATISTICS_ANSWERS), { microBatchTokens });
    }
    this.#measuredAt = this.step;
  }

  /**
   * Writes the reward model, an adapter merged into its weights, with mean and deviation of its rewards, and the tokenizer;
   * `RewardModel.load` and transformers read it.
   */
  async save(directory?: string): Promise<void> {
    const target = this.saveDirectory(directory);
    await this.#measureStatistics();
    await this.rewardModel.save(target);
    await this.tokenizer.save(target);
  }

  protected override release(): void {
    this.part.optimizer.dispose();
  }
}

/** At most so many of some items, spread evenly over them. */
function spread<Item>(items: readonly Item[], most: number): Item[] {
  const count = Math.min(most, items.length);
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)] as Item);
}
