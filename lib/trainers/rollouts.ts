import { planMicroBatches } from "../data/batching.ts";
import { type PackedBatch, packSequences } from "../model/batch.ts";
import type { ScoredAnswer } from "../rewards/reward.ts";

/** A sampled answer to a prompt. */
export interface Rollout extends ScoredAnswer {
  /** Prompt and response, Int32Array[T]. */
  readonly tokens: Int32Array;
  readonly promptLength: number;
}

/** A run of a rollout's tokens that lie together in a micro-batch: all of them, or those that a prompt's answers share, or what follows. */
interface Part {
  readonly index: number;
  readonly begin: number;
  readonly end: number;
  /** Which part of the micro-batch it continues. */
  readonly parent?: number;
}

/**
 * Rollouts as one packed batch, so that a per-token array [N] of the whole batch can be whitened or turned into advantages at
 * once, and cut into the micro-batches that passes are run on.
 */
export class RolloutBatch {
  readonly rollouts: readonly Rollout[];
  /** All sequences, in order; the mask is 1 at response tokens. */
  readonly packed: PackedBatch;
  /** Which prompt each rollout answers; null where each is computed with its answer. */
  readonly #prompts: readonly number[] | null;

  /** @param sharePrompts whether passes compute a prompt once for its answers. Values before the first response token have no place then. */
  constructor(
    rollouts: readonly Rollout[],
    { sharePrompts = false }: { readonly sharePrompts?: boolean } = {},
  ) {
    this.rollouts = rollouts;
    this.packed = packSequences(rollouts);
    this.#prompts = sharePrompts ? promptsOf(rollouts) : null;
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
    const units = this.#prompts
      ? this.#groups(Array.from(indices), maxTokens)
      : Array.from(indices, (i) => [i]);
    const lengths = units.map((unit) => this.#tokensOf(unit));
    return planMicroBatches(lengths, maxTokens).map((group) => group.flatMap((i) => units[i] as number[]));
  }

  /** Rollouts of one prompt together, as many as fit. */
  #groups(indices: readonly number[], maxTokens: number): number[][] {
    const open = new Map<number, number[]>();
    const groups: number[][] = [];
    for (const index of indices) {
      const prompt = this.#prompts?.[index] as number;
      const group = open.get(prompt);
      if (group && this.#tokensOf([...group, index]) <= maxTokens) {
        group.push(index);
        continue;
      }
      const begun = [index];
      open.set(prompt, begun);
      groups.push(begun);
    }
    return groups;
  }

  #tokensOf(indices: readonly number[]): number {
    return this.#parts(indices).reduce((sum, { begin, end }) => sum + end - begin, 0);
  }

  /** How some rollouts lie in a micro-batch. */
  #parts(indices: readonly number[]): Part[] {
    const answers = new Map<number, number>();
    for (const index of indices) {
      const prompt = this.#prompts?.[index] ?? -1;
      answers.set(prompt, (answers.get(prompt) ?? 0) + 1);
    }
    const parts: Part[] = [];
    const places = new Map<number, number>();
    for (const index of indices) {
      const { tokens, promptLength } = this.rollouts[index] as Rollout;
      const prompt = this.#prompts?.[index] ?? -1;
      if (prompt < 0 || answers.get(prompt) === 1) {
        parts.push({ index, begin: 0, end: tokens.length });
        continue;
      }
      const parent = places.get(prompt) ?? parts.push({ index, begin: 0, end: promptLength }) - 1;
      places.set(prompt, parent);
      parts.push({ index, begin: promptLength, end: tokens.length, parent });
    }
    return parts;
  }

  /** Some rollouts as a batch of their own. */
  select(indices: readonly number[]): PackedBatch {
    return packSequences(
      this.#parts(indices).map(({ index, begin, end, parent }) => {
        const { tokens, promptLength } = this.rollouts[index] as Rollout;
        const own = { tokens: tokens.subarray(begin, end), promptLength: promptLength - begin };
        return parent === undefined ? own : { ...own, parent };
      }),
    );
  }

  /** Where a part lies in the whole batch. */
  #rows({ index, begin, end }: Part): [begin: number, end: number] {
    const first = this.packed.offsets[index] as number;
    return [first + begin, first + end];
  }

  /** The part of a per-token array of the whole batch that belongs to `select(indices)`. */
  gather(values: Float32Array, indices: readonly number[]): Float32Array {
    const parts = this.#parts(indices).map((part) => values.subarray(...this.#rows(part)));
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
    for (const part of this.#parts(indices)) {
      const [begin, end] = this.#rows(part);
      target.set(values.subarray(at, at + end - begin), begin);
      at += end - begin;
    }
  }

  /** Numbers of rollouts, by their index, as those of the sequences of `select(indices)`; 0 at prompts that stand alone. */
  ofSequences(indices: readonly number[], value: (index: number) => number): Float32Array {
    return Float32Array.from(this.#parts(indices), ({ index, end }) =>
      end < (this.rollouts[index] as Rollout).tokens.length ? 0 : value(index),
    );
  }

  /** Σ over the response tokens of all rollouts ÷ the number of rollouts. */
  meanPerAnswer(values: Float32Array): number {
    const { mask } = this.packed;
    return values.reduce((sum, value, t) => sum + (mask[t] as number) * value, 0) / this.size;
  }
}

/** Numbers the prompts; −1 of rollouts without an answer, which cannot continue a prompt. */
function promptsOf(rollouts: readonly Rollout[]): number[] {
  const numbers = new Map<string, number>();
  return rollouts.map(({ tokens, promptLength }) => {
    if (promptLength === 0 || promptLength >= tokens.length) return -1;
    const text = tokens.subarray(0, promptLength).join();
    const number = numbers.get(text) ?? numbers.size;
    numbers.set(text, number);
    return number;
  });
}
