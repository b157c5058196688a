import { type GroupPolicyLossArgs, groupPolicyLoss } from "../engine/losses.ts";
import type { Pass } from "../model/pass.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { groupsOf, sampleDeviation } from "./group-advantages.ts";
import { groupWorkloads } from "./group-memory.ts";
import {
  type GroupMinibatch,
  type GroupSums,
  groupUpdateMetrics,
  summarizeGroupMinibatch,
} from "./group-metrics.ts";
import { GroupNetworks } from "./group-networks.ts";
import { checkGroupCombination, type GroupConfig, type GroupSettings } from "./group-settings.ts";
import { trainingPass, withKlLoss } from "./kl-loss.ts";
import type { TrainerWorkload } from "./memory.ts";
import { type Algorithm, type Learned, OnlineTrainer, type OnlineTrainerOptions } from "./online.ts";
import { type OpeningPass, trainOnLoss } from "./opening-pass.ts";
import { addSums, answerMetrics, meanOf } from "./rollout-metrics.ts";
import { measureRollouts } from "./rollout-steps.ts";
import { type Rollout, RolloutBatch } from "./rollouts.ts";
import type { ScoredRollouts } from "./score-shaping.ts";

/** What was measured of rollouts. Per-token arrays are Float32Array[N] over `batch.packed`. */
export interface MeasuredGroups {
  /** Answers to one prompt side by side. */
  readonly batch: RolloutBatch;
  /** Float32Array[S]: shaped and clipped, with bonus and penalties. */
  readonly scores: Float32Array;
  readonly logProb: Float32Array;
  /** null where no reference is kept. */
  readonly refLogProb: Float32Array | null;
  /** "objective/…" and "val/num_eos_tokens". */
  readonly metrics: Metrics;
}

/** Rollouts with all that an update needs. */
export interface GroupExperience extends MeasuredGroups {
  /** Float32Array[S]; of REINFORCE++, whose tokens have advantages of their own, Float32Array[N]. */
  readonly advantage: Float32Array;
}

/** What the updates of one iteration did. */
export interface GroupUpdate {
  readonly minibatches: readonly GroupMinibatch[];
  readonly metrics: Metrics;
}

/**
 * The trainers without a value function: each step samples a group of answers to every prompt, and scores are measured against those of
 * the group, or of the batch. A subclass says what the advantages and the loss are.
 */
export abstract class GroupTrainer<
  Config extends GroupConfig = GroupConfig,
  Settings extends GroupSettings & Config = GroupSettings & Config,
