import assert from "node:assert/strict";
import { type KernelArguments, kernels, runKernel } from "../support/kernels.ts";
import { toKernelArguments } from "../support/op-arguments.ts";
import { CaseData } from "./cases/case.ts";
import { ACTIVATION, linearForwardArguments } from "./cases/linear.ts";

/* Steps of decoding: layers wider than a strip of results, whose weight is packed, have a way of their own for few rows. Their bits are
those of a row alone, and of the product that packs its operands itself. */

const BACKENDS = kernels.backends().filter((name) => name.startsWith("cpu"));
const COMPUTE = ["float32", "bfloat16x3", "bfloat16"] as const;
const [INPUTS, OUTPUTS] = [330, 1100];
/** Those that take several panels of columns at once, and around one, two and four panels of rows, of every instruction set. */
const ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 24, 25, 32, 33, 48, 49, 56, 57];

describe("linearForward of few rows with a packed weight", () => {
  for (const [backend, compute] of BACKENDS.flatMap((name) => COMPUTE.map((type) => [name, type] as const)))
    for (const [rank, decoding] of [
      [0, true],
      [0, false],
      [4, true],
      [4, false],
      [1030, true], // more of an adapter than a thread has room for beside several panels
    ] as const)
      it(`has one row's bits in every batch${decoding ? " of a step of decoding" : ""}${rank > 0 ? `, with an adapter of rank ${rank}` : ""}, in ${compute} on ${backend}`, () => {
        const shape = { rows: Math.max(...ROWS), inputs: INPUTS, outputs: OUTPUTS, rank, transposed: false };
        const options = {
          ...shape,
          bias: true,
          activation: ACTIVATION.geluTanh,
          residual: "separate",
        } as const;
        const args = toKernelArguments(
          "linearForward",
          linearForwardArguments(new CaseData("few rows"), options),
          "float32",
        );
        const bytes = kernels.packedWeightBytes(backend, "float32", compute, INPUTS, OUTPUTS, false);
        const packedForward = new Uint8Array(kernels.alignedBuffer(bytes));
        runKernel(backend, "packWeight", {
          ...{ type: "float32", compute, inputs: INPUTS, outputs: OUTPUTS, transposed: false },
          ...{ backward: false, weight: args["weight"]!, packed: packedForward },
        });
        const results = (rows: number, threads: number, more: KernelArguments): Float32Array => {
          const y = new Float32Array(rows * OUTPUTS).fill(Number.NaN);
          const loraHidden = rank > 0 ? new Float32Array(rows * rank) : null;
          runKernel(
            backend,
            "linearForward",
            { ...args, compute, decoding, rows, y, loraHidden, ...more },
            { threads },
          );
          return y;
        };
        const expected = results(shape.rows, 1, {});
        assert.ok(expected.every(Number.isFinite));
        for (const rows of ROWS)
          for (const threads of [1, 2])
            assert.deepEqual(
              results(rows, threads, { packedForward }),
              expected.subarray(0, rows * OUTPUTS),
              `${rows} rows, ${threads} threads`,
            );
      });
});
