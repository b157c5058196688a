import assert from "node:assert/strict";
import { EnvironmentPPOTrainer } from "../../lib/index.ts";
import { CartPole } from "../environment/tasks.ts";

describe("PPO on CartPole", () => {
  it("balances 475 of 500 steps, the mean of 100 episodes", async () => {
    const trainer = new EnvironmentPPOTrainer({
      environment: () => new CartPole(),
      config: {
        numIterations: 40,
        learningRate: 1e-3,
        normalizeObservations: false,
        evalEpisodes: 100,
        seed: 0,
      },
    });
    const before = await trainer.evaluate();
    for await (const _ of trainer.steps());
    const after = await trainer.evaluate();
    assert.ok((before["eval/return"] as number) < 200, `before: ${before["eval/return"]}`);
    assert.ok((after["eval/return"] as number) >= 475, `after: ${after["eval/return"]}`);
  });
});
