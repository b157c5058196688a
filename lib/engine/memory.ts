import { totalmem } from "node:os";
import { RlhfError } from "../errors.ts";
import type { NativeDeviceLimits } from "./native.ts";

/**
 * What an engine's memory is for:
 * - `weights`: of models, adapters and heads, with the tables of rotary positions
 * - `packedWeights`: a frozen base's matrices in the order in which matrix products stream them, for the most part the only form they
 *   are held in
 * - `gradients` and `optimizer`: of what is trained; AdamW has two moments
 * - `activations`: what forward passes keep for backward, their outputs, and work arrays
 * - `logits`: kept for backward while they fit 512 MiB a pass, else computed again
 * - `scratch`: of the operators
 * - `cache`: keys and values of the sequences that are generated together, where the activations' memory of an earlier pass has no room
 *   for them
 * - `arrays`: results of loss functions, some numbers per token, and one matrix at a time while weights are loaded, read or packed;
 *   estimates leave them out
 */
export const MEMORY_USES = [
  "weights",
  "packedWeights",
  "gradients",
  "optimizer",
  "activations",
  "logits",
  "scratch",
  "cache",
  "arrays",
] as const;

export type MemoryUse = (typeof MEMORY_USES)[number];

/** Bytes by use. */
export type MemoryBytes = Readonly<Record<MemoryUse, number>>;

/**
 * What an engine holds now, the most that each use has ever held and that all but `arrays` held at once (less than the sum where passes
 * took the memory of generation, since the two never overlap), what it may hold in all, and how often memory was taken so far: steps
 * like those before them take none.
 */
export interface EngineMemory {
  readonly held: MemoryBytes;
  readonly peak: MemoryBytes;
  readonly peakTotal: number;
  readonly budget: number;
  readonly allocations: number;
}

/** How often, and how many bytes, were copied. */
export interface CopyCount {
  readonly count: number;
  readonly bytes: number;
}

/**
 * Copies between the process's memory and the device's since the engine was made: batches and the tokens that were drawn, arrays that losses
 * are given and that are read, weights. On the CPU inputs of losses are read where they are, and not counted.
 */
export interface EngineCopies {
  readonly toDevice: CopyCount;
  readonly toHost: CopyCount;
}

/** A memory budget: bytes, or text such as "12GiB" or "500 MB". */
export type MemoryBudget = number | string;

export function totalBytes(bytes: MemoryBytes): number {
  return MEMORY_USES.reduce((sum, use) => sum + bytes[use], 0);
}

const UNITS: Readonly<Record<string, number>> = {
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** A budget in bytes; undefined where the text is none. */
export function parseMemoryBudget(budget: MemoryBudget): number | undefined {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)?\s*$/i.exec(String(budget));
  const unit = UNITS[(match?.[2] ?? "b").toLowerCase()];
  const bytes = Math.floor(Number(match?.[1]) * (unit ?? Number.NaN));
  return bytes > 0 ? bytes : undefined;
}

/** Throws ERR_RLHF_ARGUMENT for what is no budget. */
export function toMemoryBudget(budget: MemoryBudget): number {
  const bytes = parseMemoryBudget(budget);
  if (bytes === undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `memoryBudget must be a number of bytes or text such as "12GiB", got ${JSON.stringify(budget)}`,
      { memoryBudget: budget },
    );
  return bytes;
}

/** A part of a GPU's free memory that is left to its driver: for the code of kernels, recorded commands, and what it rounds sizes up by. */
const DRIVER_SHARE = 1 / 32;

/**
 * What an engine may hold that is given no budget: what its device has free now, but for a thirty-second; on the CPU the memory of the machine,
 * or of the control group (container) that the process is confined to.
 */
export function defaultMemoryBudget({ memoryBytes, freeBytes }: NativeDeviceLimits): number {
  if (memoryBytes > 0) return Math.max(1, Math.floor(freeBytes * (1 - DRIVER_SHARE)));
  const confined = process.constrainedMemory();
  const machine = totalmem();
  return confined > 0 ? Math.min(confined, machine) : machine;
}

/** Bytes as "512 B", "1.5 MiB" or "12 GiB". */
export function formatBytes(bytes: number): string {
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = bytes < 1 ? 0 : Math.min(names.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 2 ** (10 * step);
  return `${step === 0 || value >= 100 ? Math.round(value) : value.toPrecision(3)} ${names[step]}`;
}

/** "3.2 GiB: weights 1.1 GiB, gradients …", largest use first; what needs nothing is left out. `total`: where uses share memory. */
export function describeMemory(bytes: MemoryBytes, total = totalBytes(bytes)): string {
  const parts = MEMORY_USES.filter((use) => bytes[use] > 0)
    .sort((a, b) => bytes[b] - bytes[a])
    .map((use) => `${use} ${formatBytes(bytes[use])}`);
  return `${formatBytes(total)}: ${parts.join(", ")}`;
}

/** The setting that lowers each use the most. */
const CURES: Readonly<Record<MemoryUse, string>> = {
  weights: 'keep the model in half the memory with dtype "bfloat16", or take a smaller one',
  packedWeights: 'keep a frozen model in half the memory with dtype "bfloat16", or take a smaller one',
  gradients: "train an adapter (lora) in place of all weights",
  optimizer: "train an adapter (lora) in place of all weights",
  activations: "set recomputeLayers: true, or lower microBatchTokens or maxLength",
  logits: "lower microBatchTokens",
  scratch: "lower microBatchTokens or the number of threads",
  cache: "lower maxNewTokens, or the number of sequences that are generated together",
  arrays: "lower microBatchTokens",
};

/** Throws ERR_RLHF_MEMORY, with the setting to lower, when an estimate is over the budget. */
export function checkMemoryBudget(
  { bytes, total }: { readonly bytes: MemoryBytes; readonly total: number },
  budget: number,
  what: string,
): void {
  if (total <= budget) return;
  const [largest] = [...MEMORY_USES].sort((a, b) => bytes[b] - bytes[a]) as [MemoryUse];
  throw new RlhfError(
    "ERR_RLHF_MEMORY",
    `${what} needs ${describeMemory(bytes, total)}; the budget is ${formatBytes(budget)}. To need less, ${CURES[largest]}; ` +
      "memoryBudget sets another budget",
    { estimate: bytes, budget, largest },
  );
}
