import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, type OpCase, offsetsOf, unset } from "./case.ts";
import { GROUP_POLICY_STATS } from "./group-policy.ts";
import { STAT_COUNT } from "./losses.ts";
import { type TokenLogProbShape, tokenLogProbForwardArguments } from "./token-log-prob.ts";

/** As the engine numbers them. */
export const TOKEN_LOSS = { nll: 0, ppo: 1, group: 2 } as const;
export type TokenLossName = keyof typeof TOKEN_LOSS;

const STATS: Record<TokenLossName, number> = {
  nll: STAT_COUNT.tokenNllLoss,
  ppo: STAT_COUNT.ppoPolicyLoss,
  group: GROUP_POLICY_STATS,
};

export interface TokenLossShape extends Omit<TokenLogProbShape, "keepLogits"> {
  readonly kind: TokenLossName;
  readonly blockRows: number;
  /** Whether the head is frozen. */
  readonly frozen?: boolean;
  /** PPO's entropy bonus. */
  readonly bonus?: boolean;
  /** Of the group loss: the KL to the reference in the loss, weighed by the ratio, and advantages of tokens. */
  readonly weighKl?: boolean;
  readonly tokenAdvantages?: boolean;
  readonly truncated?: boolean;
}

/** Ratios e^±0.1 and e^±0.5 up to 1e-2, away from the clips at 0.8, 1.2 and 1.3. */
function oldLogProbs(data: CaseData, forward: CaseArguments): Float64Array {
  const { logProb } = evaluate("tokenLogProbForward", forward);
  return logProb!.map((value, t) =>
    Number.isNaN(value) ? 0 : value - [0.1, -0.1, 0.5, -0.5][t % 4]! - data.uniform(-0.01, 0.01),
  );
}

function lossArguments(data: CaseData, forward: CaseArguments, shape: TokenLossShape): CaseArguments {
  const { rows, kind } = shape;
  const mask = new Float64Array(rows);
  // All that is predicted counts, but for some.
  for (const t of forward["predictions"] as Int32Array) mask[t] = data.uniform() < 0.8 ? 1 : 0;
  const policy = { mask, oldLogProb: oldLogProbs(data, forward) };
  const tokenAdvantage = data.normal(rows);
  if (kind === "nll") return { scale: 1 / 7, tokenWeight: mask.map((bit) => bit * data.uniform(0.5, 2)) };
  if (kind === "ppo") {
    const bonus = { entropyCoefficient: 0.05, dEntropy: unset(rows) };
    return { ...policy, tokenAdvantage, scale: 1 / 7, clipRange: 0.2, ...(shape.bonus && bonus) };
  }
  const half = Math.ceil(rows / 2);
  const offsets = offsetsOf([half, rows - half]);
  const { oldLogProb } = policy;
  return {
    ...policy,
    sequences: 2,
    offsets,
    sequenceWeight: Float64Array.of(0.05, 0.13),
    ...(shape.tokenAdvantages ? { tokenAdvantage } : { advantage: Float64Array.of(0.7, -1.2) }),
    surrogate: shape.truncated ? 1 : 0,
    highestRatio: 1.3,
    klCoefficient: 0.07,
    weighKl: shape.weighKl ? 1 : 0,
    refLogProb: oldLogProb.map((value) => value + data.uniform(-0.4, 0.4)),
  };
}

/** Arguments of tokenLossForwardBackward. */
export function tokenLossArguments(data: CaseData, shape: TokenLossShape): CaseArguments {
  const { rows, cols, vocab, count, blockRows, kind } = shape;
  const forward = tokenLogProbForwardArguments(data, shape);
  // The losses add up all tokens that count, so nothing may be unset where nothing is predicted.
  const zeros = {
    logProb: new Float64Array(rows),
    lse: new Float64Array(rows),
    entropy: new Float64Array(rows),
  };
  return {
    ...forward,
    ...zeros,
    kind: TOKEN_LOSS[kind],
    blockRows,
    ...lossArguments(data, forward, shape),
    dLogProb: unset(rows),
    logits: unset(Math.min(blockRows, count) * vocab),
    dx: data.normal(rows * cols),
    ...(!shape.frozen && { dWeight: data.normal(vocab * cols) }),
    stats: unset(STATS[kind]),
  };
}

export const TOKEN_LOSS_SHAPES: readonly [string, TokenLossShape][] = [
  ["2 rows, vocabulary 5", { kind: "nll", rows: 2, cols: 3, vocab: 5, count: 1, blockRows: 4 }],
  [
    "9 rows, vocabulary 65",
    { kind: "nll", rows: 9, cols: 33, vocab: 65, count: 5, blockRows: 2, temperature: 0.7 },
  ],
  ["40 rows, vocabulary 2100", { kind: "nll", rows: 40, cols: 64, vocab: 2100, count: 33, blockRows: 16 }],
  ["entropy bonus", { kind: "ppo", rows: 33, cols: 24, vocab: 513, count: 30, blockRows: 13, bonus: true }],
  ["head frozen", { kind: "ppo", rows: 17, cols: 16, vocab: 257, count: 16, blockRows: 16, frozen: true }],
  [
    "several tokens from a row",
    {
      kind: "ppo",
      rows: 30,
      cols: 17,
      vocab: 130,
      count: 23,
      sources: 9,
      blockRows: 5,
      temperature: 1.3,
      bonus: true,
    },
  ],
  ["weighed KL", { kind: "group", rows: 21, cols: 9, vocab: 300, count: 14, blockRows: 7, weighKl: true }],
  [
    "truncated, advantages of tokens",
    {
      kind: "group",
      rows: 50,
      cols: 31,
      vocab: 99,
      count: 49,
      blockRows: 20,
      truncated: true,
      tokenAdvantages: true,
    },
  ],
];

/** Sums that a loss adds up from terms of either sign keep the rounding of their terms. */
const SUMS = { kind: "general", floor: 1 } as const;

export const tokenLossCases: readonly OpCase[] = TOKEN_LOSS_SHAPES.flatMap(([title, shape]) => {
  const name = `${shape.kind}, ${title}`;
  const args = tokenLossArguments(new CaseData(`tokenLossForwardBackward ${name}`), shape);
  const { dx: _dx, dWeight: _dWeight, logits: _logits, ...forwardOnly } = args;
  return [
    {
      op: "tokenLossForwardBackward",
      name,
      args: { ...args, ...(shape.temperature !== undefined && { lossScale: 32 }) },
      criterion: SUMS,
    },
    { op: "tokenLossForwardBackward", name: `${name}, no gradient`, args: forwardOnly, criterion: SUMS },
  ];
});
