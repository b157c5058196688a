import { Random } from "../data/random.ts";
import type { DeviceArray } from "../engine/array.ts";
import type { Engine } from "../engine/engine.ts";
import { gae, ppoPolicyLoss, ppoValueLoss, whiten } from "../engine/losses.ts";
import type { FlatAdamW } from "../model/flat-parameters.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { ActorCritic } from "./actor-critic.ts";
import type { EnvironmentRollouts } from "./rollouts.ts";
import type { EnvironmentPPOSettings } from "./settings.ts";

/** [N] each. */
export interface Advantages {
  readonly advantage: Float32Array;
  readonly returns: Float32Array;
}

async function taken(array: DeviceArray): Promise<Float32Array> {
  const values = await array.read();
  array.dispose();
  return values;
}

/**
 * Advantages of rollouts by the engine's GAE. There, the value of a sequence's row t stands at t − 1 and is 0 after the last row: each
 * segment gets a row in front, and its last reward γ·V of the state it was cut off at.
 */
export async function computeEnvironmentAdvantages(
  engine: Engine,
  rollouts: Pick<EnvironmentRollouts, "reward" | "value" | "segments">,
  settings: Pick<EnvironmentPPOSettings, "gamma" | "lambda" | "whitenAdvantages">,
): Promise<Advantages> {
  const { segments } = rollouts;
  const { gamma, lambda } = settings;
  const offsets = new Int32Array(segments.length + 1);
  segments.forEach(({ length }, i) => {
    offsets[i + 1] = (offsets[i] as number) + length + 1;
  });
  const rows = offsets[segments.length] as number;
  const [reward, value, mask] = [new Float32Array(rows), new Float32Array(rows), new Float32Array(rows)];
  segments.forEach(({ start, length, bootstrap }, i) => {
    const first = offsets[i] as number;
    value.set(rollouts.value.subarray(start, start + length), first);
    reward.set(rollouts.reward.subarray(start, start + length), first + 1);
    mask.fill(1, first + 1, first + 1 + length);
    const last = first + length;
    reward[last] = (reward[last] as number) + gamma * bootstrap;
  });
  const estimate = await gae(engine, { reward, value, mask, offsets, gamma, lambda });
  const packed = { advantage: await taken(estimate.advantage), returns: await taken(estimate.returns) };
  const unpacked = (values: Float32Array): Float32Array => {
    const result = new Float32Array(rollouts.value.length);
    segments.forEach(({ start, length }, i) => {
      const first = (offsets[i] as number) + 1;
      result.set(values.subarray(first, first + length), start);
    });
    return result;
  };
  const advantage = unpacked(packed.advantage);
  const returns = unpacked(packed.returns);
  if (!settings.whitenAdvantages) return { advantage, returns };
  const ones = new Float32Array(advantage.length).fill(1);
  return { advantage: await taken((await whiten(engine, { x: advantage, mask: ones })).y), returns };
}

/** The rows of an array of `width` numbers each. */
function gather(values: Float32Array, rows: Int32Array, width = 1): Float32Array {
  const result = new Float32Array(rows.length * width);
  rows.forEach((row, i) => {
    result.set(values.subarray(row * width, (row + 1) * width), i * width);
  });
  return result;
}

/** PPO's updates from one iteration's rollouts. */
export class EnvironmentUpdates {
  readonly #engine: Engine;
  readonly #networks: ActorCritic;
  readonly #optimizer: FlatAdamW;
  readonly #settings: EnvironmentPPOSettings;
  readonly #observationSize: number;

  constructor(
    engine: Engine,
    networks: ActorCritic,
    optimizer: FlatAdamW,
    observationSize: number,
    settings: EnvironmentPPOSettings,
  ) {
    this.#engine = engine;
    this.#networks = networks;
    this.#optimizer = optimizer;
    this.#observationSize = observationSize;
    this.#settings = settings;
  }

