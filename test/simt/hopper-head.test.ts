import assert from "node:assert/strict";
import { CaseData, type OpCase } from "../ops/cases/case.ts";
import {
  type KlDivergenceShape,
  klDivergenceBackwardArguments,
  klDivergenceForwardArguments,
} from "../ops/cases/kl-divergence.ts";
import {
  type TokenLogProbShape,
  tokenAlone,
  tokenLogProbBackwardArguments,
  tokenLogProbForwardArguments,
} from "../ops/cases/token-log-prob.ts";
import { type TokenLossShape, tokenLossArguments } from "../ops/cases/token-loss.ts";
import {
  assertSameBits,
  checkFencedOnHopper,
  checkPortableBits,
  type HopperCase,
  onHopper,
  runOn,
  runOnHopper,
} from "../support/hopper.ts";
import type { KernelArguments } from "../support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../support/op-arguments.ts";

/*
 * The head in bfloat16 by Hopper's own instructions, on the emulator: statistics of the next-token distribution, its gradients, losses
 * of tokens, and divergences of two heads. A chunk has a product for its logits, one for dx and one for the head's own gradient.
 */

const SEEDS = [0, 2, 3, 5];
const NEAR = { kind: "general", floor: 1 } as const;
const ALL = { dLogProb: true, dLse: true, dEntropy: true, dWeight: true };
type Gradients = Parameters<typeof tokenLogProbBackwardArguments>[2];

/** A shape, the gradients of it, and how many products go by Hopper's kernel forward and backward. */
const SHAPES: readonly [string, TokenLogProbShape, Gradients, number, number][] = [
  ["one row, vocabulary 65", { rows: 2, cols: 64, vocab: 65, count: 1 }, ALL, 1, 3],
  [
    "130 rows, vocabulary 515, tempered",
    { rows: 140, cols: 72, vocab: 515, count: 130, temperature: 0.8 },
    ALL,
    1,
    3,
  ],
  [
    "33 rows, vocabulary 256",
    { rows: 40, cols: 136, vocab: 256, count: 33 },
    { dLogProb: true, dWeight: true },
    1,
    3,
  ],
  [
    "33 rows, vocabulary 257, logits kept, tempered",
    { rows: 40, cols: 136, vocab: 257, count: 33, keepLogits: true, temperature: 1.3 },
    ALL,
    1,
    2,
  ],
  [
    "65 rows, vocabulary 520, logits kept, head frozen",
    { rows: 66, cols: 64, vocab: 520, count: 65, keepLogits: true },
    { dLogProb: true, dEntropy: true },
    1,
    1,
  ],
  // Rows of gradients stand side by side without columns between.
  ["several tokens from a row", { rows: 30, cols: 80, vocab: 136, count: 23, sources: 9 }, ALL, 1, 3],
  ["two chunks", { rows: 1100, cols: 64, vocab: 70, count: 1090, sources: 3, temperature: 0.9 }, ALL, 2, 6],
  [
    "narrow hidden rows, whose gradients are left to mma.sync",
    { rows: 20, cols: 40, vocab: 300, count: 17 },
    { dLse: true, dWeight: true },
    1,
    1,
  ],
  // What stands beside the vocabulary in a tile must not be taken for a logit of 0.
  [
    "logits about -200",
    { rows: 12, cols: 64, vocab: 130, count: 11, sharpness: 0.1, level: -200 },
    ALL,
    1,
    3,
  ],
  ["sharp", { rows: 12, cols: 64, vocab: 300, count: 11, sharpness: 15 }, ALL, 1, 3],
];

/** What is left to the kernel that runs everywhere. */
const LEFT: readonly [string, TokenLogProbShape][] = [
  ["rows not at multiples of 16 bytes", { rows: 9, cols: 68, vocab: 130, count: 8 }],
  ["a small vocabulary", { rows: 9, cols: 64, vocab: 63, count: 8 }],
];

function logProbCases([name, shape, gradients, ahead, back]: (typeof SHAPES)[number]): HopperCase[] {
  const data = new CaseData(`hopper head ${name}`);
  const forward = tokenLogProbForwardArguments(data, shape);
  const backward = {
    ...tokenLogProbBackwardArguments(data, forward, gradients),
    ...(shape.temperature !== undefined && { lossScale: 32 }),
  };
  return [
    { opCase: { op: "tokenLogProbForward", name, args: forward, criterion: NEAR }, products: ahead },
    { opCase: { op: "tokenLogProbBackward", name, args: backward, criterion: NEAR }, products: back },
  ];
}

/** A shape, and how many products go by Hopper's kernel: three each block and one for the logits that are not kept. */
const LOSS_SHAPES: readonly [string, TokenLossShape, number][] = [
  ["blocks of a few", { kind: "nll", rows: 40, cols: 64, vocab: 300, count: 33, blockRows: 16 }, 9],
  [
    "entropy bonus",
    { kind: "ppo", rows: 33, cols: 72, vocab: 257, count: 30, blockRows: 64, bonus: true, temperature: 1.3 },
    3,
  ],
];

