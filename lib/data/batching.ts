import { RlhfError } from "../errors.ts";
import { Random } from "./random.ts";

/** Bins of one capacity that are filled first fit, each search in the logarithm of their number: a tree of the room left. */
class FirstFit {
  readonly bins: number[][] = [];
  readonly #capacity: number;
  readonly #leaves: number;
  /** A binary tree, root at 1: of each node the most room of a bin below it. Bins that are not open yet have all their room. */
  readonly #room: Float64Array;

  constructor(most: number, capacity: number) {
    this.#capacity = capacity;
    this.#leaves = 2 ** Math.ceil(Math.log2(Math.max(1, most)));
    this.#room = new Float64Array(2 * this.#leaves).fill(capacity);
  }

  /** Puts an item into the first bin that has room for it; one over the capacity gets a bin of its own. */
  add(index: number, length: number): void {
    const size = Math.min(length, this.#capacity);
    let node = 1;
    while (node < this.#leaves) node = (this.#room[2 * node] as number) >= size ? 2 * node : 2 * node + 1;
    const bin = node - this.#leaves;
    if (bin === this.bins.length) this.bins.push([]);
    (this.bins[bin] as number[]).push(index);
    this.#room[node] = (this.#room[node] as number) - size;
    for (node >>= 1; node >= 1; node >>= 1)
      this.#room[node] = Math.max(this.#room[2 * node] as number, this.#room[2 * node + 1] as number);
  }
}

/** First-fit decreasing: the number of bins it needs bounds the number of micro-batches. */
function firstFitDecreasing(
  lengths: readonly number[],
  order: readonly number[],
  budget: number,
): number[][] {
  const packing = new FirstFit(order.length, budget);
  for (const index of order) packing.add(index, lengths[index] as number);
  return packing.bins;
}

/** Bins in a heap by load, then by number. */
class EmptiestFirst {
  readonly loads: Float64Array;
  readonly #heap: Int32Array;

  constructor(count: number) {
    this.loads = new Float64Array(count);
    this.#heap = Int32Array.from({ length: count }, (_, bin) => bin);
  }

  /** The emptiest bin, of several the first. */
  get first(): number {
    return this.#heap[0] as number;
  }

  #before(a: number, b: number): boolean {
    const [loadA, loadB] = [this.loads[a] as number, this.loads[b] as number];
    return loadA < loadB || (loadA === loadB && a < b);
  }

  /** Adds to the emptiest bin, which then takes its new place. */
  fill(length: number): void {
    const bin = this.first;
    this.loads[bin] = (this.loads[bin] as number) + length;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#heap.length) break;
      if (
        child + 1 < this.#heap.length &&
        this.#before(this.#heap[child + 1] as number, this.#heap[child] as number)
      )
        child++;
      if (this.#before(bin, this.#heap[child] as number)) break;
      this.#heap[at] = this.#heap[child] as number;
      at = child;
    }
    this.#heap[at] = bin;
  }
}

/** Longest first into the emptiest of `count` bins; null when that goes over the budget. */
function spreadEvenly(
  lengths: readonly number[],
  order: readonly number[],
  count: number,
  budget: number,
): number[][] | null {
  const bins = Array.from({ length: count }, (): number[] => []);
  const emptiest = new EmptiestFirst(count);
  for (const index of order) {
    const length = lengths[index] as number;
    const bin = bins[emptiest.first] as number[];
    if ((emptiest.loads[emptiest.first] as number) + length > budget && bin.length > 0) return null;
    bin.push(index);
    emptiest.fill(length);
  }
  return bins;
}

/**
 * Shares sequences out to as few micro-batches as the token budget allows, of about equal size, so that no pass is nearly
 * empty. A sequence longer than the budget gets a micro-batch of its own.
 *
 * @param lengths tokens of each sequence
 * @param microBatchTokens the most tokens of one micro-batch
 * @returns for each micro-batch the indices of its sequences, ascending; the same input gives the same plan
 */
export function planMicroBatches(lengths: readonly number[], microBatchTokens: number): number[][] {
  if (!Number.isInteger(microBatchTokens) || microBatchTokens < 1) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `planMicroBatches: microBatchTokens must be a positive integer, got ${microBatchTokens}`,
      {
        microBatchTokens,
      },
    );
  }
  const order = lengths
    .map((_, index) => index)
    .sort((a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b);
  const packed = firstFitDecreasing(lengths, order, microBatchTokens);
  const plan = spreadEvenly(lengths, order, packed.length, microBatchTokens) ?? packed;
  for (const bin of plan) bin.sort((a, b) => a - b);
  return plan.sort((a, b) => (a[0] as number) - (b[0] as number));
}

/**
 * The batches of one epoch: a fresh random order for each (seed, epoch), cut into pieces of `batchSize`. The last, smaller
 * piece is kept unless `dropLast`. A run resumed in the middle of an epoch finds the same batches again.
 */
export function epochBatches(
  count: number,
  batchSize: number,
  seed: number,
  epoch: number,
  dropLast = false,
): Int32Array[] {
  if (!Number.isInteger(batchSize) || batchSize < 1) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `epochBatches: batchSize must be a positive integer, got ${batchSize}`,
      { batchSize },
    );
  }
  const order = new Random(seed, `epoch ${epoch}`).permutation(count);
  const batches: Int32Array[] = [];
  for (let start = 0; start < count; start += batchSize) {
    const batch = order.slice(start, start + batchSize);
    if (batch.length === batchSize || !dropLast) batches.push(batch);
  }
  return batches;
}

/** The batches of a whole run: which examples a step sees follows from the seed and the step alone, so a resumed run finds the same. */
export class RunBatches {
  readonly stepsPerEpoch: number;
  readonly #count: number;
  readonly #batchSize: number;
  readonly #seed: number;
  #epoch: { readonly index: number; readonly batches: readonly Int32Array[] } | null = null;

  constructor(count: number, batchSize: number, seed: number) {
    this.stepsPerEpoch = Math.ceil(count / batchSize);
    this.#count = count;
    this.#batchSize = batchSize;
    this.#seed = seed;
  }

  /** Steps of so many passes over the examples, or as many as are set. */
  totalSteps({
    numEpochs,
    maxSteps,
  }: {
    readonly numEpochs: number;
    readonly maxSteps?: number | undefined;
  }): number {
    return maxSteps ?? Math.max(1, Math.ceil(numEpochs * this.stepsPerEpoch));
  }

  /** Indices of a step's examples. */
  indicesOf(step: number): Int32Array {
    const index = Math.floor(step / this.stepsPerEpoch);
    if (this.#epoch?.index !== index) {
      const batches = epochBatches(this.#count, this.#batchSize, this.#seed, index);
      this.#epoch = { index, batches };
    }
    return this.#epoch.batches[step % this.stepsPerEpoch] as Int32Array;
  }
}

/** Indices of evaluation sequences, longest first: memory peaks at once if at all, and ties keep their order. */
export function longestFirst(lengths: readonly number[]): number[] {
  return lengths
    .map((_, index) => index)
    .sort((a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b);
}
