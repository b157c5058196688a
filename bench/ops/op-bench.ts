import type { ComputeType } from "../../lib/engine/compute-type.ts";
import {
  isKernelArray,
  type KernelArguments,
  type KernelArray,
  kernels,
} from "../../test/support/kernels.ts";

/** What products are computed in. Ops that have no products, or no choice, have "float32" alone. */
export type Compute = Exclude<ComputeType, "float16">;

/** Where a bench runs, for what its arguments depend on: packed weights are as the backend packs them. */
export interface BenchPlace {
  readonly backend: string;
  readonly compute: Compute;
}

/** One row of the tables: an op at a shape that models have. */
export interface OpBench {
  readonly op: string;
  readonly label: string;
  /** Called when the bench runs, since arrays may be large. */
  readonly args: (place: BenchPlace) => KernelArguments;
  /** Floating-point operations of the op's matrix products; 0 if left out. */
  readonly flops?: number;
  /** Bytes that the op must touch of arrays that it does not pass over once and whole: of tables the rows named, 0 of what it ignores. */
  readonly bytes?: Readonly<Record<string, number>>;
  /** Outputs that are added to, or changed in place: read as well as written. */
  readonly updated?: readonly string[];
}

/** What an op must do in one run at the least. */
export interface Work {
  readonly flops: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  /** Of arrays changed in place: read and written. */
  readonly updatedBytes: number;
}

/** Bytes that go to the processor and back. */
export function bytesMoved({ readBytes, writtenBytes, updatedBytes }: Omit<Work, "flops">): number {
  return readBytes + writtenBytes + 2 * updatedBytes;
}

/** An array of `count` numbers at a multiple of 64 bytes, uniform in [−1, 1); they repeat with a period that is no power of two. */
export function uniformArray(count: number): Float32Array {
  const array = new Float32Array(kernels.alignedBuffer(4 * count), 0, count);
  const period = Math.min(count, 65_521);
  for (let i = 0; i < period; i++) array[i] = 2 * Math.random() - 1;
  for (let filled = period; filled < count; filled *= 2) {
    array.copyWithin(filled, 0, Math.min(filled, count - filled));
  }
  return array;
}

/** Whether the op's products can be computed in something else than float32. */
export function hasCompute(op: string): boolean {
  return kernels.operatorFields(op).some((field) => field.name === "compute");
}

/** A bench's work: every array that is given passes once, but for what `bytes` and `updated` say. */
export function workOf(bench: OpBench, args: KernelArguments): Work {
  const fields = kernels.operatorFields(bench.op);
  const writtenTo = new Set(fields.filter(({ kind }) => kind === "output").map(({ name }) => args[name]));
  const work = { flops: bench.flops ?? 0, readBytes: 0, writtenBytes: 0, updatedBytes: 0 };
  const counted = new Set<KernelArray>();
  for (const { name, kind } of fields) {
    const array = args[name];
    if (!isKernelArray(array) || counted.has(array)) continue;
    counted.add(array);
    const bytes = bench.bytes?.[name] ?? array.byteLength;
    if (bench.updated?.includes(name) || (kind === "input" && writtenTo.has(array)))
      work.updatedBytes += bytes;
    else if (kind === "input") work.readBytes += bytes;
    else work.writtenBytes += bytes;
  }
  return work;
}

/** The least seconds that the work takes: products at the peak or bytes at the bandwidth, whichever takes longer. */
export function floorSeconds(work: Work, peak: number, bytesPerSecond: number): number {
  return Math.max(work.flops / peak, bytesMoved(work) / bytesPerSecond);
}
