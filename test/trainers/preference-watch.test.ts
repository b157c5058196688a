import assert from "node:assert/strict";
import { PreferenceWatch } from "../../lib/trainers/preference-watch.ts";

/** The warnings of so many steps whose metrics follow from the step's number. */
function warningsOf(
  watch: PreferenceWatch,
  steps: number,
  metricsOf: (step: number) => { loss?: number; chosen: number; margin: number },
): { step: number; warning: string }[] {
  return Array.from({ length: steps }, (_, i) => i + 1).flatMap((step) => {
    const { loss = 0.5, chosen, margin } = metricsOf(step);
    const metrics = { loss, "rewards/chosen": chosen, "rewards/margins": margin, lr: 1e-7 };
    return watch.observe({ step, metrics }).map((warning) => ({ step, warning }));
  });
}

const withReference = (): PreferenceWatch =>
  new PreferenceWatch({ beta: 0.1, startsAtLog2: true, warmupSteps: 0 });

describe("the watch over preference training", () => {
  it("warns once of chosen answers that become less likely while the margin grows", () => {
    const warnings = warningsOf(withReference(), 100, (step) => ({
      chosen: -0.02 * step,
      margin: 0.01 * step,
    }));
    assert.equal(warnings.length, 1);
    assert.ok(warnings[0]!.step >= 20, "not of the first few steps");
    assert.match(warnings[0]!.warning, /fallen by \d\.\d on average while the margin grows/);
    assert.match(warnings[0]!.warning, /Add the likelihood .*learning rate.*beta.*SFT/s);
  });

  it("says nothing while chosen answers become likelier, hardly less likely, or the margin shrinks", () => {
    const quiet: ((step: number) => { chosen: number; margin: number })[] = [
      (step) => ({ chosen: 0.01 * step, margin: 0.02 * step }),
      (step) => ({ chosen: -0.05, margin: 0.02 * step }),
      (step) => ({ chosen: -0.02 * step, margin: 1 / step }),
      (step) => ({ chosen: -0.02 * step, margin: Number.NaN }),
    ];
    for (const metricsOf of quiet) assert.deepEqual(warningsOf(withReference(), 100, metricsOf), []);
  });

  it("warns once of a loss that stands at log 2, after the warm-up", () => {
    const still = { loss: Math.LN2 + 1e-4, chosen: 0, margin: 0 };
    const watch = new PreferenceWatch({ beta: 0.1, startsAtLog2: true, warmupSteps: 30 });
    const warnings = warningsOf(watch, 300, () => still);
    assert.deepEqual(
      warnings.map(({ step }) => step),
      [80],
    );
    assert.match(warnings[0]!.warning, /0\.693 for 50 steps.*Raise the learning rate \(now 1e-7\)/);
    const moving = warningsOf(withReference(), 300, (step) => ({
      ...still,
      loss: step % 40 === 0 ? 0.6 : Math.LN2,
    }));
    assert.deepEqual(moving, []);
  });

  it("without a reference compares evaluations of the same answers", () => {
    const watch = new PreferenceWatch({ startsAtLog2: false, warmupSteps: 0 });
    const evaluation = (logProb: number, margin: number): void =>
      watch.observeEvaluation({ "eval/logps/chosen": logProb, "eval/rewards/margins": margin });
    const step = { step: 1, metrics: { loss: 0.7, "rewards/chosen": -9, "rewards/margins": 3 } };
    assert.deepEqual(watch.observe(step), []);
    evaluation(-40, 0.1);
    evaluation(-40.5, 0.5);
    assert.deepEqual(watch.observe(step), [], "1 % is nothing to speak of");
    evaluation(-44, 0.5);
    assert.match(
      watch.observe(step)[0]!,
      /held-out chosen answers has fallen by 4\.00 while the margin grows/,
    );
    assert.deepEqual(watch.observe(step), []);
  });
});
