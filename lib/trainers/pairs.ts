import { type Tokenized, tokenizePreferences } from "../data/tokenize.ts";
import type { PreferenceRow, TokenizedPreference } from "../data/types.ts";
import { tokenNllLoss } from "../engine/losses.ts";
import { couplesPairs, sequenceSum, sequenceSumBackward, wpoWeight } from "../engine/preference-losses.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import type { Pass } from "../model/pass.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import { checkOptions, TRAINER_OPTIONS } from "./options.ts";
import { countNllTokens, PairBatch, sharedTokens } from "./pair-batch.ts";
import {
  type Judgement,
  joinTerms,
  judgePairs,
  type PairObjective,
  type PairTerms,
  splitTerms,
} from "./pair-losses.ts";
import type { PairConfig, PairSettings } from "./preference-settings.ts";
import type { PreferenceWatch } from "./preference-watch.ts";
import { type Network, policyOf } from "./reference.ts";
import { checkSettings, fittingMaxLength, type Rules, withDefaults } from "./settings.ts";
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
import type { TrainingStep } from "./trainer.ts";

export interface PairTrainerOptions<Config> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** Rows, or what `tokenizeInSlices` made of them with `preferenceRows`. */
  readonly trainData: RowsOrTokenized<PreferenceRow, TokenizedPreference>;
  readonly evalData?: RowsOrTokenized<PreferenceRow, TokenizedPreference>;
  readonly config?: Config;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

/** How the settings of a kind of pair trainer are read. */
export interface PairTrainerKind<Config, Settings> {
  readonly defaults: Partial<Settings>;
  readonly rules: Rules<Config>;
  readonly learningRates: { readonly full: number; readonly lora: number };
  /** Options of the constructor beyond those of all pair trainers. */
  readonly moreOptions?: Readonly<Record<string, "optional">>;
  /** Throws ERR_RLHF_ARGUMENT for settings that do not go together. */
  readonly check?: (settings: Settings) => void;
}

/** What of a window has to be known before its micro-batches are run. */
export interface PairWindow {
  readonly nllTokens: number;
  /** Of losses that compare pairs with each other: the judgement of all, pairs in the order of `place`. */
  readonly judged: (Judgement & { readonly place: ReadonlyMap<TokenizedPreference, number> }) | null;
}

/** Training on pairs of answers to one prompt, by the policy's log-probs of them. */
export abstract class PairTrainer<
  Config extends PairConfig,
  Settings extends PairSettings & Config,
