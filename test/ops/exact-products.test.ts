import assert from "node:assert/strict";
import { assertSameBits, BFLOAT16_KERNELS, restoreBfloat16Kernel } from "../support/bfloat16-kernels.ts";
import { type KernelArguments, type KernelOptions, kernels, runKernel } from "../support/kernels.ts";
import { toKernelArguments } from "../support/op-arguments.ts";
import {
  assertNear,
  backward,
  type ComputedCase,
  divergence,
  forward,
  packedForms,
  run,
  statistics,
  tokenLoss,
} from "../support/product-cases.ts";
import { CaseData } from "./cases/case.ts";
import { ACTIVATION, linearForwardArguments } from "./cases/linear.ts";

/*
 * Products in float32 of layers at least 320 wide: where the processor has AMX they are made from three parts of each number
 * (csrc/cpu/kernels/gemm_exact.cc), elsewhere of multiply-adds, and so they are here with the other kernels.
 */

const CASES: readonly ComputedCase[] = [
  forward("1×320×320, one row, nothing but whole tiles", { rows: 1, inputs: 320, outputs: 320 }),
  forward("16×321×353 with residual", { rows: 16, inputs: 321, outputs: 353, gap: 3, residual: "inPlace" }),
  forward("17×330×340 transposed, GELU", {
    ...{ rows: 17, inputs: 330, outputs: 340, transposed: true, bias: true, preActivation: true },
    activation: ACTIVATION.geluTanh,
  }),
  forward("300×325×350 with LoRA", { rows: 300, inputs: 325, outputs: 350, rank: 5 }),
  forward("70×325×333 with LoRA after dropout", {
    ...{ rows: 70, inputs: 325, outputs: 333, rank: 40, loraInput: true, transposed: true },
  }),
  forward("290×1000×333, groups of rows for which the cache has room", {
    rows: 290,
    inputs: 1000,
    outputs: 333,
  }),
  forward("270×1100×800, in chunks of k, more columns than wait for the next", {
    ...{ rows: 270, inputs: 1100, outputs: 800, rank: 3 },
  }),
  backward("40×330×333", {
    ...{ rows: 40, inputs: 330, outputs: 333, gap: 2, dx: "write", dWeight: true, dBias: true },
  }),
  backward("333×325×340 transposed, accumulated", {
    ...{ rows: 333, inputs: 325, outputs: 340, dx: "accumulate", dWeight: true, transposed: true },
  }),
  backward("60×330×1100 with LoRA", {
    rows: 60,
    inputs: 330,
    outputs: 1100,
    rank: 8,
    dx: "write",
    dLora: true,
  }),
  forward("20×2100×330, deep, with all of k for few rows", { rows: 20, inputs: 2100, outputs: 330, rank: 2 }),
  backward("352×384×330 with LoRA, whose gradients read operands where they lie", {
    ...{ rows: 352, inputs: 384, outputs: 330, rank: 16, dx: "accumulate", dLora: true },
  }),
  backward("330×325×1056 with LoRA, all but the last block of rows where they lie", {
    ...{ rows: 330, inputs: 325, outputs: 1056, rank: 20, dx: "write", dLora: true },
  }),
  ...statistics(90, 325, 2300, 80),
  tokenLoss({ kind: "nll", rows: 90, cols: 328, vocab: 1100, count: 80, blockRows: 48 }),
  ...divergence("reverse", { rows: 60, cols: 320, refCols: 330, vocab: 1100, count: 50 }),
].map((each) => ({ ...each, compute: "float32" }));

/** Root mean square of errors in all outputs, each as a share of its own root mean square. */
function errorOf(actual: Record<string, Float64Array>, expected: Record<string, Float64Array>): number {
  let sum = 0;
  for (const [field, wanted] of Object.entries(expected)) {
    if (field === "logits") continue;
    const squares = (of: (value: number, index: number) => number): number =>
      wanted.reduce((total, value, index) => total + (Number.isNaN(value) ? 0 : of(value, index) ** 2), 0);
    sum += squares((value, index) => actual[field]![index]! - value) / squares((value) => value);
  }
  return Math.sqrt(sum);
}

const wave = (length: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(i * i));

