import assert from "node:assert/strict";
import { checkGradient, type GradientCase, gradientTitle } from "../support/gradient-check.ts";
import { type CaseArguments, evaluate } from "../support/op-arguments.ts";
import { CaseData, unset } from "./cases/case.ts";
import {
  GROUP_POLICY_STATS,
  groupPolicyArguments,
  RATIO_LEVELS,
  referenceArguments,
  SURROGATES,
  withTokenAdvantages,
} from "./cases/group-policy.ts";

/** The losses of GRPO, GSPO, CISPO, RLOO and REINFORCE++ on the oracle in float64: gradients, and values by hand. */

const LENGTHS = [9, 2, 17, 6, 5];

function gradientCase(
  name: string,
  args: CaseArguments,
  method: GradientCase["method"] = "complex",
): GradientCase {
  const upstream = new Float64Array(GROUP_POLICY_STATS);
  upstream[0] = 1;
  return {
    name: `groupPolicyLoss, ${name}`,
    forward: { op: "groupPolicyLoss", args },
    upstream: { stats: upstream },
    backward: { op: "groupPolicyLoss", args },
    gradients: { logProb: "dLogProb" },
    method,
  };
}

const gradientCases: GradientCase[] = (Object.keys(RATIO_LEVELS) as (keyof typeof RATIO_LEVELS)[]).flatMap(
  (level) => {
    const data = new CaseData(`gradient of groupPolicyLoss ${level}`);
    const args = groupPolicyArguments(data, level, "clipped", LENGTHS);
    const withReference = { ...args, ...referenceArguments(data, args) };
    const ofTokens = withTokenAdvantages(data, withReference);
    return [
      gradientCase(level, args),
      gradientCase(`${level}, by differences`, args, "central"),
      gradientCase(`${level}, KL`, withReference),
      gradientCase(`${level}, weighed KL`, { ...withReference, weighKl: 1 }),
      ...(level === "token" ? [gradientCase("advantages of tokens, KL", ofTokens)] : []),
      // The factor has no gradient: it is as good as constant where a complex step cannot change it.
      gradientCase(`${level}, truncated, KL`, { ...withReference, surrogate: SURROGATES.truncated }),
    ];
  },
);

describe("gradients of the policy losses without a value function", () => {
  for (const each of gradientCases) it(gradientTitle(each), () => checkGradient(each));
});

/** Two answers of two tokens behind prompts of one; masked-out tokens hold what must not be read. */
function twoAnswers(change: readonly number[], settings: CaseArguments): CaseArguments {
  const logProb = Float64Array.of(9, -1, -2, 9, -0.5, -1.5);
  return {
    rows: 6,
    sequences: 2,
    offsets: Int32Array.of(0, 3, 6),
    mask: Float64Array.of(0, 1, 1, 0, 1, 1),
    weight: Float64Array.of(0.5, 0.25),
    advantage: Float64Array.of(2, -1),
    logProb,
    oldLogProb: logProb.map((value, t) =>
      t % 3 === 0 ? Number.NaN : value - change[t - 1 - Math.floor(t / 3)]!,
    ),
    dLogProb: unset(6),
    stats: unset(GROUP_POLICY_STATS),
    ...settings,
  };
}

const LOG = (...ratios: readonly number[]): number[] => ratios.map(Math.log);

function assertClose(actual: Float64Array | undefined, expected: readonly number[]): void {
  assert.equal(actual?.length, expected.length);
  expected.forEach((value, i) => {
    assert.ok(Math.abs((actual?.[i] as number) - value) < 1e-12, `[${i}]: ${actual?.[i]}, expected ${value}`);
  });
}