> extends SupervisedTrainer<TokenizedPreference, Settings, PairWindow> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** What tokenising did to the training data. */
  readonly tokenized: Tokenized<TokenizedPreference>["report"];
  protected readonly shownMetrics = [
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "eval/rewards/accuracies",
  ];
  protected readonly part: TrainedPart;
  protected readonly dataHash: string;
  protected readonly target: TrainingTarget;
  protected abstract readonly objective: PairObjective;
  protected abstract readonly watch: PreferenceWatch;

  protected constructor(options: PairTrainerOptions<Config>, kind: PairTrainerKind<Config, Settings>) {
    checkOptions(new.target.name, options, { ...TRAINER_OPTIONS, ...kind.moreOptions }, kind.rules);
    const { model, tokenizer } = options;
    const config = withDefaults(kind.defaults, options.config ?? {}) as Settings;
    checkSettings<Config>(config, kind.rules);
    kind.check?.(config);
    const target = chooseTarget(model, config, "default");
    if (target.kind === "frozen") throw nothingToTrain();
    requireNoDropout(config);
    const learningRate = config.learningRate ?? defaultLearningRate(target, kind.learningRates);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength);
    const { overlong } = config;
    const tokenize = (
      data: RowsOrTokenized<PreferenceRow, TokenizedPreference>,
    ): Tokenized<TokenizedPreference> =>
      tokenizedData(
        data,
        maxLength,
        (rows) => tokenizePreferences(rows, tokenizer, { maxLength, overlong }),
        (pair) => [pair.chosen, pair.rejected],
      );
    const train = tokenize(options.trainData);
    const { evalData } = options;
    const evaluation = evalData && itemsOf(evalData).length > 0 ? tokenize(evalData).examples : [];
    refuseTies([...train.examples, ...evaluation]);
    super({ ...config, learningRate, maxLength }, options.outputDir, train.examples, evaluation);
    this.model = model;
    this.tokenizer = tokenizer;
    this.tokenized = train.report;
    this.dataHash = hashPairs(train.examples);
    this.target = target;
    addNewAdapter(model, target);
    const optimizer = model.createOptimizer({ ...adamWOptions(this.config), adapter: target.adapter });
    this.part = { name: "model", model, optimizer };
  }

  /** Log-probs of the answers under the reference, [2·P]; undefined where there is none. */
  protected referenceOf(_pairs: readonly TokenizedPreference[]): Promise<Float32Array | undefined> {
    return Promise.resolve(undefined);
  }

  protected tokensOf(pair: TokenizedPreference): number {
    const tokens = pair.chosen.tokens.length + pair.rejected.tokens.length;
    return this.config.sharePrompts ? tokens - sharedTokens(pair) : tokens;
  }

  protected lossCount(pairs: readonly TokenizedPreference[]): number {
    return pairs.length;
  }

  /** Log-probs of the answers of pairs that make one forward pass, [2·P]. */
  protected async measure(network: Network, pairs: readonly TokenizedPreference[]): Promise<Float32Array> {
    const packed = this.#pack(pairs);
    using pass = await this.#forward(packed, network);
    return await this.#answerLogProbs(packed, pass);
  }

  #pack(pairs: readonly TokenizedPreference[]): PairBatch {
    const { nll, ldAlpha } = this.objective;
    return new PairBatch(pairs, { nll: nll.tokens, ldAlpha, sharePrompts: this.config.sharePrompts });
  }

  #forward(packed: PairBatch, { model, adapter }: Network, grad = false): Promise<Pass> {
    return model.forward(packed.batch, { adapter, grad, predict: "masked" });
  }

  async #answerLogProbs(packed: PairBatch, pass: Pass): Promise<Float32Array> {
    const { weight, batch } = packed;
    const x = pass.device.logProb;
    const { sum } = await sequenceSum(this.model.engine, { x, weight, offsets: batch.offsets });
    using values = sum;
    return packed.ofAnswers(await values.read());
  }

  /** The weight of each pair, [P]: how likely the policy is to write both of its answers. */
  async #pairWeights({ batch, answers, chosen, rejected }: PairBatch, pass: Pass): Promise<Float32Array> {
    const { adapter } = this.target;
    // At half the temperature the logits are doubled, as the sum of all probabilities' squares needs them.
    using halved = await this.model.forward(batch, { adapter, temperature: 0.5, predict: "masked" });
    const { logProb, lse } = pass.device;
    const arrays = { logProb, lse, lseHalf: halved.device.lse, mask: answers };
    const result = await wpoWeight(this.model.engine, {
      ...arrays,
      offsets: batch.offsets,
      chosen,
      rejected,
    });
    using weight = result.weight;
    return await weight.read();
  }

  async #terms(pairs: readonly TokenizedPreference[], packed: PairBatch, pass: Pass): Promise<PairTerms> {
    return {
      logProb: await this.#answerLogProbs(packed, pass),
      refLogProb: await this.referenceOf(pairs),
      pairWeight: this.objective.weighted ? await this.#pairWeights(packed, pass) : undefined,
      tokens: packed.answerTokens,
    };
  }

  protected override async windowOf(
    pairs: readonly TokenizedPreference[],
    signal?: AbortSignal,
  ): Promise<PairWindow> {
    const { losses, nll } = this.objective;
    return {
      nllTokens: pairs.reduce((sum, pair) => sum + countNllTokens(pair, nll.tokens), 0),
      judged: couplesPairs(losses) ? await this.#judgeTogether(pairs, signal) : null,
    };
  }

  /** The losses of all pairs of a window at once, from passes of their own: log-probs are the same bits in the passes that learn. */
  async #judgeTogether(
    pairs: readonly TokenizedPreference[],
    signal: AbortSignal | undefined,
  ): Promise<PairWindow["judged"]> {
    const termsOf = new Map<TokenizedPreference, PairTerms>();
    for (const microBatch of this.microBatches(pairs)) {
      throwIfAborted(signal, "evaluation");
      const packed = this.#pack(microBatch);
      using pass = await this.#forward(packed, policyOf(this.model, this.target));
      const terms = splitTerms(await this.#terms(microBatch, packed, pass));
      for (const [i, pair] of microBatch.entries()) termsOf.set(pair, terms[i] as PairTerms);
    }
    const terms = joinTerms(pairs.map((pair) => termsOf.get(pair) as PairTerms));
    const judgement = await judgePairs(this.model.engine, this.objective, terms, 1 / this.lossCount(pairs));
    return { ...judgement, place: new Map(pairs.map((pair, i) => [pair, i])) };
  }

  protected async runMicroBatch(
    pairs: readonly TokenizedPreference[],
    scale: number | null,
    window: PairWindow,
  ): Promise<Sums> {
    const { engine } = this.model;
    const { nll } = this.objective;
    const packed = this.#pack(pairs);
    using pass = await this.#forward(packed, policyOf(this.model, this.target), scale !== null);
    const { dLogProb, stats } = window.judged
      ? partOf(window.judged, pairs)
      : await judgePairs(engine, this.objective, await this.#terms(pairs, packed, pass), scale ?? 0);
    const entropy = await this.#entropy(packed, pass);
    const likelihood = await tokenNllLoss(engine, {
      logProb: pass.device.logProb,
      weight: packed.nll,
      scale: nll.tokens === "none" ? 0 : nll.weight / window.nllTokens,
    });
    using base = likelihood.dLogProb;
    if (scale !== null) {
      const dSum = packed.ofSequences(dLogProb);
      const spread = { dSum, weight: packed.weight, offsets: packed.batch.offsets, base };
      const { dx } = await sequenceSumBackward(engine, spread);
      using gradient = dx;
      await pass.backward({ dLogProb: gradient });
    }
    return { ...stats, ...entropy, nll: likelihood.stats.loss, nllTokens: likelihood.stats.weight };
  }

  async #entropy({ answers }: PairBatch, pass: Pass): Promise<Sums> {
    const values = await pass.entropy();
    let [entropy, tokens] = [0, 0];
    answers.forEach((bit, t) => {
      entropy += bit * (values[t] as number);
      tokens += bit;
    });
    return { entropy, tokens };
  }

  protected toMetrics(sums: Sums): Metrics {
    const { pairs = 0, nll = 0, nllTokens = 0 } = sums;
    const { losses, nll: learnt } = this.objective;
    const mean = (name: string): number => (sums[name] ?? Number.NaN) / pairs;
    const nllLoss = nll / nllTokens;
    const terms = losses.length > 1 ? losses.map(({ type }) => [`loss/${type}`, mean(`loss/${type}`)]) : [];
    return {
      loss: learnt.tokens === "none" ? mean("loss") : mean("loss") + learnt.weight * nllLoss,
      ...Object.fromEntries(terms),
      ...(learnt.tokens === "none" ? {} : { nll_loss: nllLoss }),
      "rewards/chosen": mean("chosenReward"),
      "rewards/rejected": mean("rejectedReward"),
      "rewards/accuracies": mean("correct"),
      "rewards/margins": mean("margin"),
      "logps/chosen": mean("chosenLogProb"),
      "logps/rejected": mean("rejectedLogProb"),
      entropy: (sums.entropy ?? Number.NaN) / (sums.tokens ?? 0),
    };
  }

  override async evaluate(signal?: AbortSignal): Promise<Metrics> {
    const metrics = await super.evaluate(signal);
    this.watch.observeEvaluation(metrics);
    return metrics;
  }

  protected override warningsOf(step: TrainingStep): readonly string[] {
    return this.watch.observe(step);
  }

  /**
   * Writes model and tokenizer as a directory that transformers loads. An adapter is merged into the weights; with
   * `saveMerged: false` it is written alone, as peft does.
   */
  async save(directory?: string): Promise<void> {
    const { saveMerged } = this.config;
    await saveTarget(this.model, this.tokenizer, this.target, this.saveDirectory(directory), { saveMerged });
  }

  protected override release(): void {
    this.part.optimizer.dispose();
  }
}

