import { DeviceArray, type FloatArray } from "../engine/array.ts";
import { ppoPolicyLoss, ppoValueLoss } from "../engine/losses.ts";
import type { PackedBatch } from "../model/batch.ts";
import type { ValueLoss } from "../model/forward-backward.ts";
import type { Pass } from "../model/pass.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { EndPlaces, hasEndPlace } from "./end-places.ts";
import { type Experience, estimateAdvantages } from "./experience.ts";
import { trainingPass, withKlLoss } from "./kl-loss.ts";
import type { TrainerWorkload } from "./memory.ts";
import { type Learned, OnlineTrainer, type OnlineTrainerOptions } from "./online.ts";
import { type OpeningPass, trainOnLoss } from "./opening-pass.ts";
import { ppoWorkloads } from "./ppo-memory.ts";
import {
  addMinibatchSums,
  type MinibatchSums,
  objectiveMetrics,
  type PpoMinibatch,
  summarizeMinibatch,
  updateMetrics,
} from "./ppo-metrics.ts";
import { PpoNetworks, VALUE, valueStart } from "./ppo-networks.ts";
import {
  checkCombination,
  lossIsInside,
  measuresAsItTrains,
  PPO_DEFAULTS,
  PPO_RULES,
  type PPOConfig,
  type PPOSettings,
} from "./ppo-settings.ts";
import type { Network } from "./reference.ts";
import { compareRollouts, measureRollouts } from "./rollout-steps.ts";
import { type Rollout, RolloutBatch } from "./rollouts.ts";
import type { ScoredRollouts } from "./score-shaping.ts";

export type PPOTrainerOptions = OnlineTrainerOptions<PPOConfig>;

/** What the updates of one iteration did. */
export interface PpoUpdate {
  readonly minibatches: readonly PpoMinibatch[];
  /** True when the approximate KL went over targetKl. */
  readonly stoppedEarly: boolean;
  readonly metrics: Metrics;
}

/**
 * Proximal policy optimisation with a KL penalty in the reward. Each step samples answers, scores them, and updates policy and
 * value function for some epochs over minibatches of them.
 */
export class PPOTrainer extends OnlineTrainer<PPOConfig, PPOSettings, PpoNetworks> {
  protected readonly name = "ppo";
  protected readonly answersPerPrompt = 1;
  protected readonly shownMetrics = [
    "objective/scores",
    "objective/kl",
    "policy/clipfrac_avg",
    "loss/value_avg",
  ];
  #klCoefficient: number;

  /** Throws ERR_RLHF_ARGUMENT for settings that are wrong, alone or together. */
  constructor(options: PPOTrainerOptions) {
    super(options, {
      className: "PPOTrainer",
      defaults: PPO_DEFAULTS,
      rules: PPO_RULES,
      check(settings, target, { model, reward }) {
        checkCombination(settings, target.kind);
        valueStart(model, target, reward, settings);
      },
    });
    this.#klCoefficient = this.config.klCoefficient;
  }

  /** Weight of the KL penalty now; it changes only with `klTarget`. */
  get klCoefficient(): number {
    return this.#klCoefficient;
  }

  protected override makeNetworks(): Promise<PpoNetworks> {
    return PpoNetworks.create(this.model, this.target, this.reward, this.config);
  }

  protected memoryWorkloads(): readonly TrainerWorkload[] {
    return ppoWorkloads(this.model, this.target, this.reward, this.config, this.allPrompts);
  }

