import assert from "node:assert/strict";
import { plainFrequencies } from "../../lib/model/rotary.ts";
import {
  type AttentionShape,
  attentionBackwardArguments,
  attentionForwardArguments,
} from "../ops/cases/attention.ts";
import { CaseData, GENERAL, offsetsOf } from "../ops/cases/case.ts";
import {
  checkFencedOnHopper,
  checkPortableBits,
  type HopperCase,
  hopperBackend,
  onHopper,
  runOn,
  runOnHopper,
} from "../support/hopper.ts";
import { type KernelArguments, type KernelType, kernels, withEnvironment } from "../support/kernels.ts";
import {
  createModel,
  MICRO_LLAMA,
  randomBatch,
  randomValues,
  relativeDistance,
  sizeOf,
} from "../support/kernels-model.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";

/*
 * Attention in bfloat16 by Hopper's own instructions, on the emulator. Tiles have 192 queries of narrow heads, 128 of wide ones, and 128 keys;
 * keys and values of four tiles, or of three, are on their way at once.
 */

const SEEDS = [0, 2, 3, 5];
const NARROW = { heads: 1, kvHeads: 1, headDim: 64 };
const WIDE = { heads: 1, kvHeads: 1, headDim: 128 };

const SHAPES: Readonly<Record<string, AttentionShape>> = {
  "one token, narrow": { lengths: [1], ...NARROW },
  "one token, wide": { lengths: [1], ...WIDE },
  "3, 64, 65, 1 and 130 tokens, grouped": {
    lengths: [3, 64, 65, 1, 130],
    heads: 4,
    kvHeads: 2,
    headDim: 64,
    gap: 8,
  },
  "127, 129 and 2 tokens, wide, one key head": {
    lengths: [127, 129, 2],
    heads: 2,
    kvHeads: 1,
    headDim: 128,
    gap: 8,
  },
  "700 tokens, sharp": { lengths: [700], ...NARROW, sharpness: 12 },
  "520 tokens, wide, sharp": { lengths: [520], ...WIDE, sharpness: 12 },
  "130 and 5 tokens, heads of 40": { lengths: [130, 5], heads: 3, kvHeads: 1, headDim: 40, gap: 8 },
  "a prompt of 100, 2 answers, heads of 80": {
    lengths: [100, 9, 60],
    parents: [-1, 0, 0],
    heads: 4,
    kvHeads: 2,
    headDim: 80,
  },
  "window of 1": { lengths: [130, 3], ...NARROW, window: 1 },
  "window of 70": { lengths: [5, 450], ...NARROW, window: 70, sharpness: 6 },
  "window of 128, wide": { lengths: [390], ...WIDE, window: 128 },
  "window of 300, wide": { lengths: [500, 30], ...WIDE, window: 300 },
  "answers of one token": { lengths: [128, 1, 1], parents: [-1, 0, 0], ...NARROW },
  "a prompt of 133, 3 answers, grouped": {
    lengths: [133, 20, 150, 1],
    parents: [-1, 0, 0, 0],
    heads: 4,
    kvHeads: 2,
    headDim: 64,
    gap: 8,
  },
  "prompts of 7 and 128, answers apart from their prompts, wide": {
    lengths: [7, 128, 130, 70, 1, 260],
    parents: [-1, -1, 1, 0, 0, 1],
    ...WIDE,
  },
  // Its last row is where a box of eight rows could begin, or one of a tile.
  "a prompt of 129, 2 answers": { lengths: [129, 30, 9], parents: [-1, 0, 0], ...NARROW },
  "a prompt of 137, 2 answers, wide": { lengths: [137, 1, 80], parents: [-1, 0, 0], ...WIDE },
  "a prompt of 200, an answer of 400": { lengths: [200, 400], parents: [-1, 0], ...NARROW },
  "a prompt of 250, 2 answers, window of 100, wide": {
    lengths: [250, 90, 7],
    parents: [-1, 0, 0],
    ...WIDE,
    window: 100,
  },
};