/** A hash of pairs' tokens and of where their answers begin. */
export function hashPairs(pairs: readonly TokenizedPreference[]): string {
  return hashSequences(
    pairs.flatMap(({ chosen, rejected }) => [
      Int32Array.of(chosen.promptLength, rejected.promptLength),
      chosen.tokens,
      rejected.tokens,
    ]),
  );
}

/** Throws ERR_RLHF_DATA where two answers were judged alike: of such a pair neither is to be preferred. */
function refuseTies(pairs: readonly TokenizedPreference[]): void {
  const ties = pairs.filter(({ tie }) => tie).length;
  if (ties > 0)
    throw new RlhfError(
      "ERR_RLHF_DATA",
      `${ties} of ${pairs.length} pairs are ties, of which nothing can be preferred; leave them out (loadPreferences does, with ties: "drop")`,
      { ties },
    );
}

/** What was said of some pairs of a window; its sums are told with the first pair. */
function partOf(
  { dLogProb, stats, place }: NonNullable<PairWindow["judged"]>,
  pairs: readonly TokenizedPreference[],
): Judgement {
  const places = pairs.map((pair) => place.get(pair) as number);
  return {
    dLogProb: Float32Array.from(places.flatMap((at) => [...dLogProb.subarray(2 * at, 2 * at + 2)])),
    stats: places.includes(0) ? stats : {},
  };
}
