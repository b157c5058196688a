import assert from "node:assert/strict";
import { loadKernelsBinary } from "../../lib/engine/load-binary.ts";

/** Element types of csrc/core/dtype.h that ops compute in. */
export type KernelType = "float32" | "float64" | "float16" | "bfloat16" | "complex128";
/** What matrix products may be computed in. */
export type ProductType = KernelType | "bfloat16x3";

/** Tokens in a page of a key/value cache (csrc/ops/decode.h). */
export const PAGE_TOKENS = 32;

/** What an op can take as an array; which one depends on the field and on the op's `type`. */
export type KernelArray = Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array | BigInt64Array;

/**
 * Where the emulator makes an error of a kernel that touches memory of nobody's, has no stack left or does not end (csrc/simt/fault.h);
 * elsewhere, and under AddressSanitizer, it ends the process or hangs.
 */
export const CATCHES_FAULTS =
  process.platform === "linux" && process.arch === "x64" && !process.env["LD_PRELOAD"]?.includes("asan");

/** An op's arguments by the names in csrc/ops; arrays that are left out are null pointers. */
export type KernelArguments = Readonly<
  Record<string, number | bigint | boolean | string | KernelArray | null>
>;

export interface KernelOptions {
  /** Threads of a CPU backend; 1 by default. */
  readonly threads?: number;
}

/** Where a page that nobody may touch lies right beside each array of a call; the other side has its own only behind the array's page. */
export type Fence = "before" | "after";

/** One field of an op's argument structure. "output" arrays may be written, "input" arrays never are. */
export interface OperatorField {
  readonly name: string;
  readonly kind: "type" | "integer" | "real" | "input" | "output";
  /** Of arrays: a typed array's name, or "any" where it follows from the op's type. */
  readonly element?: string;
}

/** What a driver says of its device; 0 and "" where it says nothing. */
export interface DeviceLimits {
  readonly name: string;
  readonly model: string;
  /** 10 × major + minor. */
  readonly computeCapability: number;
  readonly multiprocessors: number;
  readonly memoryBytes: number;
  readonly l2Bytes: number;
  /** The highest of the multiprocessors. */
  readonly clockHz: number;
  readonly memoryBytesPerSecond: number;
}