/** What the kernel leaves to the one that runs everywhere. */
const LEFT: Readonly<Record<string, AttentionShape>> = {
  "rows not at multiples of 16 bytes": { lengths: [9], ...NARROW, gap: 3 },
  "narrow heads": { lengths: [9], heads: 1, kvHeads: 1, headDim: 32 },
};

const argumentsOf = (name: string, shape: AttentionShape): CaseArguments =>
  attentionForwardArguments(new CaseData(`hopper attention ${name}`), shape);

/** Forward and backward, and how many kernels of Hopper's each queues: the gradients are of queries, and of keys and values. */
function casesOf(name: string, shape: AttentionShape, isTaken = true): HopperCase[] {
  const data = new CaseData(`hopper attention ${name}`);
  const forward = attentionForwardArguments(data, shape);
  const backward = attentionBackwardArguments(data, forward);
  // With one key dO·v and delta are equal: what is left of their difference is the rounding of two sums of headDim terms.
  const criterion = { kind: "general", floor: shape.window === 1 ? Math.sqrt(shape.headDim) : 1 } as const;
  return [
    {
      opCase: { op: "attentionForward", name, args: forward, criterion: GENERAL },
      products: isTaken ? 1 : 0,
    },
    { opCase: { op: "attentionBackward", name, args: backward, criterion }, products: isTaken ? 2 : 0 },
  ];
}

/** What Hopper's kernel makes of a batch. */
function run(args: CaseArguments): KernelArguments {
  const kernelArguments = toKernelArguments("attentionForward", args, "bfloat16");
  runOn(90, 1, "attentionForward", kernelArguments, 1);
  return kernelArguments;
}

/** Rows of a batch as a batch of their own, of these sequences. */
function batchOf(args: CaseArguments, rows: readonly number[], lengths: readonly number[]): CaseArguments {
  const { parents: _, ...rest } = args;
  const pick = (name: string, stride: number): Float64Array =>
    Float64Array.from(
      rows.flatMap((row) => [...(args[name] as Float64Array).subarray(row * stride, (row + 1) * stride)]),
    );
  const strides = Object.fromEntries(
    ["q", "k", "v", "o"].map((name) => [name, Number(args[`${name}Stride`])]),
  );
  return {
    ...rest,
    rows: rows.length,
    sequences: lengths.length,
    maxLength: Math.max(...lengths),
    offsets: offsetsOf(lengths),
    ...Object.fromEntries(Object.entries(strides).map(([name, stride]) => [name, pick(name, stride)])),
    lse: pick("lse", Number(args["heads"])),
  };
}

/** That rows of one result are those of another, which has them in this order. */
function assertSameRows(
  all: KernelArguments,
  rows: readonly number[],
  other: KernelArguments,
  args: CaseArguments,
): void {
  const [stride, heads] = [Number(args["oStride"]), Number(args["heads"])];
  for (const [index, row] of rows.entries()) {
    const [o, otherO] = [all["o"] as Uint16Array, other["o"] as Uint16Array];
    const [lse, otherLse] = [all["lse"] as Float32Array, other["lse"] as Float32Array];
    const width = heads * Number(args["headDim"]);
    const outputs = [...otherO.subarray(index * stride, index * stride + width)];
    assert.deepEqual(outputs, [...o.subarray(row * stride, row * stride + width)], `row ${row}`);
    const statistics = [...otherLse.subarray(index * heads, (index + 1) * heads)];
    assert.deepEqual(statistics, [...lse.subarray(row * heads, (row + 1) * heads)], `lse of row ${row}`);
  }
}

const range = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, index) => first + index);

