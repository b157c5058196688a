import { CaseData, EXACT, type OpCase, offsetsOf, responseMask, unset } from "./case.ts";

/** Numbers of stats of each loss (its kStatCount). */
export const STAT_COUNT = {
  ppoPolicyLoss: 8,
  ppoValueLoss: 7,
  tokenNllLoss: 2,
  rewardLoss: 9,
} as const;

const BATCHES: readonly (readonly number[])[] = [[2], [7, 1, 2], [33, 65, 3, 129]];

// Losses are sums of terms of either sign, and a sum near 0 keeps the rounding of its terms.
const SUMS = { kind: "general", floor: 1 } as const;

/** The losses of tokens on a packed batch of such sequences. */
export function tokenCases(lengths: readonly number[]): OpCase[] {
  const rows = lengths.reduce((sum, length) => sum + length, 0);
  const name = `${lengths.join(", ")} tokens`;
  const data = new CaseData(`losses ${name}`);
  const mask = responseMask(data, lengths);
  const packed = { rows, sequences: lengths.length, offsets: offsetsOf(lengths), mask };
  const logProb = data.normal(rows, 0.5, -2);
  const near = (values: Float64Array, scale: number): Float64Array => {
    const noise = data.normal(rows, scale);
    return values.map((value, index) => value + noise[index]!);
  };
  const value = data.normal(rows);
  const policy = {
    rows,
    clipRange: 0.2,
    scale: 1 / 7,
    mask,
    logProb,
    oldLogProb: near(logProb, 0.3),
    advantage: data.normal(rows),
    dLogProb: unset(rows),
    stats: unset(STAT_COUNT.ppoPolicyLoss),
  };
  const values = {
    rows,
    scale: 1 / 7,
    mask,
    value,
    oldValue: near(value, 0.3),
    returns: near(value, 0.5),
    dValue: unset(rows),
    stats: unset(STAT_COUNT.ppoValueLoss),
  };
  const klReward = (suffix: string, estimator: number, selected = mask): OpCase => ({
    op: "klReward",
    name: `${name}, ${suffix}`,
    args: {
      ...packed,
      mask: selected,
      estimator,
      klCoefficient: 0.05,
      logProb,
      refLogProb: near(logProb, 0.3),
      score: data.normal(lengths.length),
      reward: unset(rows),
      kl: unset(rows),
    },
    criterion: SUMS,
  });
  return [
    ...[0, 1].map((shiftMean) => ({
      op: "whiten",
      name: `${name}${shiftMean ? "" : ", mean kept"}`,
      args: { count: rows, shiftMean, mask, x: data.normal(rows, 2, 1), y: unset(rows) },
      criterion: SUMS,
    })),
    ...[1, 2, 3].map((estimator) => klReward(`k${estimator}`, estimator)),
    klReward("first tokens too", 1, new Float64Array(rows).fill(1)),
    {
      op: "gae",
      name,
      args: {
        ...packed,
        gamma: 0.99,
        lambda: 0.9,
        reward: data.normal(rows),
        value,
        advantage: unset(rows),
        returns: unset(rows),
      },
      criterion: SUMS,
    },
    { op: "ppoPolicyLoss", name, args: policy, criterion: SUMS },
    {
      op: "ppoPolicyLoss",
      name: `${name}, entropy bonus`,
      args: {
        ...policy,
        entropyCoefficient: 0.01,
        entropy: data.normal(rows, 0.2, 2),
        dEntropy: unset(rows),
      },
      criterion: SUMS,
    },
    { op: "ppoPolicyLoss", name: `${name}, dual clip`, args: { ...policy, dualClip: 1.3 }, criterion: SUMS },
    { op: "ppoValueLoss", name, args: { ...values, clipRange: 0.2 }, criterion: SUMS },
    { op: "ppoValueLoss", name: `${name}, not clipped`, args: { ...values, clipRange: 0 }, criterion: SUMS },
    {
      op: "tokenNllLoss",
      name,
      args: {
        rows,
        scale: 1 / 7,
        weight: mask.map((selected) => selected * data.uniform(0.5, 2)),
        logProb,
        dLogProb: unset(rows),
        stats: unset(STAT_COUNT.tokenNllLoss),
      },
      criterion: SUMS,
    },
  ];
}

/** Which loss pairs have, as the engine numbers them. */
export const PAIR_LOSS = { logistic: 1, hinge: 2 } as const;

/** Labels of pairs by turns: decided, tied, nearly sure, the other way round. */
export const labelsOf = (pairs: number): Float64Array =>
  Float64Array.from({ length: pairs }, (_, pair) => [1, 0.5, 0.9, 0.25][pair % 4]!);

export function rewardCase(
  pairLoss: keyof typeof PAIR_LOSS,
  pairs: number,
  answers: number,
  withOptions: boolean,
): OpCase {
  const options = withOptions ? ", with margins, labels and centering" : "";
  const name = `${pairLoss}, ${pairs} pairs and ${answers} scored answers${options}`;
  const data = new CaseData(`rewardLoss ${name}`);
  const rows = 3 * pairs + answers + 2;
  return {
    op: "rewardLoss",
    name,
    args: {
      rows,
      pairs,
      answers,
      pairLoss: PAIR_LOSS[pairLoss],
      scale: 1 / (pairs + answers),
      value: data.normal(rows, 2),
      // Rows are drawn with repetition: an answer may stand in several pairs.
      chosen: data.integers(pairs, rows),
      rejected: data.integers(pairs, rows),
      ...(withOptions && { margin: data.normal(pairs, 0.3, 0.5), label: labelsOf(pairs), centering: 0.01 }),
      ...(answers > 0 && {
        scored: data.integers(answers, rows),
        score: data.normal(answers, 2, 1),
        scoreWeight: 0.3,
      }),
      dValue: unset(rows),
      stats: unset(STAT_COUNT.rewardLoss),
    },
    criterion: SUMS,
  };
}

export const lossCases: readonly OpCase[] = [
  ...BATCHES.flatMap(tokenCases),
  ...(["logistic", "hinge"] as const).flatMap((pairLoss) =>
    [1, 7, 33].flatMap((pairs) => [
      rewardCase(pairLoss, pairs, 0, false),
      rewardCase(pairLoss, pairs, pairs - 1, true),
    ]),
  ),
  rewardCase("logistic", 0, 5, false),
  {
    op: "whiten",
    name: "one selected element",
    args: { count: 3, mask: Float64Array.of(0, 1, 0), x: Float64Array.of(5, 2, 7), y: unset(3) },
    criterion: EXACT,
  },
  {
    op: "whiten",
    name: "nothing selected",
    args: { count: 3, mask: new Float64Array(3), x: Float64Array.of(5, 2, 7), y: unset(3) },
    criterion: EXACT,
  },
];
