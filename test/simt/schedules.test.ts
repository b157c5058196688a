import assert from "node:assert/strict";
import { CaseData, type OpCase } from "../ops/cases/case.ts";
import { sampleArguments } from "../ops/cases/decode.ts";
import { existsIn, opCases } from "../ops/cases/index.ts";
import { linearForwardArguments } from "../ops/cases/linear.ts";
import { normBackwardArguments, normForwardArguments } from "../ops/cases/norm.ts";
import { tokenAlone, tokenLogProbForwardArguments } from "../ops/cases/token-log-prob.ts";
import { Expectation } from "../support/compare.ts";
import {
  bytesOf,
  isKernelArray,
  type KernelArguments,
  type KernelArray,
  type KernelType,
  kernels,
  runKernel,
  withEnvironment,
} from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";

const TYPES = ["float32", "bfloat16", "float16"] as const;
const SEEDS = [0, 2, 3, 5, 8, 13];

/** Runs an op on the emulator under the schedule of a seed; seed 0 is the fixed order. */
function runUnderSeed(seed: number, op: string, args: KernelArguments): void {
  withEnvironment("RLHF_SIMT_SEED", String(seed), () => runKernel("simt", op, args));
}

function assertSameBits(op: string, left: KernelArguments, right: KernelArguments, seed: number): void {
  for (const [field, value] of Object.entries(left)) {
    if (!isKernelArray(value)) continue;
    const same = Buffer.from(bytesOf(value)).equals(bytesOf(right[field] as KernelArray));
    assert.ok(same, `${op}: ${field} has other bits under seed ${seed} than in the fixed order`);
  }
}

/** More rows than rmsNormBackward has blocks, each of several warps: a block then uses its shared memory again. */
function manyRowsPerBlock(): OpCase {
  const [rows, cols] = [270, 520];
  const data = new CaseData("simt many rows");
  const args = normBackwardArguments("rmsNorm", data, normForwardArguments("rmsNorm", data, rows, cols));
  return {
    op: "rmsNormBackward",
    name: `${rows}×${cols}, rows per block`,
    args,
    criterion: { kind: "general", floor: 0 },
  };
}

/** How much there is to do, by the size that says so. */
function sizeOf({ args }: OpCase): number {
  return Number(args["rows"] ?? args["sequences"] ?? args["count"]);
}

/** Rows of several warps, which share what an index's first row is; tokens again and again. */
function wideEmbedding(): OpCase {
  const [rows, cols, vocab] = [40, 520, 9];
  const data = new CaseData("simt wide rows");
  const [tokens, dy, dTable] = [
    data.integers(rows, vocab),
    data.normal(rows * cols),
    data.normal(vocab * cols),
  ];
  const args = { rows, cols, vocab, tokens, dy, dTable };
  return {
    op: "embeddingBackward",
    name: `${rows}×${cols}, several warps`,
    args,
    criterion: { kind: "exact" },
  };
}

/** Logits so large that top-p's search, whose interval is a number then, has no barrier between two sums that share memory. */
function topPOfLargeLogits(): OpCase {
  const [rows, vocab, dropped] = [1, 600, 32];
  const logits = new Float64Array(rows * vocab).fill(1e9);
  logits.fill(1e9 - 64, 0, dropped); // e⁻²⁰ of the others each, which makes 427 of the 568 of what would be 426
  const settings = { topP: 0.75, temperature: 3.2, logits };
  const args = sampleArguments(new CaseData("simt large logits"), rows, vocab, settings);
  return { op: "sample", name: "top-p of large logits", args, criterion: { kind: "general", floor: 0 } };
}

const named = (op: string, name: string): OpCase =>
  opCases.find((each) => each.op === op && each.name === name)!;

/** What the smallest and the largest cases do not show. */
const FURTHER_CASES = [
  manyRowsPerBlock(),
  wideEmbedding(),
  named("embeddingBackward", "200×8"),
  topPOfLargeLogits(),
  named("sample", "a wide vocabulary, everything"),
  named("sample", "plain"),
  named("sample", "tempered"),
  named("decodeAttention", "8 rows, 4/2 heads of 8, 17 of 40 pages"),
  named("decodeAttention", "3 rows, 22/2 heads of 24, 9 of 20 pages"),
  named("linearForward", "129×72×136 transposed, in wide tiles with LoRA"),
  named("linearForward", "257×45×203 in wide tiles with LoRA, odd sizes"),
  named("linearForward", "129×33×20 transposed, in thin tiles"),
  named("linearBackward", "130×200×136 in wide tiles"),
];

/** For each op on the emulator, its largest and its smallest case: several blocks, and less than one. */
function scheduledCases(type: KernelType): OpCase[] {
  return kernels.operators("simt").flatMap((op) => {
    const cases = opCases.filter((each) => each.op === op && existsIn(type, each));
    assert.ok(cases.length > 0, `no case for ${op}`);
    const bySize = [...cases].sort((a, b) => sizeOf(a) - sizeOf(b));
    return [bySize[0]!, bySize.at(-1)!];
  });
}

