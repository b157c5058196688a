import assert from "node:assert/strict";
import { CaseData } from "../ops/cases/case.ts";
import { linearBackwardArguments, linearForwardArguments } from "../ops/cases/linear.ts";
import { type KernelArguments, type KernelType, kernels, runKernel } from "../support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";

/*
 * Which tiles CUDA's matrix products are made of (csrc/cuda/matmul.cuh), on an emulated device of two multiprocessors: wide ones where
 * both have one, thin ones for few columns. What a row's sums are must not depend on it, since the number of rows decides.
 */

const [WIDE, NARROW, THIN, FLOAT32] = ["128 × 256", "128 × 128", "64 × 32", "64 × 64"];

/** The tiles of the products that an op is made of, in their order. */
function tilesOf(op: string, args: CaseArguments, type: KernelType): (string | undefined)[] {
  kernels.simtLaunches();
  runKernel("simt", op, toKernelArguments(op, args, type));
  return kernels
    .simtLaunches()
    .filter((name) => name.startsWith("matmulKernel"))
    .map((name) => /tiles of (.*)/.exec(name)?.[1]);
}

const forward = (options: Parameters<typeof linearForwardArguments>[1]): CaseArguments =>
  linearForwardArguments(new CaseData("tiles"), options);

/** The argument's row alone. */
function rowOf(args: CaseArguments, field: string, row: number, width: number): Float64Array {
  return (args[field] as Float64Array).slice(row * width, (row + 1) * width);
}

describe("the tiles of CUDA's matrix products, emulated", () => {
  for (const type of ["bfloat16", "float16"] as const) {
    const tiles = (rows: number, outputs: number) =>
      tilesOf("linearForward", forward({ rows, inputs: 8, outputs }), type);

    it(`are wide where there is one for each multiprocessor, ${type}`, () => {
      assert.deepEqual(tiles(128, 256), [NARROW]);
      assert.deepEqual(tiles(129, 256), [WIDE]);
      assert.deepEqual(tiles(128, 512), [WIDE]);
    });

    it(`are wide where that computes few columns in vain, ${type}`, () => {
      assert.deepEqual(tiles(129, 128), [NARROW]);
      assert.deepEqual(tiles(129, 129), [WIDE]);
      assert.deepEqual(tiles(129, 257), [NARROW]);
      assert.deepEqual(tiles(1, 7 * 128), [NARROW]);
      assert.deepEqual(tiles(1, 9 * 128), [WIDE]);
    });

    it(`are thin for few columns, among them an adapter's, ${type}`, () => {
      assert.deepEqual(tiles(300, 32), [THIN]);
      assert.deepEqual(tiles(300, 33), [NARROW]);
      const adapted = forward({ rows: 130, inputs: 8, outputs: 200, rank: 8 });
      assert.deepEqual(tilesOf("linearForward", adapted, type), [THIN, WIDE]);
      const backward = linearBackwardArguments(new CaseData("tiles"), {
        ...{ rows: 130, inputs: 200, outputs: 136, rank: 8, dx: "write", dWeight: true },
      });
      assert.deepEqual(tilesOf("linearBackward", backward, type), [THIN, WIDE, WIDE]);
    });

    for (const transposed of [false, true])
      for (const inputs of [64, 37])
        it(`give a row the same bits: ${inputs} inputs${transposed ? ", transposed" : ""}, ${type}`, () => {
          const [rows, outputs, rank] = [140, 200, 8];
          const together = forward({ rows, inputs, outputs, rank, transposed, bias: true });
          const all = toKernelArguments("linearForward", together, type);
          runKernel("simt", "linearForward", all);
          assert.deepEqual(tilesOf("linearForward", together, type), [THIN, WIDE]);
          for (const row of [0, 1, 63, 64, 127, 128, 139]) {
            const x = rowOf(together, "x", row, inputs);
            const [loraHidden, y] = [new Float64Array(rank), new Float64Array(outputs)];
            const alone: CaseArguments = { ...together, rows: 1, x, loraHidden, y };
            const one = toKernelArguments("linearForward", alone, type);
            runKernel("simt", "linearForward", one);
            assert.deepEqual(tilesOf("linearForward", alone, type), [THIN, NARROW]);
            const bits = (args: KernelArguments, first: number) => [
              ...(args["y"] as Uint16Array).subarray(first, first + outputs),
            ];
            assert.deepEqual(bits(one, 0), bits(all, row * outputs), `row ${row}`);
          }
        });
  }

  it("are one and the same in float32", () => {
    for (const [rows, outputs] of [
      [129, 256],
      [300, 32],
    ] as const)
      assert.deepEqual(tilesOf("linearForward", forward({ rows, inputs: 8, outputs }), "float32"), [FLOAT32]);
  });
});
