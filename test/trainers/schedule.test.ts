import assert from "node:assert/strict";
import { learningRateAt, type Schedule } from "../../lib/trainers/schedule.ts";

describe("learning-rate schedule", () => {
  const rates = (schedule: Schedule, warmupSteps: number, totalSteps: number): number[] =>
    Array.from({ length: totalSteps }, (_, step) =>
      learningRateAt(step, { learningRate: 1, warmupSteps, totalSteps, schedule }),
    );

  it("rises linearly in the warm-up, from above 0 to the peak", () => {
    assert.deepEqual(rates("constant", 4, 6), [0.25, 0.5, 0.75, 1, 1, 1]);
  });

  it("linear falls from the peak towards 0, which the last step does not reach", () => {
    assert.deepEqual(rates("linear", 0, 4), [1, 0.75, 0.5, 0.25]);
    assert.deepEqual(rates("linear", 2, 4), [0.5, 1, 1, 0.5]);
  });

  it("cosine is half-way down in the middle", () => {
    const [first, , middle] = rates("cosine", 0, 4);
    assert.equal(first, 1);
    assert.ok(Math.abs((middle as number) - 0.5) < 1e-12);
  });

  it("a warm-up longer than the run never reaches the peak", () => {
    assert.deepEqual(rates("linear", 10, 2), [0.1, 0.2]);
  });
});