/** Log-probs and gradients of a model with heads of 64 whose answers share a prompt, and the kernels of Hopper's attention that ran. */
function runModel(
  backend: string,
  type: KernelType,
  capability: number,
): { values: Map<string, Float64Array>; kernels: string[] } {
  const heads = {
    hidden: 24,
    heads: 2,
    kvHeads: 1,
    headDim: 64,
    inverseFrequencies: plainFrequencies(100, 64),
  };
  const config = { ...MICRO_LLAMA, ...heads, maxPositions: 300 };
  return withEnvironment("RLHF_CUDA_CAPABILITY", String(capability), () => {
    const model = createModel(config, { backend, type, trainable: true });
    for (const parameter of model.parameters()) {
      const { name } = parameter;
      const values = randomValues(sizeOf(parameter), name);
      const isNorm = /norm\.weight$/.test(name);
      model.setParameter(
        name,
        values.map((value) => (isNorm ? 1 : 0) + 0.3 * Math.fround(value)),
      );
    }
    kernels.simtLaunches();
    const batch = randomBatch([140, 30, 70, 5], config.vocab, (token) => token % 3 === 1, [-1, 0, 0, -1]);
    const { pass, logProb } = model.forward(batch, { grad: true });
    model.backward(pass, { dLogProb: randomValues(batch.tokens.length, "dLogProb") });
    const launched = kernels.simtLaunches().map((name) => name.replace(/<.*/, ""));
    return {
      values: new Map([
        ["logProb", logProb!],
        ...model.parameters().map(({ name }): [string, Float64Array] => [name, model.gradient(name)!]),
      ]),
      kernels: [...new Set(launched.filter((name) => /^hopper(?:Attention|Key|Query)/.test(name)))].sort(),
    };
  });
}

describe(`attention ${onHopper}`, () => {
  for (const [name, shape] of Object.entries(SHAPES))
    for (const each of casesOf(name, shape)) {
      const seeds = Number(each.opCase.args["rows"]) < 400 ? SEEDS : SEEDS.slice(0, 2);
      it(`${each.opCase.op}: ${name}, ${seeds.length} schedules`, () => {
        runOnHopper(each, seeds);
        checkFencedOnHopper(each);
      });
    }

  for (const [name, shape] of Object.entries(LEFT))
    for (const each of casesOf(name, shape, false))
      it(`${each.opCase.op}: ${name}: is left to mma.sync, with its bits`, () =>
        checkPortableBits(each, [0]));

  it("attentionForward computes in float32 as elsewhere", () => {
    const args = toKernelArguments(
      "attentionForward",
      argumentsOf("float32", { lengths: [5], ...NARROW }),
      "float32",
    );
    runOn(90, 1, "attentionForward", args, 0);
  });

  for (const base of [NARROW, WIDE]) {
    const width = `heads of ${base.headDim}`;

    it(`attentionForward gives a sequence the same bits alone and among others, ${width}`, () => {
      const lengths = [3, 200, 1, 130];
      const args = argumentsOf("alone", { lengths, ...base, gap: 8 });
      const all = run(args);
      const offsets = offsetsOf(lengths);
      for (const [index, length] of lengths.entries()) {
        const rows = range(offsets[index]!, length);
        assertSameRows(all, rows, run(batchOf(args, rows, [length])), args);
      }
    });

    it(`attentionForward gives answers to a shared prompt the bits that a prompt of their own gives, ${width}`, () => {
      const [prompt, answers] = [133, [20, 150, 1]];
      const lengths = [prompt, ...answers];
      const args = argumentsOf("shared", { lengths, parents: [-1, 0, 0, 0], ...base });
      const all = run(args);
      const offsets = offsetsOf(lengths);
      for (const [index, length] of answers.entries()) {
        const rows = [...range(0, prompt), ...range(offsets[index + 1]!, length)];
        assertSameRows(all, rows, run(batchOf(args, rows, [rows.length])), args);
      }
    });
  }

  it("a model's queries, keys and values, columns of one array, are read as well as by mma.sync", () => {
    const exact = runModel("ref", "float64", 80);
    const portable = runModel(hopperBackend, "bfloat16", 80);
    const hopper = runModel(hopperBackend, "bfloat16", 90);
    assert.deepEqual(portable.kernels, []);
    if (hopperBackend === "simt")
      assert.deepEqual(hopper.kernels, [
        "hopperAttentionForwardKernel",
        "hopperKeyGradientKernel",
        "hopperQueryGradientKernel",
      ]);
    for (const [name, values] of exact.values) {
      const limit = 1.5 * relativeDistance(portable.values.get(name)!, values) + 0.002;
      assert.ok(relativeDistance(hopper.values.get(name)!, values) < limit, name);
    }
  });
});