describe("values of the policy losses without a value function", () => {
  it("clipped at each token, the upper bound higher: inside, above; below, inside", () => {
    const { dLogProb, stats } = evaluate(
      "groupPolicyLoss",
      twoAnswers(LOG(1.25, 1.5, 0.5, 1.1), { lowestRatio: 0.8, highestRatio: 1.28 }),
    );
    assertClose(dLogProb, [0, -0.5 * 2 * 1.25, 0, 0, 0, 0.25 * 1.1]);
    const loss = 0.5 * (-2.5 - 2.56) + 0.25 * (0.8 + 1.1);
    const approxKl = LOG(1.25, 1.5, 0.5, 1.1).reduce((sum, d) => sum + d ** 2 / 2, 0);
    assertClose(stats, [loss, approxKl, 1, 1, 4.35, 1.25 ** 2 + 1.5 ** 2 + 0.5 ** 2 + 1.1 ** 2, 0, 4]);
  });

  it("one ratio per sequence: the geometric mean of its tokens' (GSPO), or their product (RLOO)", () => {
    const change = LOG(1.1 * 1.1, 1, 2, 0.5 * 1.21);
    const wide = { lowestRatio: 0.5, highestRatio: 2 };
    const mean = evaluate(
      "groupPolicyLoss",
      twoAnswers(change, { ...wide, level: RATIO_LEVELS["sequence-mean"] }),
    );
    assertClose(mean["dLogProb"], [0, -1.1, -1.1, 0, 0.275, 0.275]);
    assert.ok(Math.abs(mean["stats"]![0]! - (-0.5 * 2 * 2.2 + 0.25 * 2.2)) < 1e-12);
    const sum = evaluate(
      "groupPolicyLoss",
      twoAnswers(change, { ...wide, level: RATIO_LEVELS["sequence-sum"] }),
    );
    assertClose(sum["dLogProb"], [0, -2.42, -2.42, 0, 0.605, 0.605]);
    assert.ok(Math.abs(sum["stats"]![0]! - (-0.5 * 2 * 2.42 + 0.25 * 2.42)) < 1e-12);
  });

  it("CISPO goes on learning from tokens over the bound, by the bound", () => {
    const { dLogProb, stats } = evaluate(
      "groupPolicyLoss",
      twoAnswers(LOG(1.25, 3, 0.5, 1.1), { surrogate: SURROGATES.truncated, highestRatio: 1.5 }),
    );
    assertClose(dLogProb, [0, -1.25, -1.5, 0, 0.125, 0.275]);
    // −min(ρ, 1.5)·A·logProb with log-probs −1, −2, −0.5, −1.5.
    const loss = 0.5 * (2.5 + 6) + 0.25 * (-0.25 - 1.65);
    assert.ok(Math.abs(stats![0]! - loss) < 1e-12);
    assert.deepEqual(Array.from(stats!.subarray(2, 4)), [0, 1]);
  });

  it("the KL is k3, weighted as the loss is, and is reported whole", () => {
    const refLogProb = Float64Array.of(0, -1.2, -1.5, 0, -0.5, -1.5);
    const { dLogProb, stats } = evaluate(
      "groupPolicyLoss",
      twoAnswers(LOG(1, 1, 1, 1), { advantage: new Float64Array(2), refLogProb, klCoefficient: 0.1 }),
    );
    const k3 = [-0.2, 0.5].map((d) => Math.exp(d) - 1 - d);
    assertClose(k3.map((k) => Number(k.toFixed(6))) as never, [0.018731, 0.148721]);
    assertClose(dLogProb, [0, -0.05 * Math.expm1(-0.2), -0.05 * Math.expm1(0.5), 0, 0, 0]);
    assert.ok(Math.abs(stats![0]! - 0.05 * (k3[0]! + k3[1]!)) < 1e-12);
    assert.ok(Math.abs(stats![6]! - (k3[0]! + k3[1]!)) < 1e-12);
  });

  it("a KL weighed by the ratio has the slope ρ·(logProb − refLogProb)", () => {
    const refLogProb = Float64Array.of(0, -1.2, -1.5, 0, -0.7, -1.4);
    const { dLogProb, stats } = evaluate(
      "groupPolicyLoss",
      twoAnswers(LOG(1.25, 0.9, 1, 1), {
        advantage: new Float64Array(2),
        refLogProb,
        klCoefficient: 0.1,
        weighKl: 1,
      }),
    );
    assertClose(dLogProb, [0, 0.05 * 1.25 * 0.2, 0.05 * 0.9 * -0.5, 0, 0.025 * 0.2, 0.025 * -0.1]);
    const k3 = [-0.2, 0.5, -0.2, 0.1].map((d) => Math.exp(d) - 1 - d);
    const loss = 0.05 * (1.25 * k3[0]! + 0.9 * k3[1]!) + 0.025 * (k3[2]! + k3[3]!);
    assert.ok(Math.abs(stats![0]! - loss) < 1e-12);
    assert.ok(
      Math.abs(stats![6]! - k3.reduce((sum, k) => sum + k, 0)) < 1e-12,
      "the KL is reported unweighed",
    );
  });

  it("each token has an advantage of its own", () => {
    const tokenAdvantage = Float64Array.of(Number.NaN, 1, -2, Number.NaN, 0.5, -1);
    const { advantage: _, ...others } = twoAnswers(LOG(1.25, 1.5, 0.5, 0.5), {});
    const { dLogProb, stats } = evaluate("groupPolicyLoss", { ...others, tokenAdvantage });
    // Over 1.2 with a positive advantage is clipped, over it with a negative one is not; below 0.8 the other way round.
    assertClose(dLogProb, [0, 0, 0.5 * 2 * 1.5, 0, -0.25 * 0.5 * 0.5, 0]);
    assert.ok(Math.abs(stats![0]! - (0.5 * (-1.2 + 3) + 0.25 * (-0.25 + 0.8))) < 1e-12);
    assert.deepEqual(Array.from(stats!.subarray(2, 4)), [1, 1]);
  });

  for (const level of Object.values(RATIO_LEVELS)) {
    it(`level ${level}: at ratio 1 and no room to clip the gradient is the unclipped one`, () => {
      const { dLogProb, stats } = evaluate(
        "groupPolicyLoss",
        twoAnswers([0, 0, 0, 0], { level, lowestRatio: 1, highestRatio: 1 }),
      );
      const slope = level === RATIO_LEVELS["sequence-sum"] ? 2 : 1;
      assertClose(dLogProb, [0, -slope, -slope, 0, 0.25 * slope, 0.25 * slope]);
      assertClose(stats, [-1.5, 0, 0, 0, 4, 4, 0, 4]);
    });
  }
});
