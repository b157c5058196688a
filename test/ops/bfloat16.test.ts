import assert from "node:assert/strict";
import {
  assertSameBits,
  BFLOAT16_KERNELS,
  bfloat16KernelsOf,
  COMPUTES,
  type Compute,
  CPU_BACKENDS,
  restoreBfloat16Kernel,
} from "../support/bfloat16-kernels.ts";
import { type KernelArguments, type KernelOptions, kernels, runKernel } from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, encode, toKernelArguments } from "../support/op-arguments.ts";
import { CaseData } from "./cases/case.ts";
import {
  type KlDivergenceShape,
  klDivergenceBackwardArguments,
  klDivergenceForwardArguments,
} from "./cases/kl-divergence.ts";
import { ACTIVATION, linearBackwardArguments, linearForwardArguments } from "./cases/linear.ts";
import { type TokenLossShape, tokenLossArguments } from "./cases/token-loss.ts";

/*
 * Products computed in bfloat16 and bfloat16x3: every kernel that this machine has against the oracle, which rounds or splits the same
 * factors.
 */

interface Case {
  readonly op:
    | `linear${"Forward" | "Backward"}`
    | `tokenLogProb${"Forward" | "Backward"}`
    | `klDivergence${"Forward" | "Backward"}`
    | "tokenLossForwardBackward";
  readonly name: string;
  readonly args: CaseArguments;
}

function forward(name: string, options: Parameters<typeof linearForwardArguments>[1]): Case {
  const args = linearForwardArguments(new CaseData(`bfloat16 ${name}`), options);
  return { op: "linearForward", name, args };
}

function backward(name: string, options: Parameters<typeof linearBackwardArguments>[1]): Case {
  const args = linearBackwardArguments(new CaseData(`bfloat16 ${name}`), options);
  return { op: "linearBackward", name, args };
}

/** Statistics of `count` of the tokens, each predicted from the hidden row before it. */
function statistics(rows: number, cols: number, vocab: number, count: number): Case[] {
  const name = `${rows} rows of ${cols}, ${count} predictions, vocabulary of ${vocab}`;
  const data = new CaseData(`bfloat16 statistics ${name}`);
  const predictions = data.subset(rows - 1, count).map((t) => t + 1);
  const shared = {
    ...{ rows, cols, vocab, count, temperature: 0.8 },
    x: data.matrix(rows, cols),
    tokens: data.integers(rows, vocab),
    predictions,
    sources: predictions.map((t) => t - 1),
    weight: data.normal(vocab * cols, 1 / Math.sqrt(cols)),
  };
  const outputs = {
    logProb: new Float64Array(rows),
    lse: new Float64Array(rows),
    entropy: new Float64Array(rows),
  };
  const first: Case = { op: "tokenLogProbForward", name, args: { ...shared, ...outputs } };
  const measured = run({ ...first, compute: "bfloat16" }, "ref", "float64");
  const args = {
    ...shared,
    lse: measured["lse"]!,
    entropy: measured["entropy"]!,
    dLogProb: data.normal(rows),
    dLse: data.normal(rows),
    dEntropy: data.normal(rows),
    dx: data.normal(rows * cols),
    dWeight: data.normal(vocab * cols),
  };
  return [first, { op: "tokenLogProbBackward", name, args }];
}

function tokenLoss(shape: TokenLossShape): Case {
  const name = `${shape.kind}, ${shape.count} predictions, vocabulary of ${shape.vocab}`;
  const args = tokenLossArguments(new CaseData(`bfloat16 loss ${name}`), shape);
  return { op: "tokenLossForwardBackward", name, args };
}

function divergence(direction: "forward" | "reverse", shape: Omit<KlDivergenceShape, "direction">): Case[] {
  const name = `${direction}, ${shape.rows} rows, vocabulary of ${shape.vocab}`;
  const data = new CaseData(`bfloat16 divergence ${name}`);
  const args = klDivergenceForwardArguments(data, { ...shape, direction });
  return [
    { op: "klDivergenceForward", name, args },
    { op: "klDivergenceBackward", name, args: klDivergenceBackwardArguments(data, args, { dWeight: true }) },
  ];
}

