import { type Tokenized, tokenizeUnpaired } from "../data/tokenize.ts";
import type { TokenizedExample, TokenizedUnpaired, UnpairedRow } from "../data/types.ts";
import { ktoLoss, mismatchedKl, sequenceSum, sequenceSumBackward } from "../engine/preference-losses.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { type PackedBatch, packSequences } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import type { Pass } from "../model/pass.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type KeptWeights, type TrainedPart } from "./checkpoint.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import type { TrainerWorkload } from "./memory.ts";
import { checkOptions, TRAINER_OPTIONS } from "./options.ts";
import {
  PREFERENCE_DEFAULTS,
  PREFERENCE_RULES,
  type PreferenceConfig,
  type PreferenceSettings,
  REFERENCE_DEFAULTS,
  REFERENCE_RULES,
  type ReferenceConfig,
  type ReferenceSettings,
} from "./preference-settings.ts";
import { type Network, policyOf } from "./reference.ts";
import { checkRefModel, ReferenceSource } from "./reference-source.ts";
import { checkSettings, fittingMaxLength, positive, type Rules, withDefaults } from "./settings.ts";
import { type Sums, SupervisedTrainer } from "./supervised.ts";
import {
  addNewAdapter,
  chooseTarget,
  defaultLearningRate,
  nothingToTrain,
  requireNoDropout,
  saveTarget,
  type TrainingTarget,
} from "./target.ts";
import type { PrepareOptions } from "./train-options.ts";

/**
 * Settings of Kahneman-Tversky optimisation. Default learning rate: 5e-7 for all weights, 5e-6 for an adapter; `beta` (default 0.1) is
 * the strength of the tie to the reference.
 */
export interface KTOConfig extends PreferenceConfig, ReferenceConfig {
  /**
   * Weights of desirable and of undesirable answers. Default 1. Weight times count should be the same on both sides, up to a
   * third more for the desirable.
   */
  readonly desirableWeight?: number;
  readonly undesirableWeight?: number;
}

export interface KTOTrainerOptions {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** Rows, or what `tokenizeInSlices` made of them with `unpairedRows`. */
  readonly trainData: RowsOrTokenized<UnpairedRow, TokenizedUnpaired>;
  readonly evalData?: RowsOrTokenized<UnpairedRow, TokenizedUnpaired>;
  readonly config?: KTOConfig;
  /** The reference. Default: the policy's starting point, which costs a copy only where all weights are trained. */
  readonly refModel?: CausalLM;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

type KTOSettings = PreferenceSettings &
  KTOConfig &
  ReferenceSettings &
  Required<Pick<KTOConfig, "desirableWeight" | "undesirableWeight">>;

const DEFAULTS = { ...PREFERENCE_DEFAULTS, ...REFERENCE_DEFAULTS, desirableWeight: 1, undesirableWeight: 1 };

const RULES: Rules<KTOConfig> = {
  ...PREFERENCE_RULES,
  ...REFERENCE_RULES,
  desirableWeight: positive,
  undesirableWeight: positive,
};

const LEARNING_RATES = { full: 5e-7, lora: 5e-6 };

/** The most that weight times count of desirable answers should be over that of undesirable ones (Ethayarajh et al. 2024, eq. 9). */
const BALANCE = 4 / 3;

/** What of a window has to be known before its micro-batches are run. */
interface KtoWindow {
  /** z: how far the policy is from the reference on answers to other prompts. */
  readonly kl: number;
}

/** Kahneman-Tversky optimisation (Ethayarajh et al. 2024): learning from single answers that were judged good or bad. */
export class KTOTrainer extends SupervisedTrainer<TokenizedUnpaired, KTOSettings, KtoWindow> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: Tokenized<TokenizedUnpaired>["report"];
  protected readonly name = "kto";
  protected readonly shownMetrics = ["loss", "kl", "rewards/chosen", "rewards/rejected", "eval/loss"];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;
  readonly #target: TrainingTarget;
  readonly #reference: ReferenceSource<TokenizedExample>;
  #balance: string | null;

