import assert from "node:assert/strict";
import {
  assertSameBits,
  BFLOAT16_KERNELS,
  bfloat16KernelsOf,
  COMPUTES,
  CPU_BACKENDS,
  restoreBfloat16Kernel,
} from "../support/bfloat16-kernels.ts";
import { type KernelOptions, kernels, runKernel } from "../support/kernels.ts";
import { toKernelArguments } from "../support/op-arguments.ts";
import {
  assertNear,
  backward,
  type ComputedCase,
  divergence,
  forward,
  type ProductCase,
  packedForms,
  run,
  statistics,
  tokenLoss,
} from "../support/product-cases.ts";
import { CaseData } from "./cases/case.ts";
import { ACTIVATION, linearForwardArguments } from "./cases/linear.ts";

/*
 * Products computed in bfloat16 and bfloat16x3: every kernel that this machine has against the oracle, which rounds or splits the same
 * factors.
 */

const CASES: readonly ProductCase[] = [
  forward("1×1×1", { rows: 1, inputs: 1, outputs: 1 }),
  forward("16×32×32, one tile high", { rows: 16, inputs: 32, outputs: 32, bias: true }),
  forward("17×33×65 with residual", { rows: 17, inputs: 33, outputs: 65, gap: 3, residual: "inPlace" }),
  forward("7×300×40 transposed, GELU", {
    ...{ rows: 7, inputs: 300, outputs: 40, transposed: true, bias: true, preActivation: true },
    activation: ACTIVATION.geluTanh,
  }),
  forward("70×129×33 with LoRA", { rows: 70, inputs: 129, outputs: 33, rank: 5 }),
  forward("33×64×48 transposed with LoRA after dropout", {
    ...{ rows: 33, inputs: 64, outputs: 48, rank: 33, loraInput: true, transposed: true },
  }),
  forward("600×700×530, many blocks", { rows: 600, inputs: 700, outputs: 530 }),
  forward("70×4200×20, in parts of k", { rows: 70, inputs: 4200, outputs: 20 }),
  backward("1×1×1", { rows: 1, inputs: 1, outputs: 1, dx: "write", dWeight: true, dBias: true }),
  backward("40×65×33", {
    rows: 40,
    inputs: 65,
    outputs: 33,
    gap: 2,
    dx: "write",
    dWeight: true,
    dBias: true,
  }),
  backward("33×48×70 transposed, accumulated", {
    ...{ rows: 33, inputs: 48, outputs: 70, dx: "accumulate", dWeight: true, transposed: true },
  }),
  backward("50×96×64 with LoRA", { rows: 50, inputs: 96, outputs: 64, rank: 8, dx: "write", dLora: true }),
  backward("9×40×31 with LoRA after dropout", {
    ...{
      rows: 9,
      inputs: 40,
      outputs: 31,
      rank: 3,
      dx: "write",
      loraInput: true,
      dLoraInput: true,
      dLora: true,
    },
  }),
  backward("300×520×270, many blocks", { rows: 300, inputs: 520, outputs: 270, dx: "write", dWeight: true }),
  ...statistics(20, 33, 70, 11),
  ...statistics(90, 64, 2300, 80),
  tokenLoss({ kind: "nll", rows: 20, cols: 33, vocab: 70, count: 11, blockRows: 6, temperature: 0.8 }),
  tokenLoss({ kind: "nll", rows: 90, cols: 64, vocab: 2300, count: 80, blockRows: 48 }),
  ...divergence("reverse", { rows: 17, cols: 33, refCols: 20, vocab: 70, count: 11, temperature: 0.8 }),
  ...divergence("forward", { rows: 60, cols: 64, vocab: 2300, count: 50 }),
];

/**
 * The largest error of an array, as a share of its largest number. Sums differ by their order, ε·√K; a factor that is itself a sum may be
 * rounded the other way, which in bfloat16 is half of 2⁻⁸ of one term, and in bfloat16x3 no more than the sums.
 */
function tolerance({ op, args, compute }: ComputedCase): number {
  // Gradients of logits, and an adapter's hidden states, are rounded after they were computed.
  const isRounded =
    /ProbBackward|DivergenceBackward|ForwardBackward/.test(op) || Number(args["rank"] ?? 0) > 0;
  return isRounded && compute === "bfloat16" ? 2e-3 : 2e-5;
}

