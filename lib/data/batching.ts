import { RlhfError } from "../errors.ts";
import { Random } from "./random.ts";

/** First-fit decreasing: the number of bins it needs bounds the number of micro-batches. */
function firstFitDecreasing(
  lengths: readonly number[],
  order: readonly number[],
  budget: number,
): number[][] {
  const bins: number[][] = [];
  const loads: number[] = [];
  for (const index of order) {
    const length = lengths[index] as number;
    let bin = loads.findIndex((load) => load + length <= budget);
    if (bin < 0) {
      bin = bins.length;
      bins.push([]);
      loads.push(0);
    }
    (bins[bin] as number[]).push(index);
    loads[bin] = (loads[bin] as number) + length;
  }
  return bins;
}

/** Longest first into the emptiest of `count` bins; null when that goes over the budget. */
function spreadEvenly(
  lengths: readonly number[],
  order: readonly number[],
  count: number,
  budget: number,
): number[][] | null {
  const bins = Array.from({ length: count }, (): number[] => []);
  const loads = new Array<number>(count).fill(0);
  for (const index of order) {
    const length = lengths[index] as number;
    const bin = loads.indexOf(Math.min(...loads));
    const load = (loads[bin] as number) + length;
    if (load > budget && (bins[bin] as number[]).length > 0) return null;
    (bins[bin] as number[]).push(index);
    loads[bin] = load;
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

/** Indices of evaluation sequences, longest first: memory peaks at once if at all, and ties keep their order. */
export function longestFirst(lengths: readonly number[]): number[] {
  return lengths
    .map((_, index) => index)
    .sort((a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b);
}
