import { Random } from "../data/random.ts";
import { type Tokenized, tokenizePrompts } from "../data/tokenize.ts";
import type { PromptRow, TokenizedPrompt } from "../data/types.ts";
import { type GroupPolicyLossArgs, groupPolicyLoss } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { RewardSource } from "../rewards/reward.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { hashSequences, type TrainedPart } from "./checkpoint.ts";
import { itemsOf, type RowsOrTokenized, tokenizedData } from "./given-data.ts";
import { groupsOf, sampleDeviation } from "./group-advantages.ts";
import { groupWorkloads } from "./group-memory.ts";
import {
  type GroupMinibatch,
  type GroupSums,
  groupUpdateMetrics,
  summarizeGroupMinibatch,
} from "./group-metrics.ts";
import type { GroupSettings } from "./group-settings.ts";
import type { TrainerWorkload } from "./memory.ts";
import { checkReward } from "./ppo.ts";
import { type Network, policyOf, ReferencePolicy } from "./reference.ts";
import { measureLogProbs, promptsAfter, sampleRollouts, scoreRollouts } from "./rollout-steps.ts";
import { type Rollout, RolloutBatch } from "./rollouts.ts";
import { fittingMaxLength } from "./settings.ts";
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

/** What GRPO and RLOO need, each with settings of its own. */
export interface GroupTrainerOptions<Config> {
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

/** What was measured of rollouts. Per-token arrays are Float32Array[N] over `batch.packed`. */
export interface MeasuredGroups {
  /** Answers to one prompt side by side. */
  readonly batch: RolloutBatch;
  /** Float32Array[S]: clipped, and less the penalty for a missing end. */
  readonly scores: Float32Array;
  readonly logProb: Float32Array;
  /** null where no reference is kept. */
  readonly refLogProb: Float32Array | null;
  /** "objective/…" and "val/num_eos_tokens". */
  readonly metrics: Metrics;
}

/** Rollouts with all that an update needs. */
export interface GroupExperience extends MeasuredGroups {
  /** Float32Array[S]. */
  readonly advantage: Float32Array;
}

/** What the updates of one iteration did. */
export interface GroupUpdate {
  readonly minibatches: readonly GroupMinibatch[];
  readonly metrics: Metrics;
}

/** What the networks of a run are: a policy, and the reference where the KL to it counts. */
interface Networks {
  readonly policy: Network;
  readonly reference: ReferencePolicy | null;
  readonly part: TrainedPart;
}

const LEARNING_RATES = { full: 1e-6, lora: 1e-5 };

/** Random streams of evaluation, beyond any that training reaches. */
const EVALUATION_STREAM = 2 ** 40;

const meanOf = (values: ArrayLike<number>): number =>
  Array.from(values).reduce((sum, value) => sum + value, 0) / values.length;

/**
 * The trainers without a value function: each step samples a group of answers to every prompt, and an answer's advantage is how far
 * its score is above the others of its group. A subclass says what the advantages and the loss are.
 */
export abstract class GroupTrainer<Settings extends GroupSettings> extends Trainer<Settings> {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  readonly reward: RewardSource;
  /** What tokenising did to the prompts. */
  readonly tokenized: Tokenized<TokenizedPrompt>["report"];
  protected readonly shownMetrics = [
    "objective/scores",
    "objective/kl",
    "policy/clipfrac_high_avg",
    "objective/entropy",
  ];
  protected readonly dataHash: string;
  readonly #target: TrainingTarget;
  readonly #prompts: readonly TokenizedPrompt[];
  readonly #evalPrompts: readonly TokenizedPrompt[];
  #preparing: Promise<void> | null = null;
  #networks: Networks | null = null;
  #rollouts = 0;

  /** `config` is checked, with the defaults filled in, but for what depends on the model. */
  protected constructor(
    options: GroupTrainerOptions<unknown>,
    config: Omit<Settings, "learningRate" | "maxLength"> &
      Pick<GroupSettings, "seed" | "maxNewTokens" | "lora" | "adapter"> & {
        readonly learningRate?: number;
        readonly maxLength?: number;
      },
  ) {
    const { model, tokenizer, reward, evalPrompts } = options;
    const target = chooseTarget(model, config, "policy");
    if (target.kind === "frozen") throw nothingToTrain();
    checkReward(reward, model, target);
    const learningRate = config.learningRate ?? defaultLearningRate(target, LEARNING_RATES);
    const maxLength = fittingMaxLength(config.maxLength, model.maxLength, config.maxNewTokens);
    super({ ...config, learningRate, maxLength } as unknown as Settings, options.outputDir);
    this.model = model;
    this.tokenizer = tokenizer;
    this.reward = reward;
    this.#target = target;
    const { examples, report } = this.#tokenize(options.prompts);
    this.#prompts = examples;
    this.tokenized = report;
    this.#evalPrompts =
      evalPrompts && itemsOf(evalPrompts).length > 0 ? this.#tokenize(evalPrompts).examples : [];
    this.dataHash = hashSequences(this.#prompts.map((prompt) => prompt.tokens));
    addNewAdapter(model, target);
  }

  /** The advantage of each answer of a batch, Float32Array[S]. */
  protected abstract advantagesOf(measured: MeasuredGroups): Float32Array;
  /** The loss's form. */
  protected abstract readonly loss: Pick<
    GroupPolicyLossArgs,
    "level" | "surrogate" | "lowestRatio" | "highestRatio" | "klCoefficient"
  >;
  /** What a token of each rollout counts in the loss of a minibatch, Float32Array[minibatch.length]. */
  protected abstract weightsOf(batch: RolloutBatch, minibatch: Int32Array): Float32Array;

  #tokenize(data: Prompts): Tokenized<TokenizedPrompt> {
    const maxLength = this.config.maxLength as number;
    return tokenizedData(
      data,
      maxLength,
      (rows) => tokenizePrompts(rows, this.tokenizer, { maxLength }),
      (prompt) => [prompt],
    );
  }

