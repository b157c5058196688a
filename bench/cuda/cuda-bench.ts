import { type KernelArguments, kernels } from "../../test/support/kernels.ts";
import { type OpBench, uniformArray } from "../ops/op-bench.ts";

/** What PyTorch is asked to do beside it (torch_ops.py). */
export interface PeerWork {
  readonly kind: string;
  readonly [size: string]: number | string | boolean;
}

/** An op at a size that fills a GPU. */
export interface CudaBench extends Omit<OpBench, "args"> {
  readonly args: () => KernelArguments;
  readonly peer?: PeerWork;
  /** The compute capability for which the op has kernels beside those that run everywhere. */
  readonly ownKernelsFor?: number;
}

/** Numbers in bfloat16 at a multiple of 64 bytes, uniform in [−scale, scale); they repeat with a period that is no power of two. */
export function bfloat16Array(count: number, scale = 1): Uint16Array {
  const period = uniformArray(Math.min(count, 65_521)).map((value) => value * scale);
  const array = new Uint16Array(kernels.alignedBuffer(2 * count), 0, count);
  array.set(kernels.toBits(period, "bfloat16"));
  for (let filled = period.length; filled < count; filled *= 2)
    array.copyWithin(filled, 0, Math.min(filled, count - filled));
  return array;
}

/** Products of factors in bfloat16. */
export const BFLOAT16 = { type: "bfloat16", weightType: "bfloat16", compute: "bfloat16" } as const;