function lossCases([name, shape, products]: (typeof LOSS_SHAPES)[number]): HopperCase[] {
  const op = "tokenLossForwardBackward";
  const data = new CaseData(`hopper loss ${name}`);
  const lossScale = shape.temperature === undefined ? 1 : 32;
  const args: CaseArguments = { ...tokenLossArguments(data, shape), lossScale };
  const { logits: _, ...again } = args;
  const blocks = products / 3;
  return [
    { opCase: { op, name, args, criterion: NEAR }, products },
    {
      opCase: { op, name: `${name}, logits computed twice`, args: again, criterion: NEAR },
      products: products + blocks,
    },
  ];
}

const KL_SHAPES: readonly [string, Omit<KlDivergenceShape, "direction">, boolean, number, number][] = [
  ["one row", { rows: 2, cols: 64, vocab: 65, count: 1 }, true, 2, 4],
  [
    "130 rows, a wider reference, tempered",
    { rows: 140, cols: 64, refCols: 80, vocab: 515, count: 130, temperature: 0.7 },
    true,
    2,
    4,
  ],
  ["logits kept", { rows: 40, cols: 72, refCols: 64, vocab: 257, count: 33, keepLogits: true }, true, 1, 3],
  [
    "head frozen, several tokens from a row",
    { rows: 30, cols: 64, vocab: 130, count: 23, sources: 9 },
    false,
    2,
    3,
  ],
  ["two chunks", { rows: 530, cols: 64, vocab: 70, count: 520, sources: 3, keepLogits: true }, true, 2, 6],
  ["nearly the same models", { rows: 34, cols: 64, vocab: 300, count: 33, near: 1e-3 }, true, 2, 4],
];

function klCases([label, shape, dWeight, ahead, back]: (typeof KL_SHAPES)[number]): HopperCase[] {
  return (["reverse", "forward"] as const).flatMap((direction) => {
    const name = `${label}, ${direction}`;
    const data = new CaseData(`hopper kl ${name}`);
    const forward = klDivergenceForwardArguments(data, { ...shape, direction });
    const backward = {
      ...klDivergenceBackwardArguments(data, forward, { dWeight }),
      ...(shape.temperature !== undefined && { lossScale: 32 }),
    };
    return [
      { opCase: { op: "klDivergenceForward", name, args: forward, criterion: NEAR }, products: ahead },
      { opCase: { op: "klDivergenceBackward", name, args: backward, criterion: NEAR }, products: back },
    ];
  });
}

function check(each: HopperCase): void {
  const { op, name, args } = each.opCase as OpCase;
  const seeds = Number(args["count"]) < 500 ? SEEDS : SEEDS.slice(0, 2);
  it(`${op}: ${name}, ${seeds.length} schedules`, () => {
    runOnHopper(each, seeds);
    checkFencedOnHopper(each);
  });
}

describe(`the head ${onHopper}`, () => {
  for (const each of SHAPES.flatMap(logProbCases)) check(each);
  for (const each of LOSS_SHAPES.flatMap(lossCases)) check(each);
  for (const each of KL_SHAPES.flatMap(klCases)) check(each);

  for (const [name, shape] of LEFT)
    it(`${name}: left to mma.sync, with its bits`, () => {
      for (const { opCase } of logProbCases([name, shape, ALL, 0, 0])) {
        // Of a small vocabulary dx is a product like others.
        const products = opCase.op === "tokenLogProbBackward" && shape.vocab < 64 ? 1 : 0;
        checkPortableBits({ opCase, products }, [0]);
      }
    });

  it("logits computed again give the gradients' bits of those that were kept", () => {
    for (const [name, shape, products] of LOSS_SHAPES) {
      const [kept, again] = lossCases([name, shape, products]).map((each) => runOnHopper(each, [1]));
      const { logits: _, ...rest } = kept!;
      assertSameBits(again!, rest, name);
    }
  });

  it("a token has the same bits alone and among others", () => {
    const [rows, cols, vocab] = [150, 72, 515];
    const data = new CaseData("hopper token rows");
    const together = tokenLogProbForwardArguments(data, { rows, cols, vocab, count: rows - 1 });
    const all = toKernelArguments("tokenLogProbForward", together, "bfloat16");
    runOn(90, 1, "tokenLogProbForward", all, 1);
    for (const token of [1, 2, 64, 65, 128, 129, 149]) {
      const one = toKernelArguments("tokenLogProbForward", tokenAlone(together, token, cols), "bfloat16");
      runOn(90, 1, "tokenLogProbForward", one, 1);
      const bits = (args: KernelArguments, field: string, at: number) => (args[field] as Float32Array)[at];
      for (const field of ["logProb", "lse", "entropy"])
        assert.equal(bits(one, field, 1), bits(all, field, token), `${field} of token ${token}`);
    }
  });
});
