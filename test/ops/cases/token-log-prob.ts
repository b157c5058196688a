import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, GENERAL, type OpCase, unset } from "./case.ts";

export interface TokenLogProbShape {
  rows: number;
  cols: number;
  vocab: number;
  count: number;
  temperature?: number;
  keepLogits?: boolean;
  /** Hidden rows that the predictions are spread over, several to one; by default token t is predicted from row t − 1. */
  sources?: number;
  /** Multiplies the hidden states: large logits make the distribution sharp. */
  sharpness?: number;
  /** About what the logits are; 0 by default. */
  level?: number;
}

/** Arguments of tokenLogProbForward. */
export function tokenLogProbForwardArguments(data: CaseData, shape: TokenLogProbShape): CaseArguments {
  const { rows, cols, vocab, count, temperature = 1, sharpness = 1, level = 0 } = shape;
  const sources = shape.sources ? data.integers(count, shape.sources).sort() : data.subset(rows - 1, count);
  return {
    rows,
    cols,
    vocab,
    count,
    temperature,
    x: data.normal(rows * cols, sharpness, level === 0 ? 0 : 1),
    tokens: data.integers(rows, vocab),
    predictions: shape.sources ? data.subset(rows, count).reverse() : sources.map((row) => row + 1),
    sources,
    weight: data.normal(vocab * cols, 1.5 / Math.sqrt(cols), level / cols),
    logProb: unset(rows),
    lse: unset(rows),
    entropy: unset(rows),
    ...(shape.keepLogits && { logits: unset(count * vocab) }),
  };
}

/** Arguments of tokenLogProbBackward that belong to those of tokenLogProbForward. */
export function tokenLogProbBackwardArguments(
  data: CaseData,
  forward: CaseArguments,
  gradients: { dLogProb?: boolean; dLse?: boolean; dEntropy?: boolean; dWeight?: boolean },
): CaseArguments {
  const { logProb: _, ...shared } = forward;
  const { rows, cols, vocab } = forward as Record<string, number>;
  const { lse, entropy, logits } = evaluate("tokenLogProbForward", forward);
  return {
    ...shared,
    lse: lse!,
    entropy: entropy!,
    ...(logits && { logits }),
    ...(gradients.dLogProb && { dLogProb: data.normal(rows!) }),
    ...(gradients.dLse && { dLse: data.normal(rows!) }),
    ...(gradients.dEntropy && { dEntropy: data.normal(rows!) }),
    dx: data.normal(rows! * cols!),
    ...(gradients.dWeight && { dWeight: data.normal(vocab! * cols!) }),
  };
}

const ALL = { dLogProb: true, dLse: true, dEntropy: true, dWeight: true };

const SHAPES: readonly [string, TokenLogProbShape, Parameters<typeof tokenLogProbBackwardArguments>[2]][] = [
  ["2 rows, vocabulary 5", { rows: 2, cols: 3, vocab: 5, count: 1 }, ALL],
  ["9 rows, vocabulary 65", { rows: 9, cols: 33, vocab: 65, count: 5, temperature: 0.7 }, ALL],
  [
    "40 rows, vocabulary 1000, logits kept",
    { rows: 40, cols: 64, vocab: 1000, count: 33, keepLogits: true },
    { dLogProb: true, dWeight: true },
  ],
  [
    "17 rows, vocabulary 257, head frozen",
    { rows: 17, cols: 16, vocab: 257, count: 16, temperature: 1.3 },
    { dLogProb: true, dEntropy: true },
  ],
  [
    "130 rows, vocabulary 513",
    { rows: 130, cols: 31, vocab: 513, count: 129 },
    { dLse: true, dWeight: true },
  ],
  [
    "33 rows, vocabulary 2100, logits kept, tempered",
    { rows: 33, cols: 24, vocab: 2100, count: 20, temperature: 0.8, keepLogits: true },
    ALL,
  ],
  ["30 rows, several tokens from a row", { rows: 30, cols: 17, vocab: 130, count: 23, sources: 9 }, ALL],
  [
    "1100 rows, all tokens from a few, logits kept",
    { rows: 1100, cols: 5, vocab: 33, count: 1090, sources: 3, temperature: 0.9, keepLogits: true },
    ALL,
  ],
  // What stands beside the vocabulary in a tile must not be taken for a logit of 0.
  [
    "12 rows, logits about -200",
    { rows: 12, cols: 20, vocab: 130, count: 11, sharpness: 0.1, level: -200 },
    ALL,
  ],
  ["12 rows, sharp", { rows: 12, cols: 20, vocab: 130, count: 11, sharpness: 15 }, ALL],
];

/** One token of a forward case whose predictions each follow the row before, by itself: token 1 of two rows. */
export function tokenAlone(together: CaseArguments, token: number, cols: number): CaseArguments {
  return {
    ...together,
    rows: 2,
    count: 1,
    x: (together["x"] as Float64Array).slice((token - 1) * cols, (token + 1) * cols),
    tokens: (together["tokens"] as Int32Array).slice(token - 1, token + 1),
    predictions: Int32Array.of(1),
    sources: Int32Array.of(0),
    logProb: new Float64Array(2),
    lse: new Float64Array(2),
    entropy: new Float64Array(2),
  };
}

export const tokenLogProbCases: readonly OpCase[] = SHAPES.flatMap(([name, shape, gradients]): OpCase[] => {
  const data = new CaseData(`tokenLogProb ${name}`);
  const forward = tokenLogProbForwardArguments(data, shape);
  const backward = tokenLogProbBackwardArguments(data, forward, gradients);
  const scaled = { ...backward, lossScale: 32 };
  const near = { kind: "general", floor: 1 } as const;
  return [
    { op: "tokenLogProbForward", name, args: forward, criterion: GENERAL },
    { op: "tokenLogProbBackward", name, args: backward, criterion: near },
    ...(shape.temperature === undefined
      ? []
      : [{ op: "tokenLogProbBackward", name: `${name}, loss scaled`, args: scaled, criterion: near }]),
  ];
});
