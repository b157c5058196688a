import assert from "node:assert/strict";
import type { OpCase } from "../ops/cases/case.ts";
import { Expectation } from "./compare.ts";
import {
  bytesOf,
  cudaBackend,
  isKernelArray,
  type KernelArguments,
  type KernelArray,
  kernels,
  runFenced,
  runKernel,
  withEnvironment,
} from "./kernels.ts";
import { decodeOutputs, toKernelArguments } from "./op-arguments.ts";

/*
 * Products and attention in bfloat16 by Hopper's own instructions (csrc/cuda/hopper), on the emulator as a device of compute capability 9.0, or on
 * the GPU that is tested, of which only its compute capability tells that they ran.
 */

export const hopperBackend = cudaBackend === "cuda" ? "cuda" : "simt";
const isEmulated = hopperBackend === "simt";
/** Of descriptions. */
export const onHopper = isEmulated ? "on Hopper, emulated" : `on ${hopperBackend}`;

/** A case, and how many of its products, or calls of attention, go by Hopper's kernels. */
export interface HopperCase {
  readonly opCase: OpCase;
  readonly products: number;
}

/** That a GPU takes Hopper's kernels where the emulator, whose host code is the same and is asked, does: others pass these tests without them. */
function assertHopper(capability: number, products: number): void {
  const { computeCapability, model } = kernels.deviceLimits(hopperBackend);
  const hasThem = computeCapability === 90 || capability < 90 || products === 0;
  assert.ok(hasThem, `${model} of compute capability ${computeCapability / 10} has no Hopper kernels`);
}

/** Runs an op as on a device of a compute capability, under a schedule; throws unless so many of Hopper's kernels ran. */
export function runOn(
  capability: number,
  seed: number,
  op: string,
  args: KernelArguments,
  products: number,
): void {
  kernels.simtLaunches();
  withEnvironment("RLHF_CUDA_CAPABILITY", String(capability), () =>
    withEnvironment("RLHF_SIMT_SEED", String(seed), () => runKernel(hopperBackend, op, args)),
  );
  if (!isEmulated) {
    assertHopper(capability, products);
    return;
  }
  const launched = kernels.simtLaunches().filter((name) => /hopper\w+Kernel/.test(name)).length;
  assert.equal(launched, products, `${op}, seed ${seed}: products by Hopper's kernel`);
}

/** What an op reads and writes on Hopper lies in its arrays: no byte beside them is anybody's. */
export function checkFencedOnHopper({ opCase: { op }, opCase }: HopperCase): void {
  if (!isEmulated) return;
  const expectation = new Expectation(opCase, "bfloat16");
  for (const fence of ["before", "after"] as const) {
    const args = toKernelArguments(op, expectation.args, "bfloat16");
    withEnvironment("RLHF_CUDA_CAPABILITY", "90", () => runFenced(fence, op, args));
    expectation.verify(decodeOutputs(op, args, "bfloat16"), `${op}, fence ${fence} its arrays`);
  }
}

export function assertSameBits(left: KernelArguments, right: KernelArguments, label: string): void {
  for (const [field, value] of Object.entries(left)) {
    if (!isKernelArray(value)) continue;
    const same = Buffer.from(bytesOf(value)).equals(bytesOf(right[field] as KernelArray));
    assert.ok(same, `${label}: ${field}`);
  }
}

/**
 * That a case gives the bits of mma.sync's kernels: where Hopper's add up in the same order on the emulator, or leave it to them. On a GPU,
 * whose tensor cores add as they like, that both are right.
 */
export function checkPortableBits(each: HopperCase, seeds: readonly number[]): void {
  const { op } = each.opCase;
  const expectation = new Expectation(each.opCase, "bfloat16");
  const portable = toKernelArguments(op, expectation.args, "bfloat16");
  runOn(80, 0, op, portable, 0);
  expectation.verify(decodeOutputs(op, portable, "bfloat16"), `${op} by mma.sync`);
  const hopper = runOnHopper(each, seeds);
  if (isEmulated || each.products === 0)
    assertSameBits(hopper, portable, `${op}: other bits than by mma.sync`);
}

/** Runs a case under each schedule; what it gave, which is the same under all. */
export function runOnHopper({ opCase, products }: HopperCase, seeds: readonly number[]): KernelArguments {
  const { op } = opCase;
  const expectation = new Expectation(opCase, "bfloat16");
  const runs = seeds.map((seed) => {
    const args = toKernelArguments(op, expectation.args, "bfloat16");
    runOn(90, seed, op, args, products);
    expectation.verify(decodeOutputs(op, args, "bfloat16"), `${op}, seed ${seed}`);
    return args;
  });
  for (const [index, run] of runs.entries())
    assertSameBits(run, runs[0]!, `seed ${seeds[index]}: other bits`);
  return runs[0]!;
}
