import assert from "node:assert/strict";
import {
  type ActionDistribution,
  Categorical,
  DiagonalGaussian,
} from "../../lib/environment/distribution.ts";
import { RunningStatistics } from "../../lib/environment/running-statistics.ts";
import { computeEnvironmentAdvantages } from "../../lib/environment/updates.ts";
import { Engine, Random } from "../../lib/index.ts";

const ROWS = 4;
const STEP = 2 ** -7;

function normals(count: number, stream: string): Float32Array {
  const random = new Random(3, stream);
  return Float32Array.from({ length: count }, () => random.normal());
}

/** The gradients of Σ dLogProb·logProb + dEntropy·entropy against central differences; statistics are float32. */
function checkGradients(
  distribution: ActionDistribution,
  width: number,
  actions: Float32Array,
  logStd: Float32Array,
) {
  const outputs = normals(ROWS * width, "outputs");
  const [dLogProb, dEntropy] = [normals(ROWS, "dLogProb"), normals(ROWS, "dEntropy")];
  const objective = (): number => {
    const { logProb, entropy } = distribution.statistics(outputs, actions, logStd);
    return logProb.reduce(
      (sum, value, i) =>
        sum + value * (dLogProb[i] as number) + (entropy[i] as number) * (dEntropy[i] as number),
      0,
    );
  };
  const slopes = (values: Float32Array): Float32Array =>
    values.map((value, i) => {
      values[i] = value + STEP;
      const above = objective();
      values[i] = value - STEP;
      const below = objective();
      values[i] = value;
      return (above - below) / (2 * STEP);
    });
  const { dOutputs, dLogStd } = distribution.gradients(outputs, actions, logStd, dLogProb, dEntropy);
  for (const [found, expected] of [
    [dOutputs, slopes(outputs)],
    [dLogStd, slopes(logStd)],
  ] as const) {
    assert.equal(found.length, expected.length);
    found.forEach((value, i) => {
      const numerical = expected[i] as number;
      assert.ok(
        Math.abs(value - numerical) < 2e-3 * (1 + Math.abs(numerical)),
        `${i}: ${value}, ${numerical}`,
      );
    });
    if (found.length > 0) assert.ok(found.some((value) => Math.abs(value) > 0.05));
  }
}

describe("PPO on environments: the parts", () => {
  it("differentiates discrete actions", () => {
    checkGradients(new Categorical(3), 3, Float32Array.of(0, 2, 1, 2), new Float32Array(0));
  });

  it("differentiates continuous actions", () => {
    checkGradients(new DiagonalGaussian(2), 2, normals(ROWS * 2, "actions"), Float32Array.of(-0.3, 0.4));
  });

  it("samples actions as often as their probabilities say", () => {
    const random = new Random(0, "sampling");
    const logits = Float32Array.of(0, Math.log(2), Math.log(5));
    const counts = [0, 0, 0];
    for (let i = 0; i < 4000; i++) {
      const [action] = new Categorical(3).sample(logits, 0, new Float32Array(0), random);
      counts[action as number] = (counts[action as number] as number) + 1;
    }
    counts.forEach((count, i) => {
      assert.ok(Math.abs(count / 4000 - ([1, 2, 5][i] as number) / 8) < 0.03, `${counts}`);
    });
  });

  it("keeps mean and deviation of all values", () => {
    const statistics = new RunningStatistics(1);
    const values = [3, -1, 4, 1, -5];
    for (const value of values) statistics.add([value]);
    const restored = RunningStatistics.restore(JSON.parse(JSON.stringify(statistics.state())));
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - 0.4) ** 2, 0) / 5);
    for (const each of [statistics, restored]) {
      assert.ok(Math.abs(each.deviation(0) - deviation) < 1e-6);
      assert.ok(Math.abs((each.normalise([7], 10)[0] as number) - 6.6 / deviation) < 1e-5);
      assert.equal(each.normalise([1e9], 10)[0], 10);
    }
    for (const each of [statistics, restored]) each.holdMean();
    const held = RunningStatistics.restore(JSON.parse(JSON.stringify(statistics.state())));
    const all = [...values, 100];
    const distance = Math.sqrt(all.reduce((sum, value) => sum + (value - 0.4) ** 2, 0) / 6);
    for (const each of [statistics, restored, held]) {
      each.add([100]);
      assert.ok(Math.abs(each.deviation(0) - distance) < 1e-6);
      assert.ok(Math.abs((each.normalise([7], 10)[0] as number) - 6.6 / distance) < 1e-5);
    }
  });

  it("bootstraps where an episode was cut off, and not where it terminated", async () => {
    const [gamma, lambda] = [0.9, 0.8];
    const reward = Float32Array.of(1, 2, 3, 4, 5);
    const value = Float32Array.of(0.5, -1, 2, 0.25, 1);
    const segments = [
      { start: 0, length: 2, bootstrap: 7 },
      { start: 2, length: 3, bootstrap: 0 },
    ];
    const { advantage, returns } = await computeEnvironmentAdvantages(
      Engine.shared(),
      { reward, value, segments },
      { gamma, lambda, whitenAdvantages: false },
    );
    for (const { start, length, bootstrap } of segments) {
      let [next, later] = [bootstrap, 0];
      for (let t = start + length - 1; t >= start; t--) {
        later = (reward[t] as number) + gamma * next - (value[t] as number) + gamma * lambda * later;
        next = value[t] as number;
        assert.ok(Math.abs((advantage[t] as number) - later) < 1e-5, `advantage ${t}`);
        assert.ok(Math.abs((returns[t] as number) - later - next) < 1e-5, `return ${t}`);
      }
    }
  });
});
