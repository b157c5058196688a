import assert from "node:assert/strict";
import { distinctShare, largestOverlap } from "../../lib/trainers/diversity.ts";
import { PPO_DEFAULTS } from "../../lib/trainers/ppo-settings.ts";
import type { Rollout } from "../../lib/trainers/rollouts.ts";
import { RunningStatistics, shapeScores } from "../../lib/trainers/score-shaping.ts";
import { assertAllNear } from "../support/near.ts";

function rollout(response: readonly number[], finishReason: Rollout["finishReason"] = "stop"): Rollout {
  const tokens = Int32Array.of(90, 91, ...response);
  return { tokens, promptLength: 2, finishReason, response: "", row: { prompt: "" } };
}

/** Raw scores 1, 3 and 8: mean 4 and unbiased variance 13. */
const RAW = Float32Array.of(1, 3, 8);
const ROLLOUTS = [rollout([1, 2, 1, 2, 1]), rollout([1, 2, 3], "length"), rollout([7])];

const shape = (settings: Partial<typeof PPO_DEFAULTS>, running: RunningStatistics | null = null): number[] =>
  Array.from(shapeScores(RAW, ROLLOUTS, { ...PPO_DEFAULTS, ...settings }, running).scores);

describe("running statistics of scores", () => {
  it("are mean and deviation of all values so far, far from zero too, however they were batched", () => {
    const values = Array.from({ length: 1000 }, (_, i) => 1e6 + Math.sin(i));
    const [single, batched] = [new RunningStatistics(), new RunningStatistics()];
    single.add(values);
    for (let start = 0; start < values.length; start += 37) batched.add(values.slice(start, start + 37));
    assert.deepEqual(batched.state, single.state);
    const mean = values.reduce((sum, value) => sum + (value - 1e6), 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - 1e6 - mean) ** 2, 0);
    assert.ok(Math.abs(single.mean - 1e6 - mean) < 1e-8);
    assert.ok(Math.abs(single.deviation - Math.sqrt(squares / 999)) < 1e-8);
  });

  it("divide by 1 as long as all scores are alike", () => {
    const running = new RunningStatistics();
    assert.equal(running.deviation, 1);
    running.add([0.1, 0.1, 0.1]);
    assert.equal(running.deviation, 1);
    assert.equal(running.mean, 0.1);
  });

  it("go on from a state that was kept", () => {
    const [whole, first, second] = [1, 2, 3].map(() => new RunningStatistics()) as [
      RunningStatistics,
      RunningStatistics,
      RunningStatistics,
    ];
    whole.add([3, 1, 4, 1, 5]);
    first.add([3, 1]);
    second.state = JSON.parse(JSON.stringify(first.state));
    second.add([4, 1, 5]);
    assert.deepEqual(second.state, whole.state);
  });
});

describe("shaped scores", () => {
  it("are the source's own by default", () => {
    assert.deepEqual(shape({}), [1, 3, 8]);
  });

  it("are shifted, divided, then clipped", () => {
    const running = new RunningStatistics();
    running.add(RAW);
    const deviation = Math.sqrt(13);
    assertAllNear(shape({}, running), [-3 / deviation, -1 / deviation, 4 / deviation], 1e-6);
    assertAllNear(shape({ rewardClip: 0.5 }, running), [-0.5, -1 / deviation, 0.5], 1e-6);
  });

  it("pay for length over a start, and for a missing end, after the clip", () => {
    assertAllNear(shape({ lengthPenalty: 0.1 }), [1 - 0.5, 3 - 0.3, 8 - 0.1], 1e-6);
    assertAllNear(shape({ lengthPenalty: 0.1, lengthPenaltyStart: 3 }), [1 - 0.2, 3, 8], 1e-6);
    const both = { rewardClip: 2, lengthPenalty: 0.5, lengthPenaltyStart: 2, missingEosPenalty: 1 };
    assertAllNear(shape(both), [1 - 1.5, 2 - 0.5 - 1, 2], 1e-6);
  });

  it("gain by diversity, and say how diverse answers are", () => {
    // Bigrams 12 21 12 21, 12 23, and none.
    assertAllNear(shape({ diversityBonus: 2 }), [1 + 1, 3 + 2, 8], 1e-6);
    assertAllNear(shape({ diversityBonus: 2, diversityNgram: 1 }), [1 + 0.8, 3 + 2, 8 + 2], 1e-6);
    assertAllNear(shape({ diversityBonus: 2, diversityMeasure: "overlap" }), [1 + 1, 3 + 1, 8], 1e-6);
    const { diversity } = shapeScores(RAW, ROLLOUTS, { ...PPO_DEFAULTS, diversityBonus: 2 }, null);
    assert.deepEqual(diversity, Float32Array.of(0.5, 1, 0));
    assert.equal(shapeScores(RAW, ROLLOUTS, PPO_DEFAULTS, null).diversity, null);
  });
});

describe("diversity of answers", () => {
  it("distinct-n is the share of different n-grams", () => {
    assert.equal(distinctShare(Int32Array.of(1, 1, 1, 1), 1), 0.25);
    assert.equal(distinctShare(Int32Array.of(1, 1, 1, 1), 4), 1);
    assert.equal(distinctShare(Int32Array.of(1, 1, 1, 1), 5), 0);
    assert.equal(distinctShare(Int32Array.of(1, 11, 11, 1), 2), 1, "ids are told apart");
  });

  it("the largest overlap is with the nearest other answer, not with all of them or with itself", () => {
    const responses = [
      [1, 2, 3, 4, 5],
      [1, 2, 3, 9, 8],
      [4, 5, 6],
      [20, 21],
    ].map((tokens) => Int32Array.from(tokens));
    assert.deepEqual(largestOverlap(responses, 2), Float32Array.of(0.5, 0.5, 0.5, 0));
    assert.deepEqual(
      largestOverlap([...responses, Int32Array.of(20, 21)], 2).slice(3),
      Float32Array.of(1, 1),
    );
    assert.deepEqual(largestOverlap([Int32Array.of(1, 2, 3)], 2), Float32Array.of(0));
  });
});
