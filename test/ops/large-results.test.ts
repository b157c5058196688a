import assert from "node:assert/strict";
import { uniformArray } from "../../bench/ops/op-bench.ts";
import { bytesOf, kernels, runKernel } from "../support/kernels.ts";
import { ACTIVATION } from "./cases/linear.ts";

/* Results too large for caches are stored past them, by whole lines of memory: the bits are those of the same rows by themselves, which are not,
and nothing beyond the rows' ends is written. */

const BACKENDS = kernels.backends().filter((name) => name.startsWith("cpu"));
const COMPUTE = ["float32", "bfloat16"] as const;
const INPUTS = 3;
const ROWS = 1301;
const ROWS_AT_ONCE = 400;
/** Rows that begin where lines do, rows that begin anywhere in them, and a part of longer rows. */
const WIDTHS = [
  { outputs: 13_056, yStride: 13_056 },
  { outputs: 13_057, yStride: 13_057 },
  { outputs: 12_900, yStride: 13_001 },
];

describe("linearForward of 64 MiB of results and more", () => {
  for (const [backend, compute] of BACKENDS.flatMap((name) => COMPUTE.map((type) => [name, type] as const)))
    for (const { outputs, yStride } of WIDTHS)
      it(`has the bits of fewer rows: ${outputs} of ${yStride} columns, in ${compute} on ${backend}`, () => {
        const x = uniformArray(ROWS * INPUTS);
        const shared = {
          ...{
            type: "float32",
            weightType: "float32",
            compute,
            inputs: INPUTS,
            outputs,
            xStride: INPUTS,
            yStride,
          },
          ...{
            activation: ACTIVATION.geluTanh,
            weight: uniformArray(outputs * INPUTS),
            bias: uniformArray(outputs),
          },
        } as const;
        const results = (first: number, rows: number): Float32Array[] => {
          const [y, preActivation] = [new Float32Array(rows * yStride), new Float32Array(rows * yStride)];
          const arrays = { x: x.subarray(first * INPUTS, (first + rows) * INPUTS), y, preActivation };
          runKernel(backend, "linearForward", { ...shared, rows, ...arrays }, { threads: 2 });
          return [y, preActivation];
        };
        const whole = results(0, ROWS);
        assert.ok(4 * whole[0]!.length >= 64 << 20);
        assert.ok(whole.every((values) => values.some((value) => value !== 0)));
        for (let first = 0; first < ROWS; first += ROWS_AT_ONCE) {
          const end = Math.min(first + ROWS_AT_ONCE, ROWS);
          results(first, end - first).forEach((part, i) => {
            const same = whole[i]!.subarray(first * yStride, end * yStride);
            assert.equal(
              Buffer.compare(bytesOf(part), bytesOf(same)),
              0,
              `rows ${first} to ${end}, array ${i}`,
            );
          });
        }
      });
});
