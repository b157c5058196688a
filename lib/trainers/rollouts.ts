import { planMicroBatches } from "../data/batching.ts";
import { type PackedBatch, packSequences } from "../model/batch.ts";
import type { ScoredAnswer } from "../rewards/reward.ts";

/** A sampled answer to a prompt. */
export interface Rollout extends ScoredAnswer {
  /** Prompt and response, Int32Array[T]. */
  readonly tokens: Int32Array;
  readonly promptLength: number;
}

/**
 * Rollouts as one packed batch, so that a per-token array [N] of the whole batch can be whitened or turned into advantages at
 * once, and cut into the micro-batches that passes are run on.
 */
export class RolloutBatch {
  readonly rollouts: readonly Rollout[];
  /** All sequences, in order; the mask is 1 at response tokens. */
  readonly packed: PackedBatch;

  constructor(rollouts: readonly Rollout[]) {
    this.rollouts = rollouts;
    this.packed = packSequences(rollouts);
  }

  get size(): number {
    return this.rollouts.length;
  }

  /** Response tokens of some rollouts, or of all. */
  responseTokens(indices?: ArrayLike<number>): number {
    const chosen = indices ? Array.from(indices, (index) => this.rollouts[index] as Rollout) : this.rollouts;
    return chosen.reduce((sum, rollout) => sum + rollout.tokens.length - rollout.promptLength, 0);
  }

  /** Shares some rollouts out to micro-batches of at most so many tokens; each is a list of rollout indices. */
  microBatches(maxTokens: number, indices: Iterable<number>): number[][] {
    const chosen = Array.from(indices);
    const lengths = chosen.map((index) => (this.rollouts[index] as Rollout).tokens.length);
    return planMicroBatches(lengths, maxTokens).map((group) => group.map((i) => chosen[i] as number));
  }

  /** Some rollouts as a batch of their own. */
  select(indices: readonly number[]): PackedBatch {
    return packSequences(indices.map((index) => this.rollouts[index] as Rollout));
  }

  #rows(index: number): [begin: number, end: number] {
    return [this.packed.offsets[index] as number, this.packed.offsets[index + 1] as number];
  }

  /** The part of a per-token array of the whole batch that belongs to `select(indices)`. */
  gather(values: Float32Array, indices: readonly number[]): Float32Array {
    const parts = indices.map((index) => values.subarray(...this.#rows(index)));
    const result = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      result.set(part, at);
      at += part.length;
    }
    return result;
  }

  /** The inverse of `gather`: writes what a pass over `select(indices)` gave into an array of the whole batch. */
  scatter(target: Float32Array, indices: readonly number[], values: Float32Array): void {
    let at = 0;
    for (const index of indices) {
      const [begin, end] = this.#rows(index);
      target.set(values.subarray(at, at + end - begin), begin);
      at += end - begin;
    }
  }

  /** Σ over the response tokens of all rollouts ÷ the number of rollouts. */
  meanPerAnswer(values: Float32Array): number {
    const { mask } = this.packed;
    return values.reduce((sum, value, t) => sum + (mask[t] as number) * value, 0) / this.size;
  }
}
