import assert from "node:assert/strict";
import { checkGradient, type GradientCase, gradientTitle } from "../support/gradient-check.ts";
import { type CaseArguments, evaluate } from "../support/op-arguments.ts";
import { CaseData, unset } from "./cases/case.ts";
import {
  F_DIVERGENCES,
  KTO_STATS,
  ktoArguments,
  MARGIN_KINDS,
  PREFERENCE_KINDS,
  PREFERENCE_STATS,
  type PreferenceKind,
  preferenceArguments,
  sorts,
  sumArguments,
} from "./cases/preference.ts";

/** Gradients of the losses on whole answers, on the oracle in float64. Their objective is scale · stats[loss]. */

function lossGradient(op: string, name: string, args: CaseArguments, statCount: number): GradientCase {
  const upstream = new Float64Array(statCount);
  upstream[0] = args["scale"] as number;
  return {
    name: `${op} ${name}`,
    forward: { op, args },
    upstream: { stats: upstream },
    backward: { op, args },
    gradients: { logProb: "dLogProb" },
    method: name.startsWith("hinge") ? "central" : "complex",
  };
}

function preferenceGradient(
  kind: PreferenceKind,
  name: string,
  withEverything: boolean,
  settings: CaseArguments = {},
): GradientCase {
  const title = `${kind}${name}`;
  const { base: _, ...args } = preferenceArguments(
    new CaseData(`gradient of ${title}`),
    kind,
    6,
    withEverything,
  );
  return lossGradient("preferenceLoss", title, { ...args, ...settings }, PREFERENCE_STATS);
}

function sumGradient(): GradientCase {
  const data = new CaseData("gradient of sequenceSum");
  const { x, sum, ...packed } = sumArguments(data, [9, 2, 17]);
  const dSum = data.normal(3);
  return {
    name: "sequenceSum",
    forward: { op: "sequenceSum", args: { ...packed, x: x!, sum: sum! } },
    upstream: { sum: dSum },
    backward: { op: "sequenceSumBackward", args: { ...packed, dSum, dx: unset(28) } },
    gradients: { x: "dx" },
    method: "complex",
  };
}

const cases: readonly GradientCase[] = [
  sumGradient(),
  ...PREFERENCE_KINDS.flatMap((kind) => [
    preferenceGradient(kind, "", false),
    preferenceGradient(kind, " with everything optional", true),
  ]),
  ...MARGIN_KINDS.flatMap((kind) => [
    preferenceGradient(kind, " of forward KL", true, { fDivergence: F_DIVERGENCES.forwardKl }),
    preferenceGradient(kind, " of JS", false, { fDivergence: F_DIVERGENCES.js }),
    preferenceGradient(kind, " of alpha 0.5", true, { fDivergence: F_DIVERGENCES.alpha }),
    preferenceGradient(kind, " of alpha 1.5", false, { fDivergence: F_DIVERGENCES.alpha, fAlpha: 1.5 }),
  ]),
  preferenceGradient("sigmoid", " without a reference, smoothed", true, { labelSmoothing: 0.2 }),
  lossGradient("ktoLoss", "", ktoArguments(new CaseData("gradient of ktoLoss"), 13), KTO_STATS),
];

describe("gradients of the losses on whole answers", () => {
  for (const gradientCase of cases) it(gradientTitle(gradientCase), () => checkGradient(gradientCase));

  it("are added to those of other losses", () => {
    for (const kind of PREFERENCE_KINDS) {
      const args = preferenceArguments(new CaseData(`base of ${kind}`), kind, 6, false);
      const base = new CaseData(`others of ${kind}`).normal(args["sequences"] as number);
      const alone = evaluate("preferenceLoss", args)["dLogProb"]!;
      const together = evaluate("preferenceLoss", { ...args, base })["dLogProb"]!;
      for (const [s, value] of together.entries())
        assert.ok(Math.abs(value - base[s]! - alone[s]!) < 1e-14, `${kind}: ${value}`);
    }
  });

  it("are those of each pair by itself, where a loss does not sort", () => {
    for (const kind of PREFERENCE_KINDS.filter((each) => !sorts(each))) {
      const args = preferenceArguments(new CaseData(`pairs of ${kind}`), kind, 6, true);
      const whole = evaluate("preferenceLoss", args);
      let base = args["base"] as Float64Array;
      const stats = new Float64Array(PREFERENCE_STATS);
      for (let pair = 0; pair < 6; pair++) {
        const part = evaluate("preferenceLoss", {
          ...args,
          pairs: 1,
          chosen: (args["chosen"] as Int32Array).slice(pair, pair + 1),
          rejected: (args["rejected"] as Int32Array).slice(pair, pair + 1),
          pairWeight: (args["pairWeight"] as Float64Array).slice(pair, pair + 1),
          base,
        });
        base = part["dLogProb"]!;
        for (const [index, value] of part["stats"]!.entries()) stats[index]! += value;
      }
      assert.deepEqual(base, whole["dLogProb"], kind);
      assert.deepEqual(stats, whole["stats"], kind);
    }
  });

  it("do not change with the order of the pairs, where a loss sorts", () => {
    for (const kind of PREFERENCE_KINDS.filter(sorts)) {
      const args = preferenceArguments(new CaseData(`order of ${kind}`), kind, 6, false);
      const turned = (name: string): Int32Array => (args[name] as Int32Array).slice().reverse();
      const backwards = { ...args, chosen: turned("chosen"), rejected: turned("rejected") };
      const [one, other] = [evaluate("preferenceLoss", args), evaluate("preferenceLoss", backwards)];
      for (const [s, value] of one["dLogProb"]!.entries())
        assert.ok(Math.abs(value - other["dLogProb"]![s]!) < 1e-14, `${kind}: ${value}`);
      assert.ok(Math.abs(one["stats"]![0]! - other["stats"]![0]!) < 1e-14, kind);
    }
  });
});
