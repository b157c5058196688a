import assert from "node:assert/strict";
import { EnvironmentPPOTrainer } from "../../lib/index.ts";
import { CartPole, Pendulum } from "../environment/tasks.ts";

/** The mean return of 100 episodes before and after training. */
async function returns(trainer: EnvironmentPPOTrainer): Promise<[before: number, after: number]> {
  const mean = async (): Promise<number> => (await trainer.evaluate())["eval/return"] as number;
  const before = await mean();
  for await (const _ of trainer.steps());
  return [before, await mean()];
}

describe("PPO on control tasks", () => {
  for (const normalizeObservations of [true, false]) {
    const how = normalizeObservations ? "normalised" : "as they are";
    it(`balances CartPole for 475 of 500 steps, observations ${how}`, async () => {
      const config = {
        numIterations: 40,
        learningRate: 1e-3,
        evalEpisodes: 100,
        normalizeObservations,
        seed: 1,
      };
      const trainer = new EnvironmentPPOTrainer({ environment: () => new CartPole(), config });
      const [before, after] = await returns(trainer);
      assert.ok(before < 200, `before: ${before}`);
      assert.ok(after >= 475, `after: ${after}`);
    });
  }

  it("swings Pendulum up and holds it", async () => {
    const config = { numIterations: 60, learningRate: 1e-3, gamma: 0.95, evalEpisodes: 100, seed: 0 };
    const trainer = new EnvironmentPPOTrainer({ environment: () => new Pendulum(), config });
    const [before, after] = await returns(trainer);
    assert.ok(before < -1000, `before: ${before}`);
    // Hanging down costs some 10 a step: 250 is a swing from below, and upright from there on.
    assert.ok(after >= -250, `after: ${after}`);
  });
});