const CASES: readonly Case[] = [
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

/** A case whose products are computed in a type; "bfloat16" inputs are numbers that bfloat16 holds, others those that float32 does. */
interface ComputedCase extends Case {
  readonly compute: Compute;
  readonly inputs?: Compute;
}

/**
 * Inputs that both sides round or split the same way; what is computed between two products may differ. Those of bfloat16x3 have
 * something left to split.
 */
function exactInputs({ args, compute, inputs = compute }: ComputedCase): CaseArguments {
  const round = (values: Float64Array): Float64Array => {
    const single = Float32Array.from(values);
    return Float64Array.from(
      inputs === "bfloat16" ? kernels.fromBits(kernels.toBits(single, "bfloat16"), "bfloat16") : single,
    );
  };
  const seen = new Map<unknown, Float64Array>();
  const entries = Object.entries(args).map(([name, value]) => {
    if (!(value instanceof Float64Array)) return [name, value] as const;
    if (!seen.has(value)) seen.set(value, round(value));
    return [name, seen.get(value)!] as const;
  });
  return Object.fromEntries(entries);
}

function argumentsOf(each: ComputedCase, type: "float32" | "float64"): KernelArguments {
  const { op, compute } = each;
  const reference: KernelArguments = op.startsWith("kl") ? { refCompute: compute } : {};
  return { ...toKernelArguments(op, exactInputs(each), type), type, compute, ...reference };
}

function run(each: ComputedCase, backend: string, type: "float32" | "float64", forms: KernelArguments = {}) {
  const args = { ...argumentsOf(each, type), ...forms };
  if (backend === "ref") kernels.run(backend, each.op, args);
  else runKernel(backend, each.op, args);
  return decodeOutputs(each.op, args, type);
}

/** The packed forms of a case's weight, kept in float32 or in bfloat16. */
function packedForms(each: ComputedCase, backend: string, type: "float32" | "bfloat16"): KernelArguments {
  const { op, args, compute } = each;
  const inputs = Number(args["inputs"] ?? args["cols"]);
  const outputs = Number(args["outputs"] ?? args["vocab"]);
  const weight = encode(exactInputs(each)["weight"] as Float64Array, type);
  const pack = (back: boolean): Uint8Array => {
    const bytes = kernels.packedWeightBytes(backend, type, compute, inputs, outputs, back);
    const packed = new Uint8Array(kernels.alignedBuffer(bytes));
    const transposed = args["transposed"] === true;
    const sizes = { type, compute, inputs, outputs, transposed, backward: back };
    runKernel(backend, "packWeight", { ...sizes, weight, packed });
    return packed;
  };
  const fields = kernels.operatorFields(op).map((field) => field.name);
  return {
    ...(fields.includes("packedForward") && { packedForward: pack(false) }),
    ...(fields.includes("packedBackward") && { packedBackward: pack(true) }),
  };
}

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

/** Per array: the largest error is within `share` of the largest number. */
function assertNear(
  actual: Record<string, Float64Array>,
  expected: Record<string, Float64Array>,
  share: number,
): void {
  for (const [field, wanted] of Object.entries(expected)) {
    if (field === "logits") continue; // work of the ops that have it here
    const scale = wanted.reduce(
      (most, value) => Math.max(most, Number.isNaN(value) ? 0 : Math.abs(value)),
      1e-3,
    );
    wanted.forEach((value, index) => {
      const got = actual[field]![index]!;
      if (Number.isNaN(value)) {
        assert.ok(Number.isNaN(got), `${field}[${index}] was written: ${got}`);
        return;
      }
      const error = Math.abs(got - value) / scale;
      assert.ok(
        error <= share,
        `${field}[${index}] is ${got}, expected ${value}: ${error.toExponential(2)} of ${scale}`,
      );
    });
  }
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
