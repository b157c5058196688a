import assert from "node:assert/strict";
import { assertNear } from "../support/near.ts";
import { type CaseArguments, evaluate } from "../support/op-arguments.ts";
import { unset } from "./cases/case.ts";
import { PAIR_LOSS, STAT_COUNT } from "./cases/losses.ts";
import {
  F_DIVERGENCES,
  KTO_STATS,
  PREFERENCE_KINDS,
  PREFERENCE_STATS,
  type PreferenceKind,
} from "./cases/preference.ts";

/** Values computed by hand from the papers' formulas, on the oracle in float64 to the digits that are given. */

const KL = { k1: 1, k2: 2, k3: 3 } as const;

/** An answer of three tokens behind a prompt of one: token t's V stands at t − 1. */
const ANSWER = {
  rows: 4,
  sequences: 1,
  offsets: Int32Array.of(0, 4),
  mask: Float64Array.of(0, 1, 1, 1),
  logProb: Float64Array.of(0, -1, -2, -0.5),
  refLogProb: Float64Array.of(0, -1.2, -1.5, -0.5),
  value: Float64Array.of(0.1, 0.2, 0.3, 0),
};

function assertClose(actual: Float64Array | undefined, expected: readonly number[], digits: number): void {
  assert.deepEqual(
    Array.from(actual ?? [], (value) => Number(value.toFixed(digits)) + 0),
    expected,
  );
}

/** A pair whose answers have the rewards 1.2 and 0.3. */
function pairOfRewards(): CaseArguments {
  return {
    rows: 2,
    pairs: 1,
    value: Float64Array.of(1.2, 0.3),
    chosen: Int32Array.of(0),
    rejected: Int32Array.of(1),
    dValue: unset(2),
    stats: unset(STAT_COUNT.rewardLoss),
  };
}

function klReward(estimator: number): Record<string, Float64Array> {
  const { value: _, ...answer } = ANSWER;
  const outputs = { reward: unset(4), kl: unset(4) };
  return evaluate("klReward", {
    ...answer,
    estimator,
    klCoefficient: 0.05,
    score: Float64Array.of(1),
    ...outputs,
  });
}

function gae(reward: Float64Array, settings: CaseArguments = {}): Record<string, Float64Array> {
  const { logProb: _, refLogProb: __, ...answer } = ANSWER;
  const outputs = { advantage: unset(4), returns: unset(4) };
  return evaluate("gae", { ...answer, gamma: 1, lambda: 0.95, reward, ...outputs, ...settings });
}