  protected override algorithmState(): Readonly<Record<string, number>> {
    return { ...super.algorithmState(), klCoefficient: this.#klCoefficient };
  }

  protected override restoreAlgorithmState(state: Readonly<Record<string, number>>): void {
    super.restoreAlgorithmState(state);
    this.#klCoefficient = state["klCoefficient"] ?? this.config.klCoefficient;
  }

  protected override async learn(rollouts: readonly Rollout[], learningRate: number): Promise<Learned> {
    using opening = measuresAsItTrains(this.config) ? this.openingPass() : null;
    const experience = await this.measureAnswers(rollouts, await this.scoreRollouts(rollouts), opening);
    const update = await this.#updates(experience, learningRate, opening);
    this.#adaptKlCoefficient(experience.kl, rollouts.length);
    return {
      metrics: { ...experience.metrics, ...update.metrics },
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

  /**
   * Scores rollouts, and measures log-probs, values, rewards with the KL penalty, advantages and returns. With `shapeRewards` their
   * scores enter the running statistics.
   */
  async computeRewardsAndValues(rollouts: readonly Rollout[]): Promise<Experience> {
    return this.measureAnswers(rollouts, await this.scoreRollouts(rollouts));
  }

  protected override async measureAnswers(
    rollouts: readonly Rollout[],
    scored: ScoredRollouts,
    opening: OpeningPass | null = null,
  ): Promise<Experience> {
    const { policy, reference, value, sharesTrunk } = await this.ready();
    const { config } = this;
    const batch = new RolloutBatch(rollouts);
    const valued = sharesTrunk ? null : await measureRollouts(batch, value, config, { logProbs: false });
    // Old log-probs come from the training forward, never from decoding, so that the first ratio is exactly 1.
    const trunk = sharesTrunk ? { ...policy, head: value.head } : policy;
    const sampled = await this.#compareWithReference(batch, trunk, reference, opening);
    const measured = { ...sampled, batch, scores: scored.scores, value: (valued ?? sampled).value };
    const estimated = await estimateAdvantages(this.model.engine, measured, this.#klCoefficient, config);
    const experience = { ...measured, ...estimated };
    return { ...experience, metrics: objectiveMetrics(experience, scored, this.#klCoefficient) };
  }

  async #compareWithReference(
    batch: RolloutBatch,
    policy: Network,
    reference: Network,
    opening: OpeningPass | null,
  ): Promise<Pick<Experience, "logProb" | "value" | "refLogProb" | "divergence">> {
    if (this.config.klEstimator === "full") return compareRollouts(batch, policy, reference, this.config);
    const { logProb: refLogProb } = await measureRollouts(batch, reference, this.config);
    const sampled = await measureRollouts(batch, policy, this.config, { opening });
    return { ...sampled, refLogProb, divergence: null };
  }

  /**
   * The updates on one batch of rollouts: `numPpoEpochs` passes over `numMinibatches` minibatches in a new random order each,
   * ended before an update that starts from an approximate KL over `targetKl`.
   */
  ppoStep(experience: Experience, learningRate: number = this.learningRate): Promise<PpoUpdate> {
    return this.#updates(experience, learningRate);
  }

  async #updates(
    experience: Experience,
    learningRate: number,
    opening: OpeningPass | null = null,
  ): Promise<PpoUpdate> {
    const { numPpoEpochs, targetKl } = this.config;
    const minibatches: PpoMinibatch[] = [];
    let stoppedEarly = false;
    for (let epoch = 0; epoch < numPpoEpochs && !stoppedEarly; epoch++) {
      for (const indices of this.minibatches(experience.batch.size, epoch)) {
        const sums = await this.#accumulate(experience, indices, opening);
        stoppedEarly = targetKl !== null && sums.policy.approxKl / sums.policy.tokens > targetKl;
        const norms = stoppedEarly
          ? await this.#discardGradients()
          : await this.#applyGradients(sums, learningRate);
        minibatches.push(summarizeMinibatch(indices, sums, norms));
        if (stoppedEarly) break;
      }
    }
    const measured = this.config.klLossCoefficient !== 0;
    return { minibatches, stoppedEarly, metrics: updateMetrics(minibatches, { divergence: measured }) };
  }

  /** Adds up the gradients of one minibatch; losses are averaged over all its response tokens, however it is cut. */
  async #accumulate(
    experience: Experience,
    minibatch: Int32Array,
    opening: OpeningPass | null,
  ): Promise<MinibatchSums> {
    const { batch, endReturns } = experience;
    const tokens = batch.responseTokens(minibatch);
    const ends = endReturns ? minibatch.filter((index) => hasEndPlace(batch.rollouts[index])).length : 0;
    const scales = { policy: 1 / tokens, value: 1 / (tokens + ends) };
    const parts: MinibatchSums[] = [];
    for (const indices of batch.microBatches(this.config.microBatchTokens, minibatch))
      parts.push(await this.#backward(experience, indices, scales, opening?.take() ?? null));
    return parts.reduce(addMinibatchSums);
  }

  /** Forward, unless the policy's pass has `begun`, losses and backward of one micro-batch. */
  async #backward(
    experience: Experience,
    indices: readonly number[],
    scales: { readonly policy: number; readonly value: number },
    begun: Pass | null,
  ): Promise<MinibatchSums> {
    const { policy, reference, value, sharesTrunk } = await this.ready();
    const { clipRange, dualClip, entropyCoefficient, temperature } = this.config;
    const batch = experience.batch.select(indices);
    const rows = (values: Float32Array): Float32Array => experience.batch.gather(values, indices);
    const loss = {
      oldLogProb: rows(experience.logProb),
      advantage: rows(experience.advantage),
      clipRange,
      dualClip: dualClip ?? 0,
      entropyCoefficient,
      scale: scales.policy,
    };
    const trunk = sharesTrunk ? { ...policy, head: value.head } : policy;
    const valuesAlone = (): Promise<MinibatchSums["value"]> =>
      this.#trainValues(value, batch, experience, indices, scales.value);
    if (lossIsInside(this.config)) {
      const { adapter, head } = trunk;
      const values = sharesTrunk ? this.#valueLossOf(experience, indices, scales.value) : undefined;
      const { stats, valueStats } = await trainOnLoss(
        policy.model,
        batch,
        { kind: "ppo", ...loss },
        { adapter, temperature, predict: "masked", values: "masked", ...(values && { head, value: values }) },
        begun,
      );
      return { policy: stats, value: valueStats ?? (await valuesAlone()), kl: { loss: 0, divergence: 0 } };
    }
    using pass = await trainingPass(trunk, reference, batch, this.config);
    const { logProb, entropy } = pass.device;
    const { mask } = batch;
    const policyLoss = await ppoPolicyLoss(this.model.engine, { ...loss, logProb, entropy, mask });
    using dLogProb = policyLoss.dLogProb;
    using dEntropy = policyLoss.dEntropy ?? null;
    const penalty = await withKlLoss(pass, batch, scales.policy, this.config, {
      dLogProb,
      refLogProb: rows(experience.refLogProb),
    });
    const gradients = { ...penalty.gradients, ...(dEntropy ? { dEntropy } : {}) };
    const valueLoss = sharesTrunk
      ? await this.#valueLoss(pass, batch, experience, indices, scales.value)
      : null;
    const dValue = valueLoss?.dValue;
    using _ = dValue instanceof DeviceArray ? dValue : null;
    await pass.backward({ ...gradients, ...(dValue && { dValue }) });
    return {
      policy: policyLoss.stats,
      value: valueLoss?.stats ?? (await valuesAlone()),
      kl: { loss: penalty.loss, divergence: penalty.divergence },
    };
  }

  /** Forward, loss and backward of a value function with a trunk of its own. */
  async #trainValues(
    { model, adapter, head }: Network,
    batch: PackedBatch,
    experience: Experience,
    indices: readonly number[],
    scale: number,
  ): Promise<MinibatchSums["value"]> {
    const options = { adapter, head, statistics: false, values: "masked", grad: true } as const;
    using pass = await model.forward(batch, options);
    const { dValue, stats } = await this.#valueLoss(pass, batch, experience, indices, scale);
    using _ = dValue instanceof DeviceArray ? dValue : null;
    await pass.backward({ dValue });
    return stats;
  }

  /** The value loss of a micro-batch whose values the pass computes. */
  #valueLossOf(
    { batch, value, returns }: Pick<Experience, "batch" | "value" | "returns">,
    indices: readonly number[],
    scale: number,
  ): ValueLoss & Readonly<Record<"oldValue" | "returns", Float32Array>> {
    const { valueClipRange, valueLossCoefficient } = this.config;
    return {
      oldValue: batch.gather(value, indices),
      returns: batch.gather(returns, indices),
      clipRange: valueClipRange ?? 0,
      scale: scale * valueLossCoefficient,
    };
  }

  /** The value loss of a micro-batch, and its gradient by the values of all rows. */
  async #valueLoss(
    pass: Pass,
    batch: PackedBatch,
    experience: Experience,
    indices: readonly number[],
    scale: number,
  ): Promise<{ readonly dValue: FloatArray; readonly stats: MinibatchSums["value"] }> {
    const { engine } = this.model;
    const { batch: all, endReturns } = experience;
    const { oldValue, returns, ...settings } = this.#valueLossOf(experience, indices, scale);
    if (!endReturns)
      return ppoValueLoss(engine, {
        ...{ value: pass.device.value, oldValue, returns, mask: batch.mask },
        ...settings,
      });
    const ends = new EndPlaces(
      batch,
      indices.map((index) => all.rollouts[index] as Rollout),
    );
    const ofEnds = Float32Array.from(indices, (index) => endReturns[index] as number);
    const { dValue: gradient, stats } = await ppoValueLoss(engine, {
      value: ends.insert(await pass.value()),
      oldValue: ends.insert(oldValue),
      returns: ends.insert(returns, ofEnds),
      mask: ends.mask,
      ...settings,
    });
    using longer = gradient;
    return { dValue: ends.remove(await longer.read()), stats };
  }