describe("CUDA kernels on the emulator, under several schedules", () => {
  for (const type of TYPES) {
    for (const opCase of [...scheduledCases(type), ...FURTHER_CASES]) {
      it(`${opCase.op}: ${opCase.name}, ${type}`, () => {
        const expectation = new Expectation(opCase, type);
        const runs = SEEDS.map((seed) => {
          const args = toKernelArguments(opCase.op, expectation.args, type);
          runUnderSeed(seed, opCase.op, args);
          expectation.verify(decodeOutputs(opCase.op, args, type), `${opCase.op} in ${type}, seed ${seed}`);
          return args;
        });
        for (const [index, run] of runs.entries()) assertSameBits(opCase.op, runs[0]!, run, SEEDS[index]!);
      });
    }
  }
});

/** `count` rows of `width` from row `first` of an argument. */
function rowsOf(
  args: CaseArguments,
  field: string,
  first: number,
  count: number,
  width: number,
): Float64Array {
  return (args[field] as Float64Array).slice(first * width, (first + count) * width);
}

function bitsOf(args: KernelArguments, field: string, first: number, count: number): Buffer {
  return Buffer.from(bytesOf((args[field] as KernelArray).slice(first, first + count)));
}

describe("CUDA kernels on the emulator, rows alone and together", () => {
  function linearAlone(
    together: CaseArguments,
    row: number,
    inputs: number,
    outputs: number,
    rank: number,
  ): CaseArguments {
    return {
      ...together,
      rows: 1,
      x: rowsOf(together, "x", row, 1, inputs),
      residual: rowsOf(together, "residual", row, 1, outputs),
      loraHidden: new Float64Array(rank),
      y: new Float64Array(outputs),
    };
  }

  function checkLinear(type: KernelType, inputs: number): void {
    const [rows, outputs, rank] = [140, 72, 8];
    const data = new CaseData(`simt rows ${inputs}`);
    const options = { rows, inputs, outputs, rank, bias: true, residual: "separate" as const };
    const together = linearForwardArguments(data, options);
    const all = toKernelArguments("linearForward", together, type);
    runKernel("simt", "linearForward", all);
    for (const row of [0, 1, 63, 64, 129, 139]) {
      const one = toKernelArguments("linearForward", linearAlone(together, row, inputs, outputs, rank), type);
      runKernel("simt", "linearForward", one);
      assert.deepEqual(bitsOf(one, "y", 0, outputs), bitsOf(all, "y", row * outputs, outputs), `row ${row}`);
    }
  }

  function checkTokenLogProb(type: KernelType): void {
    const [rows, cols, vocab] = [150, 40, 300];
    const data = new CaseData("simt token rows");
    const shape = { rows, cols, vocab, count: rows - 1 };
    const together = tokenLogProbForwardArguments(data, shape);
    const all = toKernelArguments("tokenLogProbForward", together, type);
    runKernel("simt", "tokenLogProbForward", all);
    for (const token of [1, 2, 64, 65, 128, 149]) {
      const one = toKernelArguments("tokenLogProbForward", tokenAlone(together, token, cols), type);
      runKernel("simt", "tokenLogProbForward", one);
      for (const field of ["logProb", "lse", "entropy"])
        assert.deepEqual(
          bitsOf(one, field, 1, 1),
          bitsOf(all, field, token, 1),
          `${field} of token ${token}`,
        );
    }
  }

  for (const type of TYPES) {
    it(`linearForward with LoRA: a row's bits do not depend on the others, ${type}`, () => {
      checkLinear(type, 64);
      checkLinear(type, 37); // rows that are not aligned go another way into shared memory
    });

    it(`tokenLogProbForward: a token's bits do not depend on the others, ${type}`, () =>
      checkTokenLogProb(type));
  }
});

describe("CUDA backend's errors", () => {
  const data = new CaseData("simt errors");
  const plain = linearForwardArguments(data, { rows: 2, inputs: 4, outputs: 4 });

  it("names the types that it has", () => {
    const args = toKernelArguments("linearForward", plain, "float64");
    assert.throws(() => kernels.run("simt", "linearForward", args), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /float32, bfloat16 or float16, not float64/,
    });
  });

  it("refuses a weight of another type", () => {
    const args = { ...toKernelArguments("linearForward", plain, "float32"), weightType: "bfloat16" };
    assert.throws(() => kernels.run("simt", "linearForward", args), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /bfloat16 weight with float32 activations/,
    });
  });

  it("lacks the ops that it does not have, and says so", () => {
    assert.throws(() => kernels.run("simt", "packWeight", {}), { code: "ERR_RLHF_UNSUPPORTED" });
  });
});
