import type { Random } from "../data/random.ts";

/*
 * Distributions of actions over a network's outputs, row by row, in float64. `outputs` [N, A] are logits of a discrete policy, and the
 * means of a continuous one, whose deviations exp(logStd) do not depend on the state.
 */

export interface ActionStatistics {
  /** [N] */
  readonly logProb: Float32Array;
  /** [N] */
  readonly entropy: Float32Array;
}

export interface ActionGradients {
  /** [N, A] */
  readonly dOutputs: Float32Array;
  /** [A]; empty for discrete actions. */
  readonly dLogStd: Float32Array;
}

export interface ActionDistribution {
  /** Numbers that one action takes: 1 index, or A coordinates. */
  readonly width: number;
  sample(outputs: Float32Array, row: number, logStd: Float32Array, random: Random): Float32Array;
  /** The likeliest action. */
  mode(outputs: Float32Array, row: number): Float32Array;
  statistics(outputs: Float32Array, actions: Float32Array, logStd: Float32Array): ActionStatistics;
  gradients(
    outputs: Float32Array,
    actions: Float32Array,
    logStd: Float32Array,
    dLogProb: Float32Array,
    dEntropy: Float32Array | undefined,
  ): ActionGradients;
}

/** Log-probs of the actions 0 … A−1 in one row. */
function logSoftmax(logits: Float32Array, row: number, size: number): Float64Array {
  const values = Float64Array.from(logits.subarray(row * size, (row + 1) * size));
  const largest = Math.max(...values);
  const logSum = largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
  return values.map((value) => value - logSum);
}

function entropyOf(logProbs: Float64Array): number {
  return -logProbs.reduce((sum, logProb) => sum + Math.exp(logProb) * logProb, 0);
}

/** One of `size` actions, from logits. */
export class Categorical implements ActionDistribution {
  readonly width = 1;
  readonly #size: number;

  constructor(size: number) {
    this.#size = size;
  }

  sample(outputs: Float32Array, row: number, _logStd: Float32Array, random: Random): Float32Array {
    const logProbs = logSoftmax(outputs, row, this.#size);
    let left = random.uniform();
    for (let action = 0; action < this.#size - 1; action++) {
      left -= Math.exp(logProbs[action] as number);
      if (left < 0) return Float32Array.of(action);
    }
    return Float32Array.of(this.#size - 1);
  }

  mode(outputs: Float32Array, row: number): Float32Array {
    const logits = outputs.subarray(row * this.#size, (row + 1) * this.#size);
    return Float32Array.of(
      logits.reduce((best, value, i) => (value > (logits[best] as number) ? i : best), 0),
    );
  }

  statistics(outputs: Float32Array, actions: Float32Array): ActionStatistics {
    const logProb = new Float32Array(actions.length);
    const entropy = new Float32Array(actions.length);
    for (let row = 0; row < actions.length; row++) {
      const logProbs = logSoftmax(outputs, row, this.#size);
      logProb[row] = logProbs[actions[row] as number] as number;
      entropy[row] = entropyOf(logProbs);
    }
    return { logProb, entropy };
  }

  /** ∂logProb/∂logit = [chosen] − p;  ∂H/∂logit = −p·(log p + H). */
  gradients(
    outputs: Float32Array,
    actions: Float32Array,
    _logStd: Float32Array,
    dLogProb: Float32Array,
    dEntropy: Float32Array | undefined,
  ): ActionGradients {
    const dOutputs = new Float32Array(outputs.length);
    for (let row = 0; row < actions.length; row++) {
      const logProbs = logSoftmax(outputs, row, this.#size);
      const entropy = entropyOf(logProbs);
      const upstream = dLogProb[row] as number;
      const upstreamEntropy = dEntropy?.[row] ?? 0;
      logProbs.forEach((logProb, action) => {
        const p = Math.exp(logProb);
        const chosen = actions[row] === action ? 1 : 0;
        dOutputs[row * this.#size + action] =
          upstream * (chosen - p) - upstreamEntropy * p * (logProb + entropy);
      });
    }
    return { dOutputs, dLogStd: new Float32Array(0) };
  }
}

const HALF_LOG_TWO_PI = 0.5 * Math.log(2 * Math.PI);

/** Independent normal coordinates around the network's outputs. */
export class DiagonalGaussian implements ActionDistribution {
  readonly width: number;

  constructor(size: number) {
    this.width = size;
  }

  sample(outputs: Float32Array, row: number, logStd: Float32Array, random: Random): Float32Array {
    return this.mode(outputs, row).map((mean, i) => mean + Math.exp(logStd[i] as number) * random.normal());
  }

  mode(outputs: Float32Array, row: number): Float32Array {
    return outputs.slice(row * this.width, (row + 1) * this.width);
  }

  statistics(outputs: Float32Array, actions: Float32Array, logStd: Float32Array): ActionStatistics {
    const rows = outputs.length / this.width;
    const logProb = new Float32Array(rows);
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let i = 0; i < this.width; i++) {
        const z = this.#standardised(outputs, actions, logStd, row, i);
        sum -= 0.5 * z * z + (logStd[i] as number) + HALF_LOG_TWO_PI;
      }
      logProb[row] = sum;
    }
    const entropy = logStd.reduce((sum, value) => sum + value + 0.5 + HALF_LOG_TWO_PI, 0);
    return { logProb, entropy: new Float32Array(rows).fill(entropy) };
  }

  /** With z = (a − μ)/σ: ∂logProb/∂μ = z/σ, ∂logProb/∂logσ = z² − 1, ∂H/∂logσ = 1. */
  gradients(
    outputs: Float32Array,
    actions: Float32Array,
    logStd: Float32Array,
    dLogProb: Float32Array,
    dEntropy: Float32Array | undefined,
  ): ActionGradients {
    const dOutputs = new Float32Array(outputs.length);
    const sums = new Float64Array(this.width);
    for (let row = 0; row < dLogProb.length; row++) {
      const upstream = dLogProb[row] as number;
      for (let i = 0; i < this.width; i++) {
        const z = this.#standardised(outputs, actions, logStd, row, i);
        dOutputs[row * this.width + i] = (upstream * z) / Math.exp(logStd[i] as number);
        sums[i] = (sums[i] as number) + upstream * (z * z - 1) + (dEntropy?.[row] ?? 0);
      }
    }
    return { dOutputs, dLogStd: Float32Array.from(sums) };
  }

  #standardised(
    outputs: Float32Array,
    actions: Float32Array,
    logStd: Float32Array,
    row: number,
    i: number,
  ): number {
    const at = row * this.width + i;
    return ((actions[at] as number) - (outputs[at] as number)) / Math.exp(logStd[i] as number);
  }
}