/** rlhf_kernels.node as it is (csrc/node/kernels.cc). Nothing checks that arrays are as long as the shapes say. */
export interface KernelsAddon {
  run(backend: string, op: string, args: KernelArguments, options?: KernelOptions): void;
  /** Seconds of each repetition, timed natively. */
  bench(
    backend: string,
    op: string,
    args: KernelArguments,
    repetitions: number,
    options: KernelOptions,
  ): { readonly seconds: Float64Array };
  /**
   * Seconds of each repetition by the device's own events, and the scratch memory that the op asks for. The arrays are brought to the device
   * before, `copies` times, and repetitions take the copies in turn; `leadBytes` are overwritten first, for so long that the host has queued
   * everything by then. Outputs stay on the device.
   */
  benchOnDevice(
    backend: string,
    op: string,
    args: KernelArguments,
    repetitions: number,
    options: { readonly copies?: number; readonly leadBytes?: number },
  ): { readonly seconds: Float64Array; readonly scratchBytes: number };
  /** Seconds of copying so many bytes between two places of the device's memory, of each repetition. */
  deviceCopySeconds(backend: string, bytes: number, repetitions: number): Float64Array;
  /** Whether a copy to the device, behind work that takes time, brings what memory held that is overwritten as soon as the copy is queued. */
  keepsOverwrittenSource(backend: string, bytes: number, options: { readonly leadBytes?: number }): boolean;
  deviceLimits(backend: string): DeviceLimits;
  /** Float32 operations a second that multiply-adds reach on so many threads of this CPU now; what products are compared with. */
  multiplyAddPeak(threads: number): number;
  /** The same of products in bfloat16, by the kernel in use on operands that stay in the first-level cache. */
  bfloat16Peak(threads: number): number;
  /** Bytes a second that so many threads read and write, going through arrays of these sizes again and again; updated in place counts twice. */
  streamingRate(
    threads: number,
    bytes: { readonly readBytes: number; readonly writtenBytes: number; readonly updatedBytes: number },
  ): number;
  backends(): string[];
  operators(backend: string): string[];
  operatorFields(op: string): OperatorField[];
  packedWeightBytes(
    backend: string,
    type: KernelType,
    compute: ProductType,
    inputs: number,
    outputs: number,
    backward: boolean,
  ): number;
  scratchBytes(backend: string, limits: Readonly<Record<string, number>>, options?: KernelOptions): number;
  /** Memory at a multiple of 64, as that of devices. */
  alignedBuffer(bytes: number): ArrayBuffer;
  /** A small network on the oracle, forward, and with dy backward; arrays as `type` has them (csrc/node/kernels_mlp.cc). */
  runMlp(args: {
    readonly type: "float64" | "complex128";
    readonly sizes: readonly number[];
    readonly activation: string;
    readonly rows: number;
    readonly x: Float64Array;
    readonly parameters: Float64Array;
    readonly dy?: Float64Array;
  }): { readonly y: Float64Array; readonly gradient?: Float64Array; readonly dx?: Float64Array };
  philox(seed: bigint, stream: bigint, index: bigint): Uint32Array;
  toBits(values: Float32Array, type: KernelType): Uint16Array;
  fromBits(bits: Uint16Array, type: KernelType): Float32Array;
  abiHash(): bigint;
  /** False where this machine does not have it; the CPU's products in bfloat16 use it from then on. */
  chooseBfloat16Kernel(name: "amx" | "dot" | "convert"): boolean;
  simtSelfTests(): string[];
  runSimtSelfTest(name: string, seed: number): string;
  /** Names of the kernels that the emulator has run since the last call. */
  simtLaunches(): string[];
}

/** The addon; throws ERR_RLHF_NO_BINARY where it has not been built. */
export const kernels = loadKernelsBinary() as KernelsAddon;

/**
 * The backends that tests of every backend are run on: those that any machine has, or those that RLHF_TEST_BACKENDS names, as
 * `npm run test:cuda` does with "cuda".
 */
export const testedBackends: readonly string[] =
  process.env["RLHF_TEST_BACKENDS"]?.split(",") ?? kernels.backends();

/** Whether a backend has the ops of csrc/cuda: on a GPU, or emulated. */
export function isCudaBackend(backend: string): boolean {
  return backend === "cuda" || backend.startsWith("simt");
}

/** Where single tests of the CUDA kernels run: a device with memory of its own, for which the emulator's stands in where none was named. */
export const cudaBackend =
  testedBackends.find((name) => isCudaBackend(name) && name !== "simt") ?? "simt:apart";

const GUARD_BYTES = 256;
/** NaN to whoever reads it as real numbers: what is read outside an array shows as what is written there does. */
const GUARD_BYTE = 0xff;

/** A copy of an array, at a multiple of 64 bytes and between two guards if they have any bytes. */
class GuardedCopy {
  readonly array: KernelArray;
  readonly #before: Uint8Array;
  readonly #after: Uint8Array;
  readonly #source: KernelArray;

  constructor(source: KernelArray, guardBytes: number) {
    const buffer = kernels.alignedBuffer(2 * guardBytes + source.byteLength);
    this.#source = source;
    this.#before = new Uint8Array(buffer, 0, guardBytes).fill(GUARD_BYTE);
    this.#after = new Uint8Array(buffer, guardBytes + source.byteLength, guardBytes).fill(GUARD_BYTE);
    new Uint8Array(buffer, guardBytes, source.byteLength).set(bytesOf(source));
    this.array = viewLike(source, buffer, guardBytes);
  }