  async #applyGradients(
    sums: MinibatchSums,
    learningRate: number,
  ): Promise<Pick<PpoMinibatch, "gradNorm" | "valueGradNorm">> {
    const { policyPart, valuePart } = await this.ready();
    const policyLoss = sums.policy.loss + sums.kl.loss;
    if (!valuePart) return this.update(policyPart, policyLoss + sums.value.loss, learningRate);
    const { gradNorm } = await this.update(policyPart, policyLoss, learningRate);
    const { gradNorm: valueGradNorm } = await this.update(valuePart, sums.value.loss, learningRate);
    return { gradNorm, valueGradNorm };
  }

  async #discardGradients(): Promise<Pick<PpoMinibatch, "gradNorm">> {
    for (const { model, optimizer } of this.parts) await model.zeroGradients(optimizer.groups);
    return { gradNorm: null };
  }

  protected override get savedHeads(): readonly string[] {
    return this.config.valueModel === "separate" ? [] : [VALUE];
  }

  /**
   * Writes policy and tokenizer as a directory that transformers loads, the value head beside the weights, an adapter merged into
   * them; with `saveMerged` false the adapter alone. A value model of its own goes into `value`.
   */
  override async save(directory?: string): Promise<void> {
    const { value } = await this.ready();
    await super.save(directory);
    if (value.model !== this.model) await value.model.save(`${this.saveDirectory(directory)}/value`);
  }
}