/** y of a layer without bias on the CPU. */
function product(
  x: Float32Array,
  weight: Float32Array,
  rows: number,
  more: KernelArguments = {},
): Float32Array {
  const inputs = x.length / rows;
  const outputs = weight.length / inputs;
  const y = new Float32Array(rows * outputs);
  const sizes = { rows, inputs, outputs, xStride: inputs, yStride: outputs };
  runKernel("cpu", "linearForward", { type: "float32", compute: "float32", ...sizes, x, weight, y, ...more });
  return y;
}

describe("products in float32 of wide layers", () => {
  afterEach(restoreBfloat16Kernel);

  for (const each of CASES)
    it(`${each.op} ${each.name}: near the oracle, with no larger errors than those of multiply-adds`, () => {
      const expected = run(each, "ref", "float64");
      const errors = BFLOAT16_KERNELS.map((kernel) => {
        kernels.chooseBfloat16Kernel(kernel);
        const actual = run(each, "cpu", "float32");
        assertNear(actual, expected, 4e-6);
        assertSameBits(
          run(each, "cpu", "float32", packedForms(each, "cpu", "float32")),
          actual,
          `${kernel}, packed`,
        );
        return errorOf(actual, expected);
      });
      assert.ok(
        errors[0]! <= errors.at(-1)! * 1.02,
        `errors by ${BFLOAT16_KERNELS.join(", ")}: ${errors.join(", ")}`,
      );
    });

  // With 1,100 inputs the rows go in chunks of k; with 1,000 all of k is packed once for all tasks, in groups of several sizes.
  for (const inputs of [1100, 1000])
    it(`have the same bits on any number of threads, and in each row whatever the others are, of ${inputs} inputs`, () => {
      const [most, outputs] = [600, 900];
      const args = linearForwardArguments(new CaseData("exact rows"), {
        ...{ rows: most, inputs, outputs, rank: 4 },
      });
      const first = (rows: number, options: KernelOptions): Float32Array => {
        const part = { ...toKernelArguments("linearForward", args, "float32"), rows, compute: "float32" };
        runKernel("cpu", "linearForward", part, options);
        return (part as unknown as { y: Float32Array }).y.subarray(0, rows * outputs);
      };
      const all = first(most, { threads: 1 });
      for (const threads of [2, 3]) assert.deepEqual(first(most, { threads }), all, `${threads} threads`);
      for (const rows of [1, 13, 16, 17, 40, 255, 256, 290, 599])
        assert.deepEqual(first(rows, { threads: 2 }), all.subarray(0, rows * outputs), `${rows} rows`);
    });

  it("of a step of decoding are multiply-adds by every kernel", () => {
    const [x, weight] = [wave(20 * 330), wave(330 * 400)];
    const [expected, ...others] = BFLOAT16_KERNELS.map((kernel) => {
      kernels.chooseBfloat16Kernel(kernel);
      return product(x, weight, 20, { decoding: true });
    });
    for (const other of others) assert.deepEqual(other, expected);
  });

  it("lose no bit of a number, from the smallest that count to the largest", () => {
    for (const scale of [2 ** -100, 1, 2 ** 100])
      for (const value of [1 + 2 ** -23, -(2 - 2 ** -23), 1 + 2 ** -8 + 2 ** -16, 1 - 2 ** -24, 0]) {
        const ones = new Float32Array(320 * 320).fill(1);
        const single = new Float32Array(320);
        single[77] = value * scale;
        assert.ok(
          product(single, ones, 1).every((y) => y === value * scale),
          `x of ${value} · ${scale}`,
        );
        const weight = new Float32Array(320 * 320);
        weight.set(single, 3 * 320);
        assert.equal(product(ones.subarray(0, 320), weight, 1)[3], value * scale);
      }
  });

  it("a NaN or an infinity makes its row not finite, and no other", () => {
    for (const kernel of BFLOAT16_KERNELS)
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        kernels.chooseBfloat16Kernel(kernel);
        const x = wave(3 * 330);
        x[330 + 7] = bad;
        const y = product(x, wave(330 * 320), 3);
        assert.ok(
          y.subarray(0, 320).every(Number.isFinite) && y.subarray(640).every(Number.isFinite),
          kernel,
        );
        assert.ok(!y.subarray(320, 640).some(Number.isFinite), kernel);
      }
  });
});