  /** All epochs of one iteration; metrics are means over its minibatches, `skipped` counts gradients that were not finite. */
  async run(
    rollouts: EnvironmentRollouts,
    advantages: Advantages,
    iteration: number,
    learningRate: number,
  ): Promise<{ metrics: Metrics; skipped: number }> {
    const { numPpoEpochs, numMinibatches, targetKl, seed } = this.#settings;
    const measured: Metrics[] = [];
    const total = rollouts.logProb.length;
    const minibatches = Math.min(numMinibatches, total);
    epochs: for (let epoch = 0; epoch < numPpoEpochs; epoch++) {
      const order = new Random(seed, `minibatches of iteration ${iteration}, epoch ${epoch}`).permutation(
        total,
      );
      for (let index = 0; index < minibatches; index++) {
        const [begin, end] = [index, index + 1].map((i) => Math.floor((i * total) / minibatches));
        const metrics = await this.#minibatch(rollouts, advantages, order.slice(begin, end), learningRate);
        if (!metrics) break epochs;
        measured.push(metrics);
      }
    }
    const mean = (name: string): number =>
      measured.reduce((sum, metrics) => sum + (metrics[name] as number), 0) / measured.length;
    const names = Object.keys(measured[0] ?? {});
    const means: Record<string, number> = Object.fromEntries(names.map((name) => [name, mean(name)]));
    if (targetKl !== null)
      means["policy/stopped_early"] = Number(measured.length < numPpoEpochs * minibatches);
    const skipped = measured.filter(({ gradNorm }) => !Number.isFinite(gradNorm)).length;
    return { metrics: { ...means, updates: measured.length - skipped }, skipped };
  }

  /** One optimizer step; undefined when it was left out because the policy is over `targetKl` already. */
  async #minibatch(
    rollouts: EnvironmentRollouts,
    { advantage, returns }: Advantages,
    rows: Int32Array,
    learningRate: number,
  ): Promise<Metrics | undefined> {
    const { targetKl, valueLossCoefficient, entropyCoefficient } = this.#settings;
    const { distribution, logStd } = this.#networks;
    const actions = gather(rollouts.actions, rows, distribution.width);
    using pass = await this.#networks.forward(gather(rollouts.observations, rows, this.#observationSize));
    const { logProb, entropy } = distribution.statistics(pass.outputs, actions, logStd);
    const policy = await ppoPolicyLoss(this.#engine, {
      logProb,
      oldLogProb: gather(rollouts.logProb, rows),
      advantage: gather(advantage, rows),
      mask: new Float32Array(rows.length).fill(1),
      entropy,
      clipRange: this.#settings.clipRange,
      entropyCoefficient,
      scale: 1 / rows.length,
    });
    const dLogProb = await taken(policy.dLogProb);
    const dEntropy = policy.dEntropy && (await taken(policy.dEntropy));
    const count = rows.length;
    if (targetKl !== null && policy.stats.approxKl / count > targetKl) return undefined;
    const value = await this.#valueLoss(pass.value, gather(rollouts.value, rows), gather(returns, rows));
    const { dOutputs, dLogStd } = distribution.gradients(pass.outputs, actions, logStd, dLogProb, dEntropy);
    const gradient = await this.#networks.backward(pass, {
      dOutputs,
      dLogStd,
      dValue: value.dValue.map((slope) => slope * valueLossCoefficient),
    });
    const gradNorm = await this.#optimizer.step(gradient, { ...this.#settings, learningRate });
    return {
      "loss/policy_avg": policy.stats.loss / count,
      "loss/value_avg": value.loss,
      "policy/approxkl_avg": policy.stats.approxKl / count,
      "policy/clipfrac_avg": policy.stats.clipped / count,
      "policy/entropy_avg": policy.stats.entropy / count,
      "val/ratio": policy.stats.ratio / count,
      gradNorm,
    };
  }

  /** The engine takes the value of row t at t − 1: there is one row more, in front. */
  async #valueLoss(
    value: Float32Array,
    oldValue: Float32Array,
    returns: Float32Array,
  ): Promise<{ loss: number; dValue: Float32Array }> {
    const count = value.length;
    const shifted = (values: Float32Array, at: number): Float32Array => {
      const result = new Float32Array(count + 1);
      result.set(values, at);
      return result;
    };
    const { dValue, stats } = await ppoValueLoss(this.#engine, {
      value: shifted(value, 0),
      oldValue: shifted(oldValue, 0),
      returns: shifted(returns, 1),
      mask: shifted(new Float32Array(count).fill(1), 1),
      clipRange: this.#settings.valueClipRange ?? 0,
      scale: 1 / count,
    });
    return { loss: stats.loss / count, dValue: (await taken(dValue)).slice(0, count) };
  }
}
