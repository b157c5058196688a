import { Random } from "../../../lib/data/random.ts";
import type { CaseArguments } from "../../support/op-arguments.ts";

/**
 * How far a backend may be from the float64 oracle:
 * - "product": for sums of products. Per element |err| ≤ 4·√K·ε·(Σ|a·b|) + half an ulp of the output, the sum of magnitudes
 *   being the same op on absolute values, and K the number of terms.
 * - "general": largest error ≤ 2 · largest error of the float32 oracle + 4·ε·(largest value + floor), per array (the criterion
 *   of FlashAttention's tests with the scalar oracle as the implementation of the same type). `floor` is the size of the terms
 *   where they cancel.
 * - "relative": |err| ≤ bound · |value|, for results that are promised in float64.
 * - "exact": the op moves numbers or adds them in a promised order, so bits are equal.
 * Integer outputs are equal under every criterion.
 */
export type Criterion =
  | { kind: "product"; terms: number }
  | { kind: "general"; floor: number }
  | { kind: "relative"; bound: number }
  | { kind: "exact" };

/** One row of the table that every backend is tested with. */
export interface OpCase {
  readonly op: string;
  readonly name: string;
  readonly args: CaseArguments;
  readonly criterion: Criterion;
}

export const GENERAL: Criterion = { kind: "general", floor: 0 };
export const EXACT: Criterion = { kind: "exact" };
export const product = (terms: number): Criterion => ({ kind: "product", terms });

/** Random arrays for cases, from a stream of its own per case so that cases do not depend on each other. */
export class CaseData {
  readonly #random: Random;
  constructor(name: string) {
    this.#random = new Random(20240607, name);
  }

  /** Normal numbers. */
  normal(count: number, scale = 1, mean = 0): Float64Array {
    return Float64Array.from({ length: count }, () => mean + scale * this.#random.normal());
  }

  /** Normal numbers in `rows` rows of `cols` that lie `stride` elements apart; NaN between them. */
  matrix(rows: number, cols: number, stride = cols, scale = 1): Float64Array {
    const values = unset(rows * stride);
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < cols; c++) values[r * stride + c] = scale * this.#random.normal();
    return values;
  }

  /** Uniform integers in [0, bound). */
  integers(count: number, bound: number): Int32Array {
    return Int32Array.from({ length: count }, () => this.#random.integer(bound));
  }

  uniform(low = 0, high = 1): number {
    return low + (high - low) * this.#random.uniform();
  }

  /** 0 or 1, 1 with the given probability. */
  mask(count: number, probability = 0.6): Float64Array {
    return Float64Array.from({ length: count }, () => (this.#random.uniform() < probability ? 1 : 0));
  }

  /** 0 … n−1 in a random order. */
  permutation(n: number): Int32Array {
    return this.#random.permutation(n);
  }

  /** The first `count` numbers of a random order of 0 … n−1, rising. */
  subset(n: number, count: number): Int32Array {
    return this.#random.permutation(n).slice(0, count).sort();
  }
}

/** An output array: NaN wherever the op does not write. */
export function unset(count: number): Float64Array {
  return new Float64Array(count).fill(Number.NaN);
}

/** [0, l₀, l₀ + l₁, …] */
export function offsetsOf(lengths: readonly number[]): Int32Array {
  const offsets = new Int32Array(lengths.length + 1);
  for (const [index, length] of lengths.entries()) offsets[index + 1] = offsets[index]! + length;
  return offsets;
}

/** A random mask over a packed batch that never selects a sequence's first token. */
export function responseMask(data: CaseData, lengths: readonly number[], probability = 0.6): Float64Array {
  const mask = data.mask(
    lengths.reduce((sum, length) => sum + length, 0),
    probability,
  );
  let first = 0;
  for (const length of lengths) {
    if (length > 0) mask[first] = 0;
    first += length;
  }
  return mask;
}