> extends OnlineTrainer<Config, Settings, GroupNetworks> {
  protected readonly shownMetrics = [
    "objective/scores",
    "objective/kl",
    "policy/clipfrac_high_avg",
    "objective/entropy",
  ];

  protected constructor(
    options: OnlineTrainerOptions<Config>,
    algorithm: Omit<Algorithm<Config, Settings>, "check"> &
      Partial<Pick<Algorithm<Config, Settings>, "check">>,
  ) {
    super(options, { check: checkGroupCombination, ...algorithm });
  }

  /** The advantages of a batch's answers, Float32Array[S], or of all tokens, Float32Array[N]. */
  protected abstract advantagesOf(measured: MeasuredGroups): Float32Array | Promise<Float32Array>;
  /** Whether they are those of tokens. */
  protected readonly tokenAdvantages: boolean = false;
  /** The loss's form. */
  protected abstract readonly loss: Pick<
    GroupPolicyLossArgs,
    "level" | "surrogate" | "lowestRatio" | "highestRatio" | "klCoefficient" | "weighKl"
  >;
  /** What a token of each rollout counts in the loss of a minibatch, Float32Array[minibatch.length]. */
  protected abstract weightsOf(batch: RolloutBatch, minibatch: Int32Array): Float32Array;

  protected get answersPerPrompt(): number {
    return this.config.groupSize;
  }

  protected override makeNetworks(): Promise<GroupNetworks> {
    return GroupNetworks.create(this.model, this.target, this.config);
  }

  protected memoryWorkloads(): readonly TrainerWorkload[] {
    const { model, target, reward, config, allPrompts } = this;
    const [policy, ...others] = groupWorkloads(model, target, reward, config, allPrompts);
    return [{ ...(policy as TrainerWorkload), lossInside: this.#lossInside }, ...others];
  }

  /** Whether the loss's gradient at a token depends on that token alone. */
  get #lossInside(): boolean {
    return (this.loss.level ?? "token") === "token" && this.config.klLossCoefficient === 0;
  }

  protected override async learn(rollouts: readonly Rollout[], learningRate: number): Promise<Learned> {
    using opening = this.#lossInside ? this.openingPass() : null;
    const experience = await this.#advantages(rollouts, opening);
    const update = await this.#updates(experience, learningRate, opening);
    return {
      metrics: { ...experience.metrics, ...update.metrics },
      tokens: experience.batch.responseTokens(),
    };
  }

  /** Scores rollouts of `generateResponses`, and measures log-probs and advantages. */
  computeAdvantages(rollouts: readonly Rollout[]): Promise<GroupExperience> {
    return this.#advantages(rollouts);
  }

  async #advantages(
    rollouts: readonly Rollout[],
    opening: OpeningPass | null = null,
  ): Promise<GroupExperience> {
    const measured = await this.measureAnswers(rollouts, await this.scoreRollouts(rollouts), opening);
    return {
      ...measured,
      advantage: await this.advantagesOf(measured),
      metrics: { ...measured.metrics, ...this.#groupMetrics(measured.scores) },
    };
  }

  #groupMetrics(scores: Float32Array): Metrics {
    const { groupSize } = this.config;
    if (groupSize < 2) return {};
    const deviations = groupsOf(scores, groupSize).map(sampleDeviation);
    return {
      "objective/scores_std": meanOf(deviations),
      // Groups whose answers cannot be told apart: all scored the same.
      "objective/equal_groups": meanOf(deviations.map((deviation) => (deviation === 0 ? 1 : 0))),
    };
  }

  protected override async measureAnswers(
    rollouts: readonly Rollout[],
    scored: ScoredRollouts,
    opening: OpeningPass | null = null,
  ): Promise<MeasuredGroups> {
    const { policy, reference } = await this.ready();
    const batch = new RolloutBatch(rollouts, { sharePrompts: true });
    const refLogProb = reference ? (await measureRollouts(batch, reference, this.config)).logProb : null;
    // Old log-probs come from the training forward, never from decoding, so that the first ratio is exactly 1.
    const { logProb } = await measureRollouts(batch, policy, this.config, { opening });
    const kl = refLogProb && batch.meanPerAnswer(logProb.map((each, t) => each - (refLogProb[t] as number)));
    const metrics = answerMetrics(batch, scored, logProb, kl);
    return { batch, scores: scored.scores, logProb, refLogProb, metrics };
  }

  /** The updates on one batch of rollouts: `updateEpochs` passes over `numMinibatches` minibatches in a new random order each. */
  updatePolicy(experience: GroupExperience, learningRate: number = this.learningRate): Promise<GroupUpdate> {
    return this.#updates(experience, learningRate);
  }

  async #updates(
    experience: GroupExperience,
    learningRate: number,
    opening: OpeningPass | null = null,
  ): Promise<GroupUpdate> {
    const { policyPart } = await this.ready();
    const minibatches: GroupMinibatch[] = [];
    for (let epoch = 0; epoch < this.config.updateEpochs; epoch++) {
      for (const indices of this.minibatches(experience.batch.size, epoch)) {
        const sums = await this.#accumulate(experience, indices, opening);
        const { gradNorm } = await this.update(policyPart, sums.loss, learningRate);
        minibatches.push(summarizeGroupMinibatch(indices, sums, gradNorm));
      }
    }
    const measured = this.config.klLossCoefficient !== 0;
    return { minibatches, metrics: groupUpdateMetrics(minibatches, { divergence: measured }) };
  }

  /** Adds up the gradients of one minibatch, however it is cut. */
  async #accumulate(
    experience: GroupExperience,
    minibatch: Int32Array,
    opening: OpeningPass | null,
  ): Promise<GroupSums> {
    const { batch } = experience;
    const weights = this.weightsOf(batch, minibatch);
    const weightOf = new Map(Array.from(minibatch, (rollout, i) => [rollout, weights[i] as number]));
    const parts: GroupSums[] = [];
    for (const indices of batch.microBatches(this.config.microBatchTokens, minibatch)) {
      const weight = batch.ofSequences(indices, (index) => weightOf.get(index) as number);
      parts.push(await this.#backward(experience, indices, weight, opening?.take() ?? null));
    }
    return parts.reduce(addSums);
  }

  /** Forward, unless the pass has `begun`, loss and backward of one micro-batch. */
  async #backward(
    { batch, logProb, refLogProb, advantage }: GroupExperience,
    indices: readonly number[],
    weight: Float32Array,
    begun: Pass | null,
  ): Promise<GroupSums> {
    const { policy, reference } = await this.ready();
    const selected = batch.select(indices);
    const { level, ...form } = this.loss;
    const loss = {
      ...form,
      oldLogProb: batch.gather(logProb, indices),
      refLogProb: refLogProb ? batch.gather(refLogProb, indices) : undefined,
      ...(this.tokenAdvantages
        ? { tokenAdvantage: batch.gather(advantage, indices) }
        : { advantage: batch.ofSequences(indices, (index) => advantage[index] as number) }),
      weight,
    };
    if (this.#lossInside) {
      const { model, adapter } = policy;
      const { temperature } = this.config;
      const given = { adapter, temperature, predict: "masked" } as const;
      const { stats } = await trainOnLoss(model, selected, { kind: "group", ...loss }, given, begun);
      return { ...stats, divergence: 0 };
    }
    using pass = await trainingPass(policy, reference, selected, this.config);
    const { stats, dLogProb: gradient } = await groupPolicyLoss(this.model.engine, {
      ...{ ...loss, level, logProb: pass.device.logProb, mask: selected.mask, offsets: selected.offsets },
    });
    using dLogProb = gradient;
    const { refLogProb: measured } = loss;
    const penalty = await withKlLoss(pass, selected, weight, this.config, { dLogProb, refLogProb: measured });
    await pass.backward(penalty.gradients);
    return { ...stats, loss: stats.loss + penalty.loss, divergence: penalty.divergence };
  }
}
