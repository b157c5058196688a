import assert from "node:assert/strict";
import { kernels, testedBackends } from "../support/kernels.ts";
import { type CaseArguments, evaluate } from "../support/op-arguments.ts";
import { unset } from "./cases/case.ts";
import { ACTIVATION } from "./cases/linear.ts";
import { PAIR_LOSS, STAT_COUNT } from "./cases/losses.ts";
import { F_DIVERGENCES, PREFERENCE_KINDS, PREFERENCE_STATS } from "./cases/preference.ts";

/** Values where a maximum, a clip or an order ties, which gradient checks stay away from. All numbers here are exact in float32. */

interface Kink {
  readonly name: string;
  readonly op: string;
  readonly args: CaseArguments;
  readonly expected: Readonly<Record<string, readonly number[]>>;
}

const policyTie = (clipRange: number): Kink => ({
  name: `at ratio 1 and clip range ${clipRange} the policy gradient is that of the unclipped branch, and nothing counts as clipped`,
  op: "ppoPolicyLoss",
  args: {
    rows: 2,
    clipRange,
    mask: Float64Array.of(1, 1),
    logProb: Float64Array.of(-1, -2),
    oldLogProb: Float64Array.of(-1, -2),
    advantage: Float64Array.of(3, -2),
    dLogProb: unset(2),
    stats: unset(STAT_COUNT.ppoPolicyLoss),
  },
  expected: { dLogProb: [-3, 2], stats: [-1, 0, 0, 2, 2, 0, 2, 0] },
});

