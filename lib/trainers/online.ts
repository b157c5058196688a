import { Random } from "../data/random.ts";
import { type Tokenized, tokenizePrompts } from "../data/tokenize.ts";
import type { PromptRow, TokenizedPrompt } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { type RewardSource, rewardModels, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import { OpeningPass } from "./opening-pass.ts";
import { checkOptions, type OptionNames } from "./options.ts";
import type { Network } from "./reference.ts";
import type { RolloutConfig, RolloutSettings } from "./rollout-settings.ts";
import { promptsAfter, sampleRollouts } from "./rollout-steps.ts";
import type { Rollout } from "./rollouts.ts";
import { RunningStatistics, type ScoredRollouts, shapeScores } from "./score-shaping.ts";
import { checkSettings, fittingMaxLength, type Rules, withDefaults } from "./settings.ts";
import {
  addNewAdapter,
  chooseTarget,
  defaultLearningRate,
  nothingToTrain,
  saveTarget,
  type TrainingTarget,
} from "./target.ts";
import { type StepOutcome, Trainer, type TrainingStep } from "./trainer.ts";

type Prompts = RowsOrTokenized<string | PromptRow, TokenizedPrompt>;

/** What the trainers need that learn from answers they sample, each with settings of its own. */
export interface OnlineTrainerOptions<Config> {
  /** The policy; where it stands now is the reference. */
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** A reward model or an ensemble with the policy's tokenizer, or a function of prompt and response. */
  readonly reward: RewardSource;
  /** Prompts, or what `tokenizeInSlices` made of them with `promptRows`. */
  readonly prompts: Prompts;
  /** Prompts that `evaluate` answers, once each. */
  readonly evalPrompts?: Prompts;
  readonly config?: Config;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

/** What an algorithm's settings are, and which of them do not go together. */
export interface Algorithm<Config, Settings> {
  /** The trainer's name in errors. */
  readonly className: string;
  readonly defaults: Partial<Settings>;
  readonly rules: Rules<Config>;
  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong together, or with this model and reward. */
  check(settings: Settings, target: TrainingTarget, options: OnlineTrainerOptions<Config>): void;
}

/** The networks of a run. */
export interface OnlineNetworks extends Disposable {
  readonly policy: Network;
  readonly parts: readonly TrainedPart[];
}

/** What the updates on one batch of rollouts came to. */
export interface Learned {
  readonly metrics: Metrics;
  /** Response tokens of the batch. */
  readonly tokens: number;
}

const OPTIONS: OptionNames<OnlineTrainerOptions<unknown>> = {
  model: "required",
  tokenizer: "required",
  reward: "required",
  prompts: "required",
  evalPrompts: "optional",
  config: "optional",
  outputDir: "optional",
};

const LEARNING_RATES = { full: 1e-6, lora: 1e-5 };

/** Random streams of evaluation, beyond any that training reaches. */
const EVALUATION_STREAM = 2 ** 40;

/** Each step samples answers to prompts, scores them, and learns from the scores; a subclass says how. */
export abstract class OnlineTrainer<
  Config extends RolloutConfig,
  Settings extends RolloutSettings & Config,
  Networks extends OnlineNetworks,
> extends Trainer<Settings> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly reward: RewardSource;
  /** What tokenising did to the prompts. */
  readonly tokenized: Tokenized<TokenizedPrompt>["report"];
  protected readonly dataHash: string;
  protected readonly target: TrainingTarget;
  readonly #prompts: readonly TokenizedPrompt[];
  readonly #evalPrompts: readonly TokenizedPrompt[];
  #preparing: Promise<void> | null = null;
  #networks: Networks | null = null;
  #rollouts = 0;
  readonly #running = new RunningStatistics();

  protected constructor(options: OnlineTrainerOptions<Config>, algorithm: Algorithm<Config, Settings>) {
    checkOptions(algorithm.className, options, OPTIONS, algorithm.rules);
    const { model, tokenizer, reward, evalPrompts } = options;
    const config = withDefaults(algorithm.defaults, options.config ?? {}) as Settings;
    checkSettings(config, algorithm.rules);
    const target = chooseTarget(model, config, "policy");
    if (target.kind === "frozen") throw nothingToTrain();
    checkReward(reward, model, target);
    algorithm.check(config, target, options);
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength, config.maxNewTokens);
    super({ ...config, learningRate, maxLength }, options.outputDir);
    this.model = model;
    this.tokenizer = tokenizer;
    this.reward = reward;
    this.target = target;
    const { examples, report } = this.#tokenize(options.prompts);
    this.#prompts = examples;
    this.tokenized = report;
    this.#evalPrompts =
      evalPrompts && itemsOf(evalPrompts).length > 0 ? this.#tokenize(evalPrompts).examples : [];
    this.dataHash = hashSequences(this.#prompts.map((prompt) => prompt.tokens));
    addNewAdapter(model, target);
  }

  protected abstract makeNetworks(): Promise<Networks>;
  /** Answers that are sampled to each prompt. */
  protected abstract readonly answersPerPrompt: number;
  /** The updates on one batch of rollouts. */
  protected abstract learn(rollouts: readonly Rollout[], learningRate: number): Promise<Learned>;
  /** "objective/…" of answers that are not learnt from. */
  protected abstract measureAnswers(
    rollouts: readonly Rollout[],
    scored: ScoredRollouts,
  ): Promise<{ readonly metrics: Metrics }>;
  /** Heads that are saved with the policy. */
  protected get savedHeads(): readonly string[] {
    return [];
  }

  #tokenize(data: Prompts): Tokenized<TokenizedPrompt> {
    const { maxLength } = this.config;
    return tokenizedData(
      data,
      maxLength as number,
      (rows) => tokenizePrompts(rows, this.tokenizer, { maxLength }),
      (prompt) => [prompt],
    );
  }

  get totalSteps(): number {
    return this.config.numIterations;
  }

  override prepare(): Promise<void> {
    this.#preparing ??= this.makeNetworks().then((networks) => {
      this.#networks = networks;
    });
    return this.#preparing;
  }

  /** The networks, made when they are first needed. */
  protected async ready(): Promise<Networks> {
    this.requireAlive();
    await this.prepare();
    this.requireAlive();
    return this.#networks as Networks;
  }

  protected get parts(): readonly TrainedPart[] {
    return this.#networks?.parts ?? [];
  }

  /** All prompts that answers will be sampled to. */
  protected get allPrompts(): readonly TokenizedPrompt[] {
    return [...this.#prompts, ...this.#evalPrompts];
  }

  protected override algorithmState(): Readonly<Record<string, number>> {
    const { count, mean, squares } = this.#running.state;
    return { rollouts: this.#rollouts, scoreCount: count, scoreMean: mean, scoreSquares: squares };
  }

  protected override restoreAlgorithmState(state: Readonly<Record<string, number>>): void {
    const { rollouts = 0, scoreCount: count = 0, scoreMean: mean = 0, scoreSquares: squares = 0 } = state;
    this.#rollouts = rollouts;
    this.#running.state = { count, mean, squares };
  }

  /** One iteration: answers to the next prompts in order, or to the ones given, and the updates on them. */
  async trainStep(prompts?: readonly (string | PromptRow)[]): Promise<TrainingStep> {
    const { metrics } = await this.countedStep((learningRate) => this.#iterate(learningRate, prompts));
    return { step: this.step, metrics };
  }

  protected runStep(learningRate: number): Promise<StepOutcome> {
    return this.#iterate(learningRate);
  }

  async #iterate(learningRate: number, prompts?: readonly (string | PromptRow)[]): Promise<StepOutcome> {
    const rollouts = await this.generateResponses(prompts);
    const { metrics, tokens } = await this.learn(rollouts, learningRate);
    return { metrics: { ...metrics, episode: this.#rollouts }, tokens };
  }

  /**
   * Samples answers, those to one prompt side by side: `batchSize` of them to the next prompts in order, or as many to each of the
   * ones given.
   */
  async generateResponses(prompts?: readonly (string | PromptRow)[]): Promise<Rollout[]> {
    const { answersPerPrompt: answers } = this;
    const drawn = Math.floor(this.#rollouts / answers);
    const chosen = prompts
      ? this.#tokenize(prompts).examples
      : promptsAfter(this.#prompts, drawn, this.config.batchSize / answers, this.config);
    const repeated = chosen.flatMap((prompt) => new Array<TokenizedPrompt>(answers).fill(prompt));
    const rollouts = await this.#sample(repeated, this.#rollouts);
    this.#rollouts += repeated.length;
    return rollouts;
  }

  async #sample(prompts: readonly TokenizedPrompt[], firstStream: number): Promise<Rollout[]> {
    const { policy } = await this.ready();
    return sampleRollouts(policy, this.tokenizer, prompts, firstStream, this.config);
  }

  /** Scores as the updates take them; with `shapeRewards` the source's own enter the running statistics. */
  protected async scoreRollouts(rollouts: readonly Rollout[]): Promise<ScoredRollouts> {
    const raw = await this.#rawScores(rollouts);
    const running = this.config.shapeRewards ? this.#running : null;
    running?.add(raw.scores);
    return { raw, ...shapeScores(raw.scores, rollouts, this.config, running) };
  }

  #rawScores(rollouts: readonly Rollout[]): Promise<ScoredRollouts["raw"]> {
    const { microBatchTokens, normalizeReward: normalize } = this.config;
    return scoreAnswers(this.reward, rollouts, { microBatchTokens, normalize });
  }

  /** The rollouts of each optimizer step of one pass over a batch, in a random order. */
  protected minibatches(rollouts: number, epoch: number): Int32Array[] {
    const { seed, numMinibatches } = this.config;
    const order = new Random(seed, `${this.name} step ${this.step} epoch ${epoch}`).permutation(rollouts);
    const count = Math.min(numMinibatches, rollouts);
    const bound = (i: number): number => Math.floor((i * rollouts) / count);
    return Array.from({ length: count }, (_, i) => order.slice(bound(i), bound(i + 1)));
  }

  /** The pass that the updates on a batch of rollouts begin with. */
  protected openingPass(): OpeningPass {
    return new OpeningPass((batch) => {
      const first = this.minibatches(batch.size, 0)[0] as Int32Array;
      return batch.microBatches(this.config.microBatchTokens, first)[0] as number[];
    });
  }

  /** Answers the evaluation prompts once each, without training: "eval/objective/…". None where there are no such prompts. */
  async evaluate(): Promise<Metrics> {
    if (this.#evalPrompts.length === 0) return {};
    const rollouts = await this.#sample(this.#evalPrompts, EVALUATION_STREAM);
    const raw = await this.#rawScores(rollouts);
    // Shaped by statistics that move, scores of two evaluations would not compare.
    const shaped = this.config.shapeRewards
      ? { scores: raw.scores, diversity: null }
      : shapeScores(raw.scores, rollouts, this.config, null);
    const { metrics } = await this.measureAnswers(rollouts, { raw, ...shaped });
    return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`eval/${name}`, value]));
  }

  /**
   * Writes policy and tokenizer as a directory that transformers loads, an adapter merged into the weights; with `saveMerged` false
   * the adapter alone.
   */
  async save(directory?: string): Promise<void> {
    const target = this.saveDirectory(directory);
    const { saveMerged } = this.config;
    // A reward model that was lent the policy's weights has its head there too; it is no part of the policy.
    const heads = this.savedHeads;
    await saveTarget(this.model, this.tokenizer, this.target, target, { saveMerged, heads });
  }

  protected override release(): void {
    this.#networks?.[Symbol.dispose]();
    this.#networks = null;
  }
}

function checkReward(reward: RewardSource, model: CausalLM, target: TrainingTarget): void {
  const models = rewardModels(reward).map((member) => member.model);
  const other = models.find(({ vocabSize }) => vocabSize !== model.vocabSize);
  if (other) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `the reward model has a vocabulary of ${other.vocabSize}, the policy of ${model.vocabSize}: with another tokenizer, wrap it in a reward function that encodes the text`,
    );
  }
  if (models.includes(model) && target.kind === "full") {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "the reward model shares the policy's weights, which full training changes: load it without `backbone`, or train an adapter",
    );
  }
}
