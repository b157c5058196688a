import assert from "node:assert/strict";
import { happyWords, STARTS } from "../../examples/happy-words/task.ts";
import { CausalLM, type PPOConfig, PPOTrainer, Tokenizer } from "../../lib/index.ts";
import { needsShared } from "../data/support.ts";

const ROLLOUTS = 64;
const ITERATIONS = 12;

const VARIANTS: [string, PPOConfig][] = [
  ["full training with a separate value model", { learningRate: 2e-4, valueModel: "separate" }],
  [
    "LoRA with a shared value head",
    { learningRate: 2e-3, lora: { r: 16, alpha: 16, targetModules: "all-linear" }, valueModel: "shared" },
  ],
];

describe("PPO on a pretrained model", function () {
  this.timeout(300_000);

  it("the reward is the one that the published figures are for", () => {
    // Lily had a good friend They re: 2 of 7.
    assert.equal(happyWords("Lily", " had a good friend. They're"), (10 * 2) / 7);
    assert.equal(happyWords("", "…"), 0);
  });

  for (const [what, config] of VARIANTS) {
    it(`${what}: ${ITERATIONS} iterations raise the reward at a bounded KL`, async function () {
      const path = needsShared(this, "models/stories260k");
      const tokenizer = await Tokenizer.load(path);
      using model = await CausalLM.load(path, { device: "cpu", trainable: config.lora ? "none" : "all" });
      using trainer = new PPOTrainer({
        model,
        tokenizer,
        reward: happyWords,
        prompts: STARTS.flatMap((start) => new Array<string>(ROLLOUTS).fill(start)),
        config: {
          numIterations: ITERATIONS,
          batchSize: ROLLOUTS,
          shufflePrompts: false,
          maxNewTokens: 32,
          minNewTokens: 32,
          stop: [],
          numMinibatches: 2,
          klCoefficient: 0.1,
          targetKl: null,
          valueHead: "linear",
          ...config,
        },
      });
      const rewards: number[] = [];
      let kl = 0;
      for await (const { metrics } of trainer.steps()) {
        rewards.push(metrics["objective/scores"] as number);
        kl = metrics["objective/kl"] as number;
      }
      const mean = (values: number[]): number =>
        values.reduce((sum, value) => sum + value, 0) / values.length;
      const [before, after] = [mean(rewards.slice(0, 3)), mean(rewards.slice(-3))];
      console.log(`      reward ${before.toFixed(2)} → ${after.toFixed(2)} at KL ${kl.toFixed(1)}`);
      assert.ok(after > 1.5 * before, `${rewards}`);
      assert.ok(kl > 0 && kl < 25, `KL ${kl}`);
    });
  }
});
