import assert from "node:assert/strict";
import { uniformArray } from "../../bench/ops/op-bench.ts";
import { bytesOf, kernels, runKernel } from "../support/kernels.ts";
import { ACTIVATION } from "./cases/linear.ts";

/* Results too large for caches are stored past them, and inputs of activations that backward waits for, by whole lines of memory: the bits are
those of the same rows by themselves, which are not, and nothing beyond the rows' ends is written. */

const BACKENDS = kernels.backends().filter((name) => name.startsWith("cpu"));
const COMPUTE = ["float32", "bfloat16"] as const;
const MIB = 1 << 20;
const INPUTS = 3;
/** Of results; of inputs of activations, beside results that stay; and of those where the two arrays begin at different places of a line. */
const SIZES = [
  { what: "results of 64 MiB and more", rows: 1301, least: 64 * MIB, apart: 0 },
  { what: "inputs of activations of 4 MiB and more", rows: 103, least: 4 * MIB, apart: 0 },
  { what: "arrays that begin at different places of a line", rows: 103, least: 4 * MIB, apart: 1 },
];
/** Less than 4 MiB of results. */
const ROWS_AT_ONCE = 50;
/** Rows that begin where lines do, rows that begin anywhere in them, and a part of longer rows. */
const WIDTHS = [
  { outputs: 13_056, yStride: 13_056 },
  { outputs: 13_057, yStride: 13_057 },
  { outputs: 12_900, yStride: 13_001 },
];

/** Zeros that begin so many floats behind the begin of a line of memory. */
function floatsFrom(begin: number, count: number): Float32Array {
  return new Float32Array(kernels.alignedBuffer(4 * (begin + count)), 4 * begin, count).fill(0);
}

describe("linearForward past the caches", () => {
  for (const [backend, compute] of BACKENDS.flatMap((name) => COMPUTE.map((type) => [name, type] as const)))
    for (const { what, rows, least, apart } of SIZES)
      for (const { outputs, yStride } of WIDTHS)
        it(`${what}: ${outputs} of ${yStride} columns, in ${compute} on ${backend}`, () => {
          const x = uniformArray(rows * INPUTS);
          const shared = {
            ...{ type: "float32", weightType: "float32", compute },
            ...{ inputs: INPUTS, outputs, xStride: INPUTS, yStride, activation: ACTIVATION.geluTanh },
            ...{ weight: uniformArray(outputs * INPUTS), bias: uniformArray(outputs) },
          } as const;
          const results = (first: number, count: number): Float32Array[] => {
            const y = floatsFrom(0, count * yStride);
            const preActivation = floatsFrom(apart, count * yStride);
            const arrays = { x: x.subarray(first * INPUTS, (first + count) * INPUTS), y, preActivation };
            // runKernel's copies all begin where lines do.
            const run = apart === 0 ? runKernel : kernels.run.bind(kernels);
            run(backend, "linearForward", { ...shared, rows: count, ...arrays }, { threads: 2 });
            return [y, preActivation];
          };
          const whole = results(0, rows);
          assert.ok(4 * whole[0]!.length >= least);
          assert.ok(4 * ROWS_AT_ONCE * yStride < 4 * MIB);
          assert.ok(whole.every((values) => values.some((value) => value !== 0)));
          for (let first = 0; first < rows; first += ROWS_AT_ONCE) {
            const end = Math.min(first + ROWS_AT_ONCE, rows);
            results(first, end - first).forEach((part, i) => {
              const same = whole[i]!.subarray(first * yStride, end * yStride);
              const where = `rows ${first} to ${end}, array ${i}`;
              assert.equal(Buffer.compare(bytesOf(part), bytesOf(same)), 0, where);
            });
          }
        });
});