  constructor(options: KTOTrainerOptions) {
    checkOptions("KTOTrainer", options, { ...TRAINER_OPTIONS, refModel: "optional" }, RULES);
    const { model, tokenizer, refModel } = options;
    const config = withDefaults(DEFAULTS, options.config ?? {});
    checkSettings<KTOConfig>(config, RULES);
    checkRefModel(model, refModel, config);
    if (config.batchSize * config.gradientAccumulationSteps < 2)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        "config.batchSize must be over 1: KTO compares each answer with those to other prompts of the step",
      );
    checkLabels([...itemsOf(options.trainData), ...itemsOf(options.evalData)]);
    const target = chooseTarget(model, config, "default");
    if (target.kind === "frozen") throw nothingToTrain();
    requireNoDropout(config);
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const { overlong } = config;
    const tokenize = (data: RowsOrTokenized<UnpairedRow, TokenizedUnpaired>): Tokenized<TokenizedUnpaired> =>
      tokenizedData(
        data,
        maxLength,
        (rows) => tokenizeUnpaired(rows, tokenizer, { maxLength, overlong }),
        (example) => [example],
      );
    const train = tokenize(options.trainData);
    const { evalData } = options;
    const evaluation = evalData && itemsOf(evalData).length > 0 ? tokenize(evalData).examples : [];
    super({ ...config, learningRate, maxLength }, options.outputDir, train.examples, evaluation);
    this.model = model;
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = hashSequences(
      train.examples.flatMap(({ tokens, label }) => [tokens, Int32Array.of(label ? 1 : 0)]),
    );
    this.#target = target;
    addNewAdapter(model, target);
    const optimizer = model.createOptimizer({ ...adamWOptions(this.config), adapter: target.adapter });
    this.part = { name: "model", model, optimizer };
    this.#reference = new ReferenceSource<TokenizedExample>({
      model,
      target,
      refModel,
      settings: this.config,
      answers: 1,
      measure: (network, examples) => this.#measure(network, examples),
    });
    this.#balance = imbalance(train.examples, this.config);
  }

  protected override memoryWorkloads(): readonly TrainerWorkload[] {
    const [policy] = super.memoryWorkloads() as [TrainerWorkload];
    return this.#reference.memoryWorkloads(policy);
  }

  protected override async makeReady(options: PrepareOptions): Promise<void> {
    await this.#reference.prepare(options);
    if (this.#balance !== null && options.progress) {
      options.progress.note(`kto: warning: ${this.#balance}`);
      this.#balance = null;
    }
  }

  protected tokensOf(example: TokenizedUnpaired): number {
    return example.tokens.length;
  }

  protected lossCount(examples: readonly TokenizedUnpaired[]): number {
    return examples.length;
  }

  /** Log-probs of the answers of one forward pass. */
  async #measure({ model, adapter }: Network, examples: readonly TokenizedExample[]): Promise<Float32Array> {
    const batch = packSequences(examples);
    using pass = await model.forward(batch, { adapter, predict: "masked" });
    return await this.#answerLogProbs(batch, pass);
  }

  async #answerLogProbs({ mask, offsets }: PackedBatch, pass: Pass): Promise<Float32Array> {
    const { sum } = await sequenceSum(this.model.engine, { x: pass.device.logProb, weight: mask, offsets });
    using values = sum;
    return await values.read();
  }

  /**
   * z = max(0, mean of log π/π_ref) over the prompts of the window, each with the answer of the example before it. One example
   * alone has no other answer; its z is 0.
   */
  protected override async windowOf(
    examples: readonly TokenizedUnpaired[],
    signal?: AbortSignal,
  ): Promise<KtoWindow> {
    if (examples.length < 2) return { kl: 0 };
    const mismatched = examples.map((example, i) =>
      withAnswerOf(example, examples.at(i - 1) as TokenizedUnpaired, this.config.maxLength as number),
    );
    const logProbs: number[] = [];
    const refLogProbs: number[] = [];
    for (const microBatch of this.microBatches(mismatched)) {
      throwIfAborted(signal, "evaluation");
      logProbs.push(...(await this.#measure(policyOf(this.model, this.#target), microBatch)));
      refLogProbs.push(...(await this.#reference.measure(microBatch)));
    }
    return { kl: mismatchedKl(Float32Array.from(logProbs), Float32Array.from(refLogProbs)) };
  }

  protected async runMicroBatch(
    examples: readonly TokenizedUnpaired[],
    scale: number | null,
    { kl }: KtoWindow,
  ): Promise<Sums> {
    const { engine } = this.model;
    const { beta, desirableWeight, undesirableWeight } = this.config;
    const batch = packSequences(examples);
    const { mask: weight, offsets } = batch;
    const { adapter } = this.#target;
    using pass = await this.model.forward(batch, { adapter, grad: scale !== null, predict: "masked" });
    const { dLogProb, stats } = await ktoLoss(engine, {
      logProb: await this.#answerLogProbs(batch, pass),
      refLogProb: await this.#reference.of(examples),
      label: Int32Array.from(examples, ({ label }) => (label ? 1 : -1)),
      kl,
      beta,
      desirableWeight,
      undesirableWeight,
      scale: scale ?? 0,
    });
    using dSum = dLogProb;
    const entropies = await pass.entropy();
    if (scale !== null) {
      const { dx } = await sequenceSumBackward(engine, { dSum, weight, offsets });
      using gradient = dx;
      await pass.backward({ dLogProb: gradient });
    }
    // z is one number for the window: its share of each example adds up to it.
    return {
      ...stats,
      kl: kl * examples.length,
      entropy: weight.reduce((sum, bit, t) => sum + bit * (entropies[t] as number), 0),
      tokens: weight.reduce((sum, bit) => sum + bit, 0),
    };
  }

  protected toMetrics(sums: Sums): Metrics {
    const { loss = Number.NaN, kl = 0, desirable = 0, undesirable = 0, entropy = 0, tokens = 0 } = sums;
    const count = desirable + undesirable;
    const side = (name: string, of: number): Record<string, number> =>
      of === 0
        ? {}
        : {
            [`rewards/${name}`]: (sums[`${name}Reward`] as number) / of,
            [`logps/${name}`]: (sums[`${name}LogProb`] as number) / of,
          };
    const sides = { ...side("chosen", desirable), ...side("rejected", undesirable) };
    const [chosen, rejected] = [sides["rewards/chosen"], sides["rewards/rejected"]];
    return {
      loss: loss / count,
      ...sides,
      ...(chosen === undefined || rejected === undefined ? {} : { "rewards/margins": chosen - rejected }),
      kl: kl / count,
      entropy: entropy / tokens,
    };
  }

  protected override async updated(steps: number): Promise<void> {
    await this.#reference.updated(steps);
  }

  protected override get keptWeights(): readonly KeptWeights[] {
    return this.#reference.keptWeights;
  }

  /**
   * Writes model and tokenizer as a directory that transformers loads. An adapter is merged into the weights; with
   * `saveMerged: false` it is written alone, as peft does.
   */
  async save(directory?: string): Promise<void> {
    const { saveMerged } = this.config;
    await saveTarget(this.model, this.tokenizer, this.#target, this.saveDirectory(directory), { saveMerged });
  }

  protected override release(): void {
    this.part.optimizer.dispose();
    this.#reference.dispose();
  }
}

/** Rows may come from code without types. */
function checkLabels(rows: readonly Pick<UnpairedRow, "label">[]): void {
  const at = rows.findIndex(({ label }) => typeof label !== "boolean");
  if (at >= 0)
    throw new RlhfError("ERR_RLHF_DATA", `row ${at}: "label" must be true or false, got ${rows[at]?.label}`);
}

/** An example's prompt with another one's answer, cut at the limit. */
function withAnswerOf(
  { tokens, promptLength }: TokenizedUnpaired,
  other: TokenizedUnpaired,
  maxLength: number,
): TokenizedUnpaired {
  const answer = other.tokens.subarray(other.promptLength);
  const length = Math.min(maxLength, promptLength + answer.length);
  const joined = new Int32Array(length);
  joined.set(tokens.subarray(0, promptLength));
  joined.set(answer.subarray(0, length - promptLength), promptLength);
  const lossMask = new Uint8Array(length);
  lossMask.set(
    other.lossMask.subarray(other.promptLength, other.promptLength + length - promptLength),
    promptLength,
  );
  lossMask[0] = 0;
  return { tokens: joined, promptLength, lossMask, label: other.label };
}

/** Says what to set where desirable and undesirable answers do not weigh about the same. */
function imbalance(examples: readonly TokenizedUnpaired[], settings: KTOSettings): string | null {
  const desirable = examples.filter(({ label }) => label).length;
  const undesirable = examples.length - desirable;
  if (desirable === 0 || undesirable === 0)
    return `all ${examples.length} answers are ${desirable === 0 ? "undesirable" : "desirable"}: KTO needs both kinds`;
  const { desirableWeight, undesirableWeight } = settings;
  const ratio = (desirableWeight * desirable) / (undesirableWeight * undesirable);
  if (ratio > 0.99 && ratio < BALANCE * 1.01) return null;
  const wanted = (undesirableWeight * undesirable) / desirable;
  return (
    `${desirable} desirable and ${undesirable} undesirable answers weigh ${ratio.toPrecision(3)} to 1; ` +
    `set desirableWeight between ${wanted.toPrecision(3)} and ${(BALANCE * wanted).toPrecision(3)}`
  );
}