  get totalSteps(): number {
    return this.config.numIterations;
  }

  override prepare(): Promise<void> {
    this.#preparing ??= this.#makeNetworks();
    return this.#preparing;
  }

  async #makeNetworks(): Promise<void> {
    const { model, config } = this;
    const target = this.#target;
    const policy = policyOf(model, target);
    const reference = config.klCoefficient === 0 ? null : await ReferencePolicy.startingPoint(model, target);
    const optimizer = model.createOptimizer({
      ...config,
      base: target.kind === "full",
      adapter: target.adapter,
      heads: [],
    });
    this.#networks = { policy, reference, part: { name: "policy", model, optimizer } };
  }

  async #ready(): Promise<Networks> {
    await this.prepare();
    if (this.#networks === null)
      throw new RlhfError(
        "ERR_RLHF_DISPOSED",
        `this ${this.name} trainer was used after dispose(); make another one`,
      );
    return this.#networks;
  }

  protected memoryWorkloads(): readonly TrainerWorkload[] {
    return groupWorkloads(this.model, this.#target, this.reward, this.config, [
      ...this.#prompts,
      ...this.#evalPrompts,
    ]);
  }

  protected get parts(): readonly TrainedPart[] {
    return this.#networks ? [this.#networks.part] : [];
  }

  protected override algorithmState(): Readonly<Record<string, number>> {
    return { rollouts: this.#rollouts };
  }

  protected override restoreAlgorithmState(state: Readonly<Record<string, number>>): void {
    this.#rollouts = state["rollouts"] ?? 0;
  }

  /** One iteration: groups of answers to the next prompts in order, or to the ones given, and the updates on them. */
  async trainStep(prompts?: readonly (string | PromptRow)[]): Promise<TrainingStep> {
    const { metrics } = await this.countedStep((learningRate) => this.#iterate(learningRate, prompts));
    return { step: this.step, metrics };
  }

  protected runStep(learningRate: number): Promise<StepOutcome> {
    return this.#iterate(learningRate);
  }

  async #iterate(learningRate: number, prompts?: readonly (string | PromptRow)[]): Promise<StepOutcome> {
    const experience = await this.computeAdvantages(await this.generateResponses(prompts));
    const update = await this.updatePolicy(experience, learningRate);
    return {
      metrics: { ...experience.metrics, ...update.metrics, episode: this.#rollouts },
      tokens: experience.batch.responseTokens(),
    };
  }

  /** Samples `groupSize` answers to each prompt, side by side: to the next `batchSize / groupSize` in order, or to the ones given. */
  async generateResponses(prompts?: readonly (string | PromptRow)[]): Promise<Rollout[]> {
    const { policy } = await this.#ready();
    const { batchSize, groupSize } = this.config;
    const groups = Math.floor(this.#rollouts / groupSize);
    const chosen = prompts
      ? this.#tokenize(prompts).examples
      : promptsAfter(this.#prompts, groups, batchSize / groupSize, this.config);
    const repeated = chosen.flatMap((prompt) => new Array<TokenizedPrompt>(groupSize).fill(prompt));
    const rollouts = await sampleRollouts(policy, this.tokenizer, repeated, this.#rollouts, this.config);
    this.#rollouts += repeated.length;
    return rollouts;
  }

  /** Scores rollouts of `generateResponses`, and measures log-probs and advantages. */
  async computeAdvantages(rollouts: readonly Rollout[]): Promise<GroupExperience> {
    const measured = await this.#measure(rollouts);
    const groups = groupsOf(measured.scores, this.config.groupSize);
    const deviations = groups.map(sampleDeviation);
    return {
      ...measured,
      advantage: this.advantagesOf(measured),
      metrics: {
        ...measured.metrics,
        "objective/scores_std": meanOf(deviations),
        // Groups that teach nothing: all answers scored the same.
        "objective/equal_groups": meanOf(deviations.map((deviation) => (deviation === 0 ? 1 : 0))),
      },
    };
  }

  async #measure(rollouts: readonly Rollout[]): Promise<MeasuredGroups> {
    const { policy, reference } = await this.#ready();
    const batch = new RolloutBatch(rollouts);
    // Old log-probs come from the training forward, never from decoding, so that the first ratio is exactly 1.
    const logProb = await measureLogProbs(batch, policy, this.config);
    const refLogProb = reference ? await measureLogProbs(batch, reference.network, this.config) : null;
    const { scores, spread } = await scoreRollouts(this.reward, rollouts, this.config);
    const kl = refLogProb && batch.meanPerAnswer(logProb.map((each, t) => each - (refLogProb[t] as number)));
    return {
      batch,
      scores,
      logProb,
      refLogProb,
      metrics: {
        "objective/scores": meanOf(scores),
        ...(kl === null ? {} : { "objective/kl": kl }),
        "objective/entropy": -batch.meanPerAnswer(logProb),
        ...(spread ? { "objective/reward_spread": meanOf(spread) } : {}),
        "objective/response_length": batch.responseTokens() / batch.size,
        "val/num_eos_tokens": rollouts.filter((rollout) => rollout.finishReason === "stop").length,
      },
    };
  }

  /** The updates on one batch of rollouts: `updateEpochs` passes over `numMinibatches` minibatches in a new random order each. */
  async updatePolicy(
    experience: GroupExperience,
    learningRate: number = this.learningRate,
  ): Promise<GroupUpdate> {
    const { part } = await this.#ready();
    const minibatches: GroupMinibatch[] = [];
    for (let epoch = 0; epoch < this.config.updateEpochs; epoch++) {
      for (const indices of this.#minibatches(experience.batch.size, epoch)) {
        const sums = await this.#accumulate(experience, indices);
        const { gradNorm } = await this.update(part, sums.loss, learningRate);
        minibatches.push(summarizeGroupMinibatch(indices, sums, gradNorm));
      }
    }
    return { minibatches, metrics: groupUpdateMetrics(minibatches) };
  }

  #minibatches(rollouts: number, epoch: number): Int32Array[] {
    const { seed, numMinibatches } = this.config;
    const order = new Random(seed, `${this.name} step ${this.step} epoch ${epoch}`).permutation(rollouts);
    const count = Math.min(numMinibatches, rollouts);
    const bound = (i: number): number => Math.floor((i * rollouts) / count);
    return Array.from({ length: count }, (_, i) => order.slice(bound(i), bound(i + 1)));
  }

  /** Adds up the gradients of one minibatch, however it is cut. */
  async #accumulate(experience: GroupExperience, minibatch: Int32Array): Promise<GroupSums> {
    const { batch } = experience;
    const weights = this.weightsOf(batch, minibatch);
    const weightOf = new Map(Array.from(minibatch, (rollout, i) => [rollout, weights[i] as number]));
    let total: GroupSums | null = null;
    for (const indices of batch.microBatches(this.config.microBatchTokens, minibatch)) {
      const weight = Float32Array.from(indices, (index) => weightOf.get(index) as number);
      total = add(total, await this.#backward(experience, indices, weight));
    }
    return total as GroupSums;
  }

  /** Forward, loss and backward of one micro-batch. */
  async #backward(
    { batch, logProb, refLogProb, advantage }: GroupExperience,
    indices: readonly number[],
    weight: Float32Array,
  ): Promise<GroupSums> {
    const { policy } = await this.#ready();
    const { adapter } = policy;
    const selected = batch.select(indices);
    using pass = await policy.model.forward(selected, {
      adapter,
      temperature: this.config.temperature,
      grad: true,
      predict: "masked",
    });
    const { stats, dLogProb: gradient } = await groupPolicyLoss(this.model.engine, {
      ...this.loss,
      logProb: pass.device.logProb,
      oldLogProb: batch.gather(logProb, indices),
      ...(refLogProb ? { refLogProb: batch.gather(refLogProb, indices) } : {}),
      mask: selected.mask,
      offsets: selected.offsets,
      advantage: Float32Array.from(indices, (index) => advantage[index] as number),
      weight,
    });
    using dLogProb = gradient;
    await pass.backward({ dLogProb });
    return stats;
  }

  /** Answers the evaluation prompts once each, without training: "eval/objective/…". None where there are no such prompts. */
  async evaluate(): Promise<Metrics> {
    if (this.#evalPrompts.length === 0) return {};
    const { policy } = await this.#ready();
    const rollouts = await sampleRollouts(
      policy,
      this.tokenizer,
      this.#evalPrompts,
      EVALUATION_STREAM,
      this.config,
    );
    const { metrics } = await this.#measure(rollouts);
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
    await saveTarget(this.model, this.tokenizer, this.#target, target, { saveMerged, heads: [] });
  }

  dispose(): void {
    this.#networks?.part.optimizer.dispose();
    this.#networks?.reference?.dispose();
    this.#networks = null;
  }
}

function add(a: GroupSums | null, b: GroupSums): GroupSums {
  if (a === null) return b;
  const sums = Object.entries(a).map(([name, sum]) => [name, sum + b[name as keyof GroupSums]]);
  return Object.fromEntries(sums) as GroupSums;
}
