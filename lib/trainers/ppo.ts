import { epochBatches } from "../data/batching.ts";
import { Random } from "../data/random.ts";
import { type Tokenized, tokenizePrompts } from "../data/tokenize.ts";
import type { PromptRow, TokenizedPrompt } from "../data/types.ts";
import { ppoPolicyLoss, ppoValueLoss } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { type AnswerScores, type RewardSource, rewardModels, scoreAnswers } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import { type Experience, estimateAdvantages } from "./experience.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import type { TrainerWorkload } from "./memory.ts";
import { ppoWorkloads } from "./ppo-memory.ts";
import {
  addSums,
  type MinibatchSums,
  objectiveMetrics,
  type PpoMinibatch,
  summarizeMinibatch,
  updateMetrics,
} from "./ppo-metrics.ts";
import { PpoNetworks, valueStart } from "./ppo-networks.ts";
import {
  checkCombination,
  PPO_DEFAULTS,
  PPO_RULES,
  type PPOConfig,
  type PPOSettings,
} from "./ppo-settings.ts";
import type { Network } from "./reference.ts";
import { requireOptions } from "./required-options.ts";
import { sampleRollouts } from "./rollout-steps.ts";
import { type Rollout, RolloutBatch } from "./rollouts.ts";
import { RunningStatistics, type ShapedScores, shapeScores } from "./score-shaping.ts";
import { checkSettings, fittingMaxLength, withDefaults } from "./settings.ts";
import {
  addNewAdapter,
  chooseTarget,
  defaultLearningRate,
  nothingToTrain,
  saveTarget,
  type TrainingTarget,
} from "./target.ts";
import { type StepOutcome, Trainer, type TrainingStep } from "./trainer.ts";

export interface PPOTrainerOptions {
  /** The policy; where it stands now is the reference. */
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** A reward model or an ensemble with the policy's tokenizer, or a function of prompt and response. */
  readonly reward: RewardSource;
  /** Prompts, or what `tokenizeInSlices` made of them with `promptRows`. */
  readonly prompts: RowsOrTokenized<string | PromptRow, TokenizedPrompt>;
  /** Prompts that `evaluate` answers. */
  readonly evalPrompts?: RowsOrTokenized<string | PromptRow, TokenizedPrompt>;
  readonly config?: PPOConfig;
  /** Where metrics.jsonl and checkpoints go. */
  readonly outputDir?: string;
}

/** What the updates of one iteration did. */
export interface PpoUpdate {
  readonly minibatches: readonly PpoMinibatch[];
  /** True when the approximate KL went over targetKl. */
  readonly stoppedEarly: boolean;
  readonly metrics: Metrics;
}

const LEARNING_RATES = { full: 1e-6, lora: 1e-5 };

/** Random streams of evaluation, beyond any that training reaches. */
const EVALUATION_STREAM = 2 ** 40;

/**
 * Proximal policy optimisation with a KL penalty in the reward. Each step samples answers, scores them, and updates policy and
 * value function for some epochs over minibatches of them.
 */