const kinks: readonly Kink[] = [
  {
    // r_chosen − r_rejected is exactly the margin, then 1 short of it.
    name: "the hinge of pairs has slope 0 where the margin is just kept, and 1 where it is not",
    op: "rewardLoss",
    args: {
      rows: 4,
      pairs: 2,
      pairLoss: PAIR_LOSS.hinge,
      value: Float64Array.of(3, 1, 2, 1),
      chosen: Int32Array.of(0, 2),
      rejected: Int32Array.of(1, 3),
      margin: Float64Array.of(2, 2),
      dValue: unset(4),
      stats: unset(STAT_COUNT.rewardLoss),
    },
    expected: { dValue: [0, 0, -1, 1], stats: [1, 2, 2, 2, 3, 7, 4, 0, 0] },
  },
  {
    name: "relu has slope 0 at 0",
    op: "activationBackward",
    args: {
      activation: ACTIVATION.relu,
      count: 4,
      x: Float64Array.of(-1, -0, 0, 1),
      dy: Float64Array.of(5, 5, 5, 5),
      dx: unset(4),
    },
    expected: { dx: [0, 0, 0, 5] },
  },
  policyTie(0),
  policyTie(0.25),
  {
    // ρ = e^0 = 1 is at no bound; a ratio is exact in float32 only there, so the advantage's sign decides.
    name: "a dual clip leaves ratio 1 alone, whatever the advantage",
    op: "ppoPolicyLoss",
    args: {
      rows: 2,
      clipRange: 0.25,
      dualClip: 2,
      mask: Float64Array.of(1, 1),
      logProb: Float64Array.of(-1, -2),
      oldLogProb: Float64Array.of(-1, -2),
      advantage: Float64Array.of(-3, 2),
      dLogProb: unset(2),
      stats: unset(STAT_COUNT.ppoPolicyLoss),
    },
    expected: { dLogProb: [3, -2], stats: [1, 0, 0, 2, 2, 0, 2, 0] },
  },
  {
    // clip(2, 0 … 1) = 1, so that both errors are 0.5.
    name: "where clipped and unclipped value errors tie, the gradient is that of the unclipped one",
    op: "ppoValueLoss",
    args: {
      rows: 2,
      clipRange: 0.5,
      mask: Float64Array.of(0, 1),
      value: Float64Array.of(2, 0),
      oldValue: Float64Array.of(0.5, 0),
      returns: Float64Array.of(0, 1.5),
      dValue: unset(2),
      stats: unset(STAT_COUNT.ppoValueLoss),
    },
    expected: { dValue: [0.5, 0], stats: [0.125, 0, 2, 1.5, 2.25, 0.25, 1] },
  },
  {
    // At β 0.5 the margins are 1 (the kink), 2 and ½.
    name: "the hinge has slope 0 at a margin of 1",
    op: "preferenceLoss",
    args: {
      sequences: 6,
      pairs: 3,
      kind: PREFERENCE_KINDS.indexOf("hinge"),
      beta: 0.5,
      chosen: Int32Array.of(0, 2, 4),
      rejected: Int32Array.of(1, 3, 5),
      logProb: Float64Array.of(-1, -3, -1, -5, -2, -3),
      dLogProb: unset(6),
      stats: unset(PREFERENCE_STATS),
    },
    expected: {
      dLogProb: [0, 0, 0, 0, -0.5, 0.5],
      stats: [0.5, 3, 3, 3.5, -2, -5.5, -4, -11],
    },
  },
  {
    name: "equal rewards are a pair that is not told apart",
    op: "preferenceLoss",
    args: {
      sequences: 2,
      pairs: 1,
      kind: PREFERENCE_KINDS.indexOf("ipo"),
      beta: 0.5,
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      logProb: Float64Array.of(-3, -3),
      dLogProb: unset(2),
      stats: unset(PREFERENCE_STATS),
    },
    expected: { dLogProb: [-2, 2], stats: [1, 1, 0, 0, -1.5, -1.5, -3, -3] },
  },
  {
    name: "sorted losses put the smaller pair first among equals",
    op: "preferenceLoss",
    args: {
      sequences: 8,
      pairs: 4,
      kind: PREFERENCE_KINDS.indexOf("aotUnpaired"),
      chosen: Int32Array.of(0, 2, 4, 6),
      rejected: Int32Array.of(1, 3, 5, 7),
      logProb: Float64Array.of(-1, -4, -2, -5, -1, -5, -3, -5),
      order: new Int32Array(8).fill(-1),
      dLogProb: unset(8),
      stats: unset(PREFERENCE_STATS),
    },
    expected: { order: [3, 1, 0, 2, 1, 2, 3, 0] },
  },
  {
    // The exponent of forward KL is 81, beyond its cap.
    name: "an f-divergence has slope 0 where its exponent is capped",
    op: "preferenceLoss",
    args: {
      sequences: 2,
      pairs: 1,
      kind: PREFERENCE_KINDS.indexOf("sigmoid"),
      fDivergence: F_DIVERGENCES.forwardKl,
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      logProb: Float64Array.of(-81, -81),
      dLogProb: unset(2),
      stats: unset(PREFERENCE_STATS),
    },
    expected: { dLogProb: [0, 0] },
  },
  {
    name: "the odds of certainty are capped and have slope 0",
    op: "preferenceLoss",
    args: {
      sequences: 2,
      pairs: 1,
      kind: PREFERENCE_KINDS.indexOf("oddsRatio"),
      lengthNormalized: true,
      tokens: Int32Array.of(2, 3),
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      logProb: Float64Array.of(0, 0),
      dLogProb: unset(2),
      stats: unset(PREFERENCE_STATS),
    },
    expected: { dLogProb: [0, 0] },
  },
  {
    name: "the largest of equal logits is the one of the smaller id",
    op: "sample",
    args: {
      rows: 1,
      vocab: 20,
      temperature: 0,
      streams: BigInt64Array.of(0n),
      positions: Int32Array.of(0),
      logits: Float64Array.from({ length: 20 }, (_, id) => (id % 9 === 4 ? 3 : 1)),
      token: Int32Array.of(-1),
      logProb: unset(1),
    },
    expected: { token: [4], logProb: [0] },
  },
  {
    name: "top-k of 1 among equal logits keeps the smaller id",
    op: "sample",
    args: {
      rows: 1,
      vocab: 20,
      topK: 1,
      streams: BigInt64Array.of(5n),
      positions: Int32Array.of(3),
      logits: new Float64Array(20).fill(2),
      token: Int32Array.of(-1),
      logProb: unset(1),
    },
    expected: { token: [0], logProb: [0] },
  },
];

for (const backend of testedBackends) {
  const operators = new Set(kernels.operators(backend));
  const supported = kinks.filter(({ op }) => operators.has(op));
  if (supported.length === 0) continue;
  describe(`values at kinks on ${backend}`, () => {
    for (const { name, op, args, expected } of supported) {
      it(name, () => {
        const outputs = evaluate(op, args, "float32", backend);
        for (const [field, values] of Object.entries(expected))
          assert.deepEqual(
            Array.from(outputs[field]!, (value) => value + 0),
            values,
            field,
          );
      });
    }
  });
}

describe("equal rewards", () => {
  it("count as half a pair told apart, with the loss log 2", () => {
    const { stats } = evaluate("rewardLoss", {
      rows: 2,
      pairs: 1,
      value: Float64Array.of(1, 1),
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      dValue: unset(2),
      stats: unset(STAT_COUNT.rewardLoss),
    });
    assert.ok(Math.abs(stats![0]! - Math.LN2) < 1e-15);
    assert.deepEqual([...stats!.subarray(1)], [1, 1, 0.5, 0, 2, 2, 0, 0]);
  });
});