describe("products in bfloat16", () => {
  afterEach(restoreBfloat16Kernel);

  it("are there on every processor, if only by conversion", () => {
    assert.ok(BFLOAT16_KERNELS.includes("convert"));
    assert.equal(kernels.chooseBfloat16Kernel("tensor" as "amx"), false);
  });

  for (const backend of CPU_BACKENDS)
    for (const kernel of bfloat16KernelsOf(backend))
      for (const compute of COMPUTES)
        for (const opCase of CASES)
          it(`${opCase.op} ${opCase.name} in ${compute} on ${backend} by ${kernel}`, () => {
            kernels.chooseBfloat16Kernel(kernel);
            const each: ComputedCase = { ...opCase, compute };
            const actual = run(each, backend, "float32");
            assertNear(actual, run(each, "ref", "float64"), tolerance(each));
            const packed = run(each, backend, "float32", packedForms(each, backend, "float32"));
            assertSameBits(packed, actual, "packed");
            const narrow: ComputedCase = { ...each, inputs: "bfloat16" };
            assertSameBits(
              run(narrow, backend, "float32", packedForms(narrow, backend, "bfloat16")),
              run(narrow, backend, "float32"),
              "packed from 16 bits",
            );
          });

  for (const [compute, kernel] of COMPUTES.flatMap((compute) =>
    BFLOAT16_KERNELS.map((kernel) => [compute, kernel] as const),
  ))
    it(`in ${compute} by ${kernel}: the same bits on any number of threads, and in each row whatever the others are`, () => {
      kernels.chooseBfloat16Kernel(kernel);
      const args = linearForwardArguments(new CaseData("bfloat16 rows"), {
        rows: 150,
        inputs: 200,
        outputs: 330,
        rank: 4,
      });
      const all = (rows: number, options: KernelOptions): Float32Array => {
        const part = { ...toKernelArguments("linearForward", args, "float32"), rows, compute };
        runKernel("cpu", "linearForward", part, options);
        const { y } = part as unknown as { y: Float32Array };
        return y;
      };
      const one = all(150, { threads: 1 });
      assert.deepEqual(all(150, { threads: 2 }), one);
      for (const rows of [1, 13, 16, 40, 149])
        assert.deepEqual(
          all(rows, { threads: 1 }).subarray(0, rows * 330),
          one.subarray(0, rows * 330),
          `${rows} rows`,
        );
    });

  it("deep and wide ones, whose unfinished tiles wait for more of k, have the bits of few rows", () => {
    const [most, outputs] = [192, 5500];
    const wave = (length: number): Float32Array => Float32Array.from({ length }, (_, i) => Math.sin(i));
    for (const [compute, inputs] of [
      ["bfloat16", 4200],
      ["bfloat16x3", 2100],
    ] as const) {
      const [x, weight] = [wave(most * inputs), wave(inputs * outputs)];
      const product = (rows: number): Float32Array => {
        const y = new Float32Array(rows * outputs);
        const sizes = { rows, inputs, outputs, xStride: inputs, yStride: outputs, compute };
        runKernel(
          "cpu",
          "linearForward",
          { ...sizes, x: x.subarray(0, rows * inputs), weight, y },
          { threads: 1 },
        );
        return y;
      };
      const few = product(16);
      assert.deepEqual(product(most).subarray(0, few.length), few, compute);
    }
  });

  it("in bfloat16x3 are refused by CUDA's kernels", () => {
    const sizes = { rows: 1, inputs: 1, outputs: 1, xStride: 1, yStride: 1, compute: "bfloat16x3" };
    const one = Float32Array.of(1);
    const args = { ...sizes, x: one, weight: one, y: new Float32Array(1) };
    assert.throws(() => kernels.run("simt", "linearForward", args), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /products in bfloat16x3 .* are not there on CUDA/,
    });
  });

  it("a NaN stays one, and an infinity too", () => {
    for (const kernel of BFLOAT16_KERNELS) {
      kernels.chooseBfloat16Kernel(kernel);
      const y = new Float32Array(3);
      const x = Float32Array.of(Number.NaN, 1, Number.POSITIVE_INFINITY, 1, 1, 1);
      const sizes = { rows: 3, inputs: 2, outputs: 1, xStride: 2, yStride: 1, compute: "bfloat16" };
      runKernel("cpu", "linearForward", { ...sizes, x, weight: Float32Array.of(1, 1), y });
      assert.deepEqual(y, Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY, 2), kernel);
    }
  });

  it("in bfloat16x3 are of factors of 16 bits, without the product of what rounding left of both", () => {
    const [high, low] = [1, 2 ** -9 + 2 ** -12];
    for (const kernel of BFLOAT16_KERNELS) {
      kernels.chooseBfloat16Kernel(kernel);
      const y = new Float32Array(2);
      // The second one has a bit too many, which falls away.
      const x = Float32Array.of(high + low, high + low + 2 ** -19);
      const sizes = { rows: 2, inputs: 1, outputs: 1, xStride: 1, yStride: 1, compute: "bfloat16x3" };
      runKernel("cpu", "linearForward", { ...sizes, x, weight: Float32Array.of(high + low), y });
      const product = high * high + 2 * high * low;
      assert.deepEqual(y, Float32Array.of(product, product), kernel);
    }
  });

  it("round factors to nearest even: 1 + 2⁻⁸ is 1, and 1 + 3·2⁻⁸ is 1 + 2⁻⁶", () => {
    for (const kernel of BFLOAT16_KERNELS) {
      kernels.chooseBfloat16Kernel(kernel);
      const y = new Float32Array(2);
      const x = Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8);
      const sizes = { rows: 2, inputs: 1, outputs: 1, xStride: 1, yStride: 1, compute: "bfloat16" };
      runKernel("cpu", "linearForward", { ...sizes, x, weight: Float32Array.of(1), y });
      assert.deepEqual(y, Float32Array.of(1, 1 + 2 ** -6), kernel);
    }
  });
});