export class PPOTrainer extends Trainer<PPOSettings> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly reward: RewardSource;
  /** What tokenising did to the prompts. */
  readonly tokenized: Tokenized<TokenizedPrompt>["report"];
  protected readonly name = "ppo";
  protected readonly shownMetrics = [
    "objective/scores",
    "objective/kl",
    "policy/clipfrac_avg",
    "loss/value_avg",
  ];
  protected readonly dataHash: string;
  readonly #target: TrainingTarget;
  readonly #prompts: readonly TokenizedPrompt[];
  readonly #evalPrompts: readonly TokenizedPrompt[];
  #preparing: Promise<void> | null = null;
  #networks: PpoNetworks | null = null;
  #rollouts = 0;
  #klCoefficient: number;
  readonly #running = new RunningStatistics();

  constructor(options: PPOTrainerOptions) {
    requireOptions("PPOTrainer", options, ["model", "tokenizer", "reward", "prompts"]);
    const { model, tokenizer, reward } = options;
    const config = withDefaults(PPO_DEFAULTS, options.config ?? {});
    checkSettings(config, PPO_RULES);
    const target = chooseTarget(model, config, "policy");
    if (target.kind === "frozen") throw nothingToTrain();
    checkReward(reward, model, target);
    checkCombination(config, target.kind);
    valueStart(model, target, reward, config);
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength, config.maxNewTokens);
    super({ ...config, learningRate, maxLength }, options.outputDir);
    this.model = model;
    this.tokenizer = tokenizer;
    this.reward = reward;
    this.#target = target;
    const tokenize = (
      data: RowsOrTokenized<string | PromptRow, TokenizedPrompt>,
    ): Tokenized<TokenizedPrompt> =>
      tokenizedData(
        data,
        maxLength,
        (rows) => tokenizePrompts(rows, tokenizer, { maxLength }),
        (prompt) => [prompt],
      );
    const { examples, report } = tokenize(options.prompts);
    this.#prompts = examples;
    this.tokenized = report;
    const { evalPrompts } = options;
    this.#evalPrompts = evalPrompts && itemsOf(evalPrompts).length > 0 ? tokenize(evalPrompts).examples : [];
    this.dataHash = hashSequences(this.#prompts.map((prompt) => prompt.tokens));
    this.#klCoefficient = config.klCoefficient;
    addNewAdapter(model, target);
  }

  get totalSteps(): number {
    return this.config.numIterations;
  }

  /** Weight of the KL penalty now; it changes only with `klTarget`. */
  get klCoefficient(): number {
    return this.#klCoefficient;
  }

  override prepare(): Promise<void> {
    this.#preparing ??= PpoNetworks.create(this.model, this.#target, this.reward, this.config).then(
      (networks) => {
        this.#networks = networks;
      },
    );
    return this.#preparing;
  }

  async #ready(): Promise<PpoNetworks> {
    await this.prepare();
    if (this.#networks === null)
      throw new RlhfError("ERR_RLHF_DISPOSED", "this PPO trainer was used after dispose(); make another one");
    return this.#networks;
  }

  protected memoryWorkloads(): readonly TrainerWorkload[] {
    return ppoWorkloads(this.model, this.#target, this.reward, this.config, [
      ...this.#prompts,
      ...this.#evalPrompts,
    ]);
  }

  protected get parts(): readonly TrainedPart[] {
    return this.#networks?.parts ?? [];
  }

  protected override algorithmState(): Readonly<Record<string, number>> {
    const { count, mean, squares } = this.#running.state;
    return {
      rollouts: this.#rollouts,
      klCoefficient: this.#klCoefficient,
      scoreCount: count,
      scoreMean: mean,
      scoreSquares: squares,
    };
  }

  protected override restoreAlgorithmState(state: Readonly<Record<string, number>>): void {
    this.#rollouts = state.rollouts ?? 0;
    this.#klCoefficient = state.klCoefficient ?? this.config.klCoefficient;
    const { scoreCount: count = 0, scoreMean: mean = 0, scoreSquares: squares = 0 } = state;
    this.#running.state = { count, mean, squares };
  }

  /** One iteration: rollouts of the next prompts in order, or of the ones given, and the updates on them. */
  async trainStep(prompts?: readonly (string | PromptRow)[]): Promise<TrainingStep> {
    const { metrics } = await this.countedStep((learningRate) => this.#iterate(learningRate, prompts));
    return { step: this.step, metrics };
  }

  protected runStep(learningRate: number): Promise<StepOutcome> {
    return this.#iterate(learningRate);
  }

  async #iterate(learningRate: number, prompts?: readonly (string | PromptRow)[]): Promise<StepOutcome> {
    const rollouts = await this.generateResponses(prompts);
    const experience = await this.computeRewardsAndValues(rollouts);
    const update = await this.ppoStep(experience, learningRate);
    this.#adaptKlCoefficient(experience.kl, rollouts.length);
    return {
      metrics: { ...experience.metrics, ...update.metrics, episode: this.#rollouts },
      tokens: experience.batch.responseTokens(),
    };
  }

  /** β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon) (Ziegler et al. 2019). */
  #adaptKlCoefficient(kl: number, rollouts: number): void {
    const { klTarget, klHorizon } = this.config;
    if (klTarget === null || !Number.isFinite(kl)) return;
    const error = Math.min(0.2, Math.max(-0.2, kl / klTarget - 1));
    this.#klCoefficient *= 1 + (error * rollouts) / klHorizon;
  }

  /** Samples an answer to each prompt: to the next `batchSize` in order, or to the ones given. */
  async generateResponses(prompts?: readonly (string | PromptRow)[]): Promise<Rollout[]> {
    await this.#ready();
    const { maxLength } = this.config;
    const chosen = prompts
      ? tokenizePrompts(prompts, this.tokenizer, { maxLength }).examples
      : this.#nextPrompts(this.config.batchSize);
    const rollouts = await this.#sample(chosen, this.#rollouts);
    this.#rollouts += chosen.length;
    return rollouts;
  }

  /** Prompts follow from the number of rollouts so far, so a resumed run finds the same. */
  #nextPrompts(count: number): TokenizedPrompt[] {
    const all = this.#prompts.length;
    const orders = new Map<number, Int32Array>();
    return Array.from({ length: count }, (_, i) => {
      const epoch = Math.floor((this.#rollouts + i) / all);
      const place = (this.#rollouts + i) % all;
      if (!this.config.shufflePrompts) return this.#prompts[place] as TokenizedPrompt;
      const order = orders.get(epoch) ?? (epochBatches(all, all, this.config.seed, epoch)[0] as Int32Array);
      orders.set(epoch, order);
      return this.#prompts[order[place] as number] as TokenizedPrompt;
    });
  }

  #sample(prompts: readonly TokenizedPrompt[], firstStream: number): Promise<Rollout[]> {
    const policy = { model: this.model, adapter: this.#target.adapter };
    return sampleRollouts(policy, this.tokenizer, prompts, firstStream, this.config);
  }

  /**
   * Scores rollouts, and measures log-probs, values, rewards with the KL penalty, advantages and returns. With `shapeRewards` their
   * scores enter the running statistics.
   */
  async computeRewardsAndValues(rollouts: readonly Rollout[]): Promise<Experience> {
    const raw = await this.#score(rollouts);
    const { shapeRewards } = this.config;
    if (shapeRewards) this.#running.add(raw.scores);
    return this.#measureExperience(
      rollouts,
      raw,
      shapeScores(raw.scores, rollouts, this.config, shapeRewards ? this.#running : null),
    );
  }

  async #measureExperience(
    rollouts: readonly Rollout[],
    raw: AnswerScores,
    { scores, diversity }: ShapedScores,
  ): Promise<Experience> {
    const { policy, reference, value, sharesTrunk } = await this.#ready();
    const batch = new RolloutBatch(rollouts);
    // Old log-probs come from the training forward, never from decoding, so that the first ratio is exactly 1.
    const sampled = await this.#measure(batch, sharesTrunk ? { ...policy, head: value.head } : policy);
    const values = sharesTrunk ? sampled.value : (await this.#measure(batch, value, "value")).value;
    const { logProb: refLogProb } = await this.#measure(batch, reference);
    const measured = { batch, scores, logProb: sampled.logProb, refLogProb, value: values };
    const estimated = await estimateAdvantages(this.model.engine, measured, this.#klCoefficient, this.config);
    const { kl } = estimated;
    const metrics = objectiveMetrics({ ...measured, kl, raw, diversity }, this.#klCoefficient);
    return { ...measured, ...estimated, metrics };
  }

  /** Per-token arrays of all rollouts from one network, a micro-batch at a time. */
  async #measure(
    batch: RolloutBatch,
    { model, adapter, head }: Network,
    what: "logProb" | "value" = "logProb",
  ): Promise<{ logProb: Float32Array; value: Float32Array }> {
    const { microBatchTokens, temperature } = this.config;
    const logProb = new Float32Array(batch.packed.tokens.length);
    const value = new Float32Array(batch.packed.tokens.length);
    for (const indices of batch.microBatches(
      microBatchTokens,
      batch.rollouts.map((_, index) => index),
    )) {
      const statistics = what === "logProb";
      using pass = await model.forward(batch.select(indices), {
        adapter,
        head,
        temperature,
        statistics,
        predict: "masked",
      });
      if (statistics) batch.scatter(logProb, indices, await pass.logProb());
      if (head !== undefined) batch.scatter(value, indices, await pass.value());
    }
    return { logProb, value };
  }

  #score(rollouts: readonly Rollout[]): Promise<AnswerScores> {
    const { microBatchTokens, normalizeReward: normalize } = this.config;
    return scoreAnswers(this.reward, rollouts, { microBatchTokens, normalize });
  }

  /**
   * The updates on one batch of rollouts: `numPpoEpochs` passes over `numMinibatches` minibatches in a new random order each,
   * ended before an update that starts from an approximate KL over `targetKl`.
   */
  async ppoStep(experience: Experience, learningRate: number = this.learningRate): Promise<PpoUpdate> {
    const { numPpoEpochs, targetKl } = this.config;
    const minibatches: PpoMinibatch[] = [];
    let stoppedEarly = false;
    for (let epoch = 0; epoch < numPpoEpochs && !stoppedEarly; epoch++) {
      for (const indices of this.#minibatches(experience.batch.size, epoch)) {
        const sums = await this.#accumulate(experience, indices);
        stoppedEarly = targetKl !== null && sums.policy.approxKl / sums.policy.tokens > targetKl;
        const norms = stoppedEarly
          ? await this.#discardGradients()
          : await this.#applyGradients(sums, learningRate);
        minibatches.push(summarizeMinibatch(indices, sums, norms));
        if (stoppedEarly) break;
      }
    }
    return { minibatches, stoppedEarly, metrics: updateMetrics(minibatches) };
  }

  #minibatches(rollouts: number, epoch: number): Int32Array[] {
    const order = new Random(this.config.seed, `ppo step ${this.step} epoch ${epoch}`).permutation(rollouts);
    const count = Math.min(this.config.numMinibatches, rollouts);
    const bound = (i: number): number => Math.floor((i * rollouts) / count);
    return Array.from({ length: count }, (_, i) => order.slice(bound(i), bound(i + 1)));
  }

  /** Adds up the gradients of one minibatch; losses are averaged over all its response tokens, however it is cut. */
  async #accumulate(experience: Experience, minibatch: Int32Array): Promise<MinibatchSums> {
    const { batch } = experience;
    const scale = 1 / batch.responseTokens(minibatch);
    const parts: MinibatchSums[] = [];
    for (const indices of batch.microBatches(this.config.microBatchTokens, minibatch))
      parts.push(await this.#backward(experience, indices, scale));
    return parts.reduce(addSums);
  }

  /** Forward, losses and backward of one micro-batch. */
  async #backward(experience: Experience, indices: readonly number[], scale: number): Promise<MinibatchSums> {
    const { policy, value, sharesTrunk } = await this.#ready();
    const { clipRange, dualClip, valueClipRange, valueLossCoefficient, entropyCoefficient, temperature } =
      this.config;
    const { engine } = this.model;
    const batch = experience.batch.select(indices);
    const rows = (values: Float32Array): Float32Array => experience.batch.gather(values, indices);
    const { mask } = batch;
    const { adapter } = policy;
    const head = sharesTrunk ? value.head : undefined;
    using pass = await policy.model.forward(batch, {
      adapter,
      head,
      temperature,
      grad: true,
      predict: "masked",
    });
    using ownPass = sharesTrunk
      ? null
      : await value.model.forward(batch, {
          adapter: value.adapter,
          head: value.head,
          statistics: false,
          grad: true,
        });
    const policyLoss = await ppoPolicyLoss(engine, {
      logProb: pass.device.logProb,
      oldLogProb: rows(experience.logProb),
      advantage: rows(experience.advantage),
      entropy: pass.device.entropy,
      mask,
      clipRange,
      dualClip: dualClip ?? 0,
      entropyCoefficient,
      scale,
    });
    using dLogProb = policyLoss.dLogProb;
    using dEntropy = policyLoss.dEntropy ?? null;
    const valueLoss = await ppoValueLoss(engine, {
      value: (ownPass ?? pass).device.value,
      oldValue: rows(experience.value),
      returns: rows(experience.returns),
      mask,
      clipRange: valueClipRange ?? 0,
      scale: scale * valueLossCoefficient,
    });
    using dValue = valueLoss.dValue;
    const policyGradients = { dLogProb, ...(dEntropy ? { dEntropy } : {}) };
    await pass.backward(ownPass ? policyGradients : { ...policyGradients, dValue });
    await ownPass?.backward({ dValue });
    return { policy: policyLoss.stats, value: valueLoss.stats };
  }

  async #applyGradients(
    sums: MinibatchSums,
    learningRate: number,
  ): Promise<Pick<PpoMinibatch, "gradNorm" | "valueGradNorm">> {
    const { policyPart, valuePart } = await this.#ready();
    if (!valuePart) return this.update(policyPart, sums.policy.loss + sums.value.loss, learningRate);
    const { gradNorm } = await this.update(policyPart, sums.policy.loss, learningRate);
    const { gradNorm: valueGradNorm } = await this.update(valuePart, sums.value.loss, learningRate);
    return { gradNorm, valueGradNorm };
  }

  async #discardGradients(): Promise<Pick<PpoMinibatch, "gradNorm">> {
    for (const { model, optimizer } of this.parts) await model.zeroGradients(optimizer.groups);
    return { gradNorm: null };
  }

  /** Answers the evaluation prompts without training: "eval/objective/…". None where there are no such prompts. */
  async evaluate(): Promise<Metrics> {
    if (this.#evalPrompts.length === 0) return {};
    await this.#ready();
    const rollouts = await this.#sample(this.#evalPrompts, EVALUATION_STREAM);
    const raw = await this.#score(rollouts);
    // Shaped by statistics that move, scores of two evaluations would not compare.
    const scores = this.config.shapeRewards
      ? { scores: raw.scores, diversity: null }
      : shapeScores(raw.scores, rollouts, this.config, null);
    const { metrics } = await this.#measureExperience(rollouts, raw, scores);
    return Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`eval/${name}`, value]));
  }

  /**
   * Writes policy and tokenizer as a directory that transformers loads, the value head beside the weights, an adapter merged into
   * them; with `saveMerged` false the adapter alone. A value model of its own goes into `value`.
   */
  async save(directory?: string): Promise<void> {
    const { value } = await this.#ready();
    const target = this.saveDirectory(directory);
    const { saveMerged } = this.config;
    // A reward model that was lent the policy's weights has its head there too; it is no part of the policy.
    const heads = value.model === this.model ? [value.head] : [];
    await saveTarget(this.model, this.tokenizer, this.#target, target, { saveMerged, heads });
    if (value.model !== this.model) await value.model.save(`${target}/value`);
  }

  dispose(): void {
    this.#networks?.dispose();
    this.#networks = null;
  }
}

export function checkReward(reward: RewardSource, model: CausalLM, target: TrainingTarget): void {
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