describe("golden values", () => {
  it("KL estimators k1, k2 and k3 per token", () => {
    assertClose(klReward(KL.k1)["kl"], [0, 0.2, -0.5, 0], 12);
    assertClose(klReward(KL.k2)["kl"], [0, 0.02, 0.125, 0], 12);
    assertClose(klReward(KL.k3)["kl"], [0, 0.018731, 0.148721, 0], 6);
  });

  it("rewards: the penalty per token, the score at the last token", () => {
    assertClose(klReward(KL.k1)["reward"], [0, -0.01, 0.025, 1], 12);
  });

  it("generalised advantages and returns", () => {
    const { advantage, returns } = gae(klReward(KL.k1)["reward"]!);
    assertClose(advantage, [0, 0.8405, 0.79, 0.7], 10);
    assertClose(returns, [0, 0.9405, 0.99, 1], 10);
  });

  it("with lambda 0 advantages are temporal differences, with lambda 1 the return minus the value", () => {
    const reward = Float64Array.of(0, 1, 2, 3);
    const oneStep = gae(reward, { gamma: 0.5, lambda: 0 });
    assertClose(oneStep["advantage"], [0, 1 + 0.5 * 0.2 - 0.1, 2 + 0.5 * 0.3 - 0.2, 2.7], 12);
    const complete = gae(reward, { gamma: 0.5, lambda: 1 });
    assertClose(complete["returns"], [0, 1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3], 12);
  });

  it("tokens between masked-in ones, such as a tool's output, pass advantages through", () => {
    const { advantage } = gae(Float64Array.of(0, 1, 9, 3), {
      mask: Float64Array.of(0, 1, 0, 1),
      lambda: 0.5,
    });
    assertClose(advantage, [0, 1 + 0.3 - 0.1 + 0.5 * 2.7, 0, 2.7], 12);
  });

  it("whitened advantages", () => {
    const x = Float64Array.of(100, 0.8405, 0.79, 0.7);
    const args = { count: 4, mask: ANSWER.mask, x, y: unset(4) };
    assertClose(evaluate("whiten", args)["y"], [0, 0.894578, 0.185004, -1.079583], 6);
    const kept = evaluate("whiten", { ...args, shiftMean: 0 })["y"];
    const mean = (0.8405 + 0.79 + 0.7) / 3;
    assertClose(
      kept,
      [0, ...[0.894578, 0.185004, -1.079583].map((value) => Number((value + mean).toFixed(5)))],
      5,
    );
  });

  it("Bradley-Terry, with and without a margin", () => {
    const plain = evaluate("rewardLoss", pairOfRewards());
    assertClose(plain["stats"], [0.341154, 1, 1, 1, 0.9, 1.5, 2, 0, 0], 6);
    const slope = 1 / (1 + Math.exp(0.9));
    assertClose(plain["dValue"], [Number((-slope).toFixed(10)), Number(slope.toFixed(10))], 10);
    const withMargin = evaluate("rewardLoss", { ...pairOfRewards(), margin: Float64Array.of(0.5) });
    assertClose(withMargin["stats"]?.subarray(0, 1), [0.513015], 6);
    const centred = evaluate("rewardLoss", { ...pairOfRewards(), centering: 0.01 });
    assertClose(centred["stats"]?.subarray(0, 1), [Number((0.341154 + 0.01 * 1.5 ** 2).toFixed(6))], 6);
  });

  it("pairs of rewards 1.2 and 0.3: a tie, a label of 0.9, and the hinge; an answer with a score", () => {
    const lossOf = (changes: CaseArguments): number =>
      evaluate("rewardLoss", { ...pairOfRewards(), ...changes })["stats"]![0]!;
    // −log σ(0.9) = 0.341154 and −log σ(−0.9) = 1.241154.
    assertNear(lossOf({ label: Float64Array.of(0.5) }), (0.341154 + 1.241154) / 2, 1e-6);
    assertNear(lossOf({ label: Float64Array.of(0.9) }), 0.9 * 0.341154 + 0.1 * 1.241154, 1e-6);
    const hinge = { pairLoss: PAIR_LOSS.hinge, margin: Float64Array.of(1) };
    assertNear(lossOf(hinge), 0.1, 1e-6);
    assertNear(lossOf({ ...hinge, margin: Float64Array.of(0.5) }), 0, 1e-6);
    assertNear(lossOf({ ...hinge, label: Float64Array.of(0) }), 1.9, 1e-6);
    const scored = evaluate("rewardLoss", {
      ...pairOfRewards(),
      pairs: 0,
      answers: 2,
      scored: Int32Array.of(0, 1),
      score: Float64Array.of(1, 1),
    });
    assertClose(scored["stats"], [0.53, 0, 0, 0, 0, 1.5, 2, 2, 0.53], 6);
    assertClose(scored["dValue"], [0.4, -1.4], 6);
  });

  describe("the preference family at log-ratios 1 and −2, β 0.1, log-probs −10 and −14, 5 and 8 tokens", () => {
    const pair = {
      sequences: 2,
      pairs: 1,
      beta: 0.1,
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      tokens: Int32Array.of(5, 8),
      logProb: Float64Array.of(-10, -14),
      dLogProb: unset(2),
      order: new Int32Array(2),
      stats: unset(PREFERENCE_STATS),
    };
    const refLogProb = Float64Array.of(-11, -12);
    const values: [number, PreferenceKind, string, CaseArguments][] = [
      [0.554355, "sigmoid", "", { refLogProb }],
      [0.7, "hinge", "", { refLogProb }],
      [20.7025, "ipo", " per token", { refLogProb, lengthNormalized: true }],
      [4, "ipo", "", { refLogProb }],
      [2.258199, "exoPair", " (0.001)", { refLogProb, labelSmoothing: 1e-3 }],
      [1.315664, "ncaPair", "", { refLogProb }],
      [0.516855, "robust", " (0.1)", { refLogProb, labelSmoothing: 0.1 }],
      [0.584355, "sigmoid", " (cDPO, 0.1)", { refLogProb, labelSmoothing: 0.1 }],
      [1.242536, "bcoPair", "", { refLogProb }],
      [25, "sppoHard", "", { refLogProb }],
      [0.554355, "aot", " of one pair", { refLogProb }],
      [0.554355, "aotUnpaired", " of one pair", { refLogProb }],
      [0.925187, "apoZero", "", { refLogProb }],
      [0.950537, "apoDown", "", { refLogProb }],
      [0.740357, "discopop", "", { refLogProb }],
      [0.6709, "sigmoid", " per token", { refLogProb, lengthNormalized: true }],
      [0.402484, "sigmoid", " of forward KL", { refLogProb, fDivergence: F_DIVERGENCES.forwardKl }],
      [0.60657, "sigmoid", " of JS", { refLogProb, fDivergence: F_DIVERGENCES.js }],
      [0.504106, "sigmoid", " of alpha 0.5", { refLogProb, fDivergence: F_DIVERGENCES.alpha, fAlpha: 0.5 }],
      [0.989712, "sigmoid", " (SimPO, 0.5)", { lengthNormalized: true, margin: 0.5 }],
      [Number(Math.log1p(Math.exp(0.295473)).toFixed(6)), "oddsRatio", "", { lengthNormalized: true }],
    ];
    for (const [loss, kind, name, settings] of values) {
      it(`${kind}${name}`, () => {
        const args = { ...pair, kind: PREFERENCE_KINDS.indexOf(kind), ...settings };
        const { stats } = evaluate("preferenceLoss", args);
        assertClose(stats?.subarray(0, 1), [loss], 6);
        // Rewards β·1 and β·(−2), or β times the log-probs where there is no reference.
        const rewards = "refLogProb" in settings ? [0.3, 0.1, -0.2] : [0.4, -1, -1.4];
        assertClose(stats?.subarray(1), [1, 1, ...rewards, -10, -14], 12);
      });
    }
  });

  it("losses far out, where e^|u| is lost in rounding or overflows", () => {
    // Computed with 50 digits.
    const of = (kind: PreferenceKind, u: number): number => {
      const { stats } = evaluate("preferenceLoss", {
        sequences: 2,
        pairs: 1,
        kind: PREFERENCE_KINDS.indexOf(kind),
        beta: 1,
        labelSmoothing: kind === "exoPair" ? 1e-3 : 0,
        chosen: Int32Array.of(0),
        rejected: Int32Array.of(1),
        logProb: Float64Array.of(-1000 + u, -1000),
        dLogProb: unset(2),
        stats: unset(PREFERENCE_STATS),
      });
      return stats![0]!;
    };
    const values: [PreferenceKind, number, number][] = [
      ["sigmoid", 40, 4.248354255291589e-18],
      ["sigmoid", 800, 0],
      ["sigmoid", -800, 800],
      ["exoPair", 40, 0.0010005003335833886],
      ["exoPair", 800, -Math.log1p(-1e-3)],
      ["exoPair", -40, 6.907755278982137],
      ["exoPair", -800, -Math.log(1e-3)],
      ["discopop", 40, 4.248354255291589e-18],
      ["discopop", 800, 0],
      ["discopop", -800, 800],
    ];
    for (const [kind, u, loss] of values)
      assert.ok(Math.abs(of(kind, u) - loss) <= 1e-14 * Math.abs(loss), `${kind} at ${u}: ${of(kind, u)}`);
  });

  it("the odds ratio from near certainty to impossible answers, against a mean log-prob of −1", () => {
    // Mean log-prob, loss, and the slope's magnitude by it, computed with 50 digits.
    const values: [number, number, number][] = [
      [-1e-6, 5.819768285092295e-7, 0.581976950149126],
      [-1e-3, 0.0005820983401266734, 0.5822199667269435],
      [-0.69, 0.4563605426410586, 0.7351465607591038],
      [-0.7, 0.4637217282783615, 0.7370890378533727],
      [-5, 4.463503216363036, 0.9951835654240664],
      [-40, 39.45867514538708, 1.0],
      [-700, 699.4586751453871, 1],
    ];
    for (const [mean, loss, slope] of values) {
      const { stats, dLogProb } = evaluate("preferenceLoss", {
        sequences: 2,
        pairs: 1,
        kind: PREFERENCE_KINDS.indexOf("oddsRatio"),
        lengthNormalized: true,
        tokens: Int32Array.of(4, 3),
        chosen: Int32Array.of(0),
        rejected: Int32Array.of(1),
        logProb: Float64Array.of(4 * mean, -3),
        dLogProb: unset(2),
        stats: unset(PREFERENCE_STATS),
      });
      assert.ok(Math.abs(stats![0]! - loss) <= 1e-14 * loss, `loss at ${mean}: ${stats![0]}`);
      assert.ok(Math.abs(dLogProb![0]! + slope / 4) <= 1e-14, `slope at ${mean}: ${dLogProb![0]}`);
    }
  });

  it("KTO of a desirable and an undesirable answer, z 0.5", () => {
    const args = {
      sequences: 2,
      beta: 0.1,
      kl: 0.5,
      logProb: Float64Array.of(-10, -14),
      refLogProb: Float64Array.of(-11, -12),
      label: Int32Array.of(1, 0),
      dLogProb: unset(2),
      stats: unset(KTO_STATS),
    };
    assertClose(evaluate("ktoLoss", args)["stats"], [0.487503, 1, 0, 0.1, 0, -10, 0], 6);
    const undesirable = evaluate("ktoLoss", { ...args, label: Int32Array.of(0, -1) });
    assertClose(undesirable["stats"], [0.437823, 0, 1, 0, -0.2, 0, -14], 6);
  });

  it("WPO's weight of two answers whose tokens are as likely as a draw from the policy, and half as likely", () => {
    // Two equal logits: lse = log 2, lseHalf = log 2 too, Σ p² = ½; a log-prob of log ½ is aligned 0, log ¼ is log ½.
    const log = (value: number): number => Math.log(value);
    const { weight } = evaluate("wpoWeight", {
      rows: 6,
      sequences: 2,
      pairs: 1,
      offsets: Int32Array.of(0, 3, 6),
      chosen: Int32Array.of(0),
      rejected: Int32Array.of(1),
      mask: Float64Array.of(0, 1, 1, 0, 0, 1),
      logProb: Float64Array.of(9, log(0.5), log(0.5), 9, 9, log(0.25)),
      lse: new Float64Array(6).fill(log(2)),
      lseHalf: new Float64Array(6).fill(log(2)),
      weight: unset(1),
    });
    assertClose(weight, [0.5], 12);
  });

  it("PPO's policy loss: unclipped, clipped above, clipped below, and where clipping does not bind", () => {
    // Ratios 1.1, 1.5, 0.5, 1.5 with advantages 2, 2, −1, −1.
    const ratios = [1.1, 1.5, 0.5, 1.5];
    const advantage = Float64Array.of(0, 2, 2, -1, -1);
    const { dLogProb, dEntropy, stats } = evaluate("ppoPolicyLoss", {
      rows: 5,
      clipRange: 0.2,
      entropyCoefficient: 0.01,
      scale: 0.25,
      mask: Float64Array.of(0, 1, 1, 1, 1),
      logProb: Float64Array.of(9, ...ratios.map((ratio) => Math.log(ratio) - 1)),
      oldLogProb: Float64Array.of(0, -1, -1, -1, -1),
      advantage,
      entropy: Float64Array.of(7, 1, 2, 3, 4),
      dLogProb: unset(5),
      dEntropy: unset(5),
      stats: unset(STAT_COUNT.ppoPolicyLoss),
    });
    assertClose(dLogProb, [0, -0.55, 0, 0, 0.375], 10);
    assertClose(dEntropy, [0, -0.0025, -0.0025, -0.0025, -0.0025], 12);
    const approxKl = ratios.reduce((sum, ratio) => sum + 0.5 * Math.log(ratio) ** 2, 0);
    const squares = ratios.reduce((sum, ratio) => sum + ratio ** 2, 0);
    const loss = -2.2 - 2.4 + 0.8 + 1.5;
    assertClose(
      stats,
      [loss, approxKl, 2, 4.6, squares, 10, 4, 0].map((value) => Number(value.toFixed(10))),
      10,
    );
  });

  it("PPO's dual clip bounds the loss of negative advantages alone, and what it bounds has no gradient", () => {
    // Ratios 4, 2, 4, 0.5 with advantages −1, −1, 1, −1: −A·ρ is 4, 2, −4, 0.5; bounded to 3, left, clipped to −1.2, clipped to 0.8.
    const { dLogProb, stats } = evaluate("ppoPolicyLoss", {
      rows: 4,
      clipRange: 0.2,
      dualClip: 3,
      scale: 0.5,
      mask: Float64Array.of(1, 1, 1, 1),
      logProb: Float64Array.of(Math.log(4), Math.log(2), Math.log(4), Math.log(0.5)),
      oldLogProb: new Float64Array(4),
      advantage: Float64Array.of(-1, -1, 1, -1),
      dLogProb: unset(4),
      stats: unset(STAT_COUNT.ppoPolicyLoss),
    });
    assertClose(dLogProb, [0, 1, 0, 0], 10);
    assertClose(stats?.subarray(0, 1), [3 + 2 - 1.2 + 0.8], 10);
    assert.deepEqual([stats?.[2], stats?.[6], stats?.[7]], [2, 4, 1]);
  });

  it("PPO's value loss: inside the clip range, clipped with the larger error, clipped with the smaller", () => {
    // V = 0.5, 1, 1 against V_old = 0.4, 0.5, 0.5 and R = 1, 0.6, 1.5: clipped values 0.5, 0.7, 0.7.
    const args = {
      rows: 4,
      clipRange: 0.2,
      scale: 0.5,
      mask: Float64Array.of(0, 1, 1, 1),
      value: Float64Array.of(0.5, 1, 1, 77),
      oldValue: Float64Array.of(0.4, 0.5, 0.5, 77),
      returns: Float64Array.of(77, 1, 0.6, 1.5),
      dValue: unset(4),
      stats: unset(STAT_COUNT.ppoValueLoss),
    };
    const { dValue, stats } = evaluate("ppoValueLoss", args);
    assertClose(dValue, [-0.25, 0.2, 0, 0], 12);
    assertClose(stats, [0.5 * (0.25 + 0.16 + 0.64), 1, 2.5, 3.1, 1 + 0.36 + 2.25, 0.25 + 0.16 + 0.25, 3], 10);
    const free = evaluate("ppoValueLoss", { ...args, clipRange: 0 });
    assertClose(free["dValue"], [-0.25, 0.2, -0.25, 0], 12);
    assert.equal(free["stats"]![1], 0);
  });

  it("AdamW's first two steps", () => {
    const state = {
      gradient: Float64Array.of(0.5),
      parameter: Float64Array.of(1),
      m: new Float64Array(1),
      v: new Float64Array(1),
    };
    const settings = { count: 1, learningRate: 0.1, weightDecay: 0.1, eps: 0 };
    const first = evaluate("adamW", { ...settings, step: 1, ...state });
    // The first step of Adam is the learning rate, whatever the gradient's size: 1·(1 − 0.01) − 0.1.
    assertClose(first["parameter"], [0.89], 12);
    const second = evaluate("adamW", {
      ...settings,
      step: 2,
      ...state,
      ...first,
      gradient: Float64Array.of(-0.5),
    });
    const m = (0.9 * 0.05 - 0.1 * 0.5) / (1 - 0.9 ** 2);
    const v = (0.999 * 0.00025 + 0.001 * 0.25) / (1 - 0.999 ** 2);
    assertClose(second["parameter"], [Number((0.89 * 0.99 - (0.1 * m) / Math.sqrt(v)).toFixed(10))], 10);
  });
});