  /** Throws if anything outside the array was written. */
  verifyGuards(what: string): void {
    assert.ok(
      this.#before.every((byte) => byte === GUARD_BYTE),
      `${what} was written before its start`,
    );
    assert.ok(
      this.#after.every((byte) => byte === GUARD_BYTE),
      `${what} was written past its end`,
    );
  }

  /** Throws if the copy no longer holds what the caller's array holds. */
  verifyUnchanged(what: string): void {
    assert.deepEqual(bytesOf(this.array), bytesOf(this.#source), `${what} is an input and was written`);
  }

  copyBack(): void {
    bytesOf(this.#source).set(bytesOf(this.array));
  }
}

/** The bytes of a typed array, not copied. */
export function bytesOf(array: KernelArray): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function viewLike(source: KernelArray, buffer: ArrayBuffer, byteOffset: number): KernelArray {
  const { length } = source;
  if (source instanceof Float32Array) return new Float32Array(buffer, byteOffset, length);
  if (source instanceof Float64Array) return new Float64Array(buffer, byteOffset, length);
  if (source instanceof Int32Array) return new Int32Array(buffer, byteOffset, length);
  if (source instanceof Uint16Array) return new Uint16Array(buffer, byteOffset, length);
  if (source instanceof Uint8Array) return new Uint8Array(buffer, byteOffset, length);
  return new BigInt64Array(buffer, byteOffset, length);
}

export function isKernelArray(value: KernelArguments[string] | undefined): value is KernelArray {
  return ArrayBuffer.isView(value);
}

/** The fields of an op that point at arrays which may be written. */
export function outputFields(op: string): string[] {
  return kernels
    .operatorFields(op)
    .filter((field) => field.kind === "output")
    .map((field) => field.name);
}

/**
 * Runs an op on copies of the arrays that lie between guards, then writes the outputs back into the caller's arrays. Throws if
 * the op wrote outside an array or into an input. An array that is given twice is one array to the op as well.
 */
export function runKernel(
  backend: string,
  op: string,
  args: KernelArguments,
  options: KernelOptions = {},
): void {
  runOnCopies(backend, op, args, options, GUARD_BYTES);
}

/** The same on "simt:apart" with fences in the place of guards: an access to what lies there, be it reading or writing, throws. */
export function runFenced(fence: Fence, op: string, args: KernelArguments): void {
  withEnvironment("RLHF_SIMT_FENCE", fence, () => runOnCopies("simt:apart", op, args, {}, 0));
}

/** What `run` gives with an environment variable set, until it has; the emulator reads it as it goes. */
export function withEnvironment<T>(name: string, value: string, run: () => T): T {
  const before = process.env[name];
  const restore = (): void => {
    if (before === undefined) delete process.env[name];
    else process.env[name] = before;
  };
  process.env[name] = value;
  let pending = false;
  try {
    const result = run();
    pending = result instanceof Promise;
    return pending ? ((result as Promise<unknown>).finally(restore) as T) : result;
  } finally {
    if (!pending) restore();
  }
}

function runOnCopies(
  backend: string,
  op: string,
  args: KernelArguments,
  options: KernelOptions,
  guardBytes: number,
): void {
  const copies = new Map<KernelArray, GuardedCopy>();
  const staged: Record<string, KernelArguments[string]> = {};
  for (const [name, value] of Object.entries(args)) {
    if (isKernelArray(value)) {
      const copy = copies.get(value) ?? new GuardedCopy(value, guardBytes);
      copies.set(value, copy);
      staged[name] = copy.array;
    } else {
      staged[name] = value;
    }
  }
  kernels.run(backend, op, staged, options);
  const written = new Set(outputFields(op).map((name) => args[name]));
  for (const [name, value] of Object.entries(args)) {
    if (!isKernelArray(value)) continue;
    const copy = copies.get(value)!;
    const what = `${op} on ${backend}: ${name}`;
    copy.verifyGuards(what);
    if (written.has(value)) copy.copyBack();
    else copy.verifyUnchanged(what);
  }
}
