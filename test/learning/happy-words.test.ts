import assert from "node:assert/strict";
import { happyWords, STARTS } from "../../examples/happy-words/task.ts";
import {
  CausalLM,
  GRPOTrainer,
  type PPOConfig,
  PPOTrainer,
  ReinforcePlusPlusTrainer,
  RLOOTrainer,
  Tokenizer,
} from "../../lib/index.ts";
import { itWithShared, sharedFile } from "../data/support.ts";
import { testDevice } from "../support/tiny.ts";

const ROLLOUTS = 64;
const ITERATIONS = 12;

type AnyTrainer = PPOTrainer | GRPOTrainer | RLOOTrainer | ReinforcePlusPlusTrainer;

const COMMON = {
  numIterations: ITERATIONS,
  batchSize: ROLLOUTS,
  maxNewTokens: 32,
  minNewTokens: 32,
  stop: [],
  numMinibatches: 2,
  klCoefficient: 0.1,
  learningRate: 2e-4,
};
const LORA = { r: 16, alpha: 16, targetModules: "all-linear" } as const;

function ppo(model: CausalLM, tokenizer: Tokenizer, config: PPOConfig): PPOTrainer {
  return new PPOTrainer({
    model,
    tokenizer,
    reward: happyWords,
    prompts: STARTS.flatMap((start) => new Array<string>(ROLLOUTS).fill(start)),
    config: { ...COMMON, shufflePrompts: false, targetKl: null, valueHead: "linear", ...config },
  });
}

const given = (model: CausalLM, tokenizer: Tokenizer) => ({
  model,
  tokenizer,
  reward: happyWords,
  prompts: STARTS,
});
const GROUPS = { ...COMMON, updateEpochs: 2, groupSize: 16 };

const VARIANTS: [string, "all" | "none", (model: CausalLM, tokenizer: Tokenizer) => AnyTrainer][] = [
  [
    "PPO, full training with a separate value model",
    "all",
    (model, tokenizer) => ppo(model, tokenizer, { valueModel: "separate" }),
  ],
  [
    "PPO, LoRA with a shared value head",
    "none",
    (model, tokenizer) => ppo(model, tokenizer, { learningRate: 2e-3, lora: LORA, valueModel: "shared" }),
  ],
  [
    "GRPO",
    "all",
    (...to) => new GRPOTrainer({ ...given(...to), config: { ...GROUPS, klCoefficient: 0.19 } }),
  ],
  ["RLOO", "all", (...to) => new RLOOTrainer({ ...given(...to), config: GROUPS })],
  [
    "REINFORCE++",
    "all",
    (...to) => new ReinforcePlusPlusTrainer({ ...given(...to), config: { ...GROUPS, groupSize: 1 } }),
  ],
];

describe("online training of a pretrained model", function () {
  this.timeout(300_000);

  it("the reward is the one that the published figures are for", () => {
    // Lily had a good friend They re: 2 of 7.
    assert.equal(happyWords("Lily", " had a good friend. They're"), (10 * 2) / 7);
    assert.equal(happyWords("", "…"), 0);
  });

  for (const [what, trainable, make] of VARIANTS) {
    itWithShared(`${what}: ${ITERATIONS} iterations raise the reward at a bounded KL`, async () => {
      const path = sharedFile("models/stories260k");
      const tokenizer = await Tokenizer.load(path);
      using model = await CausalLM.load(path, { device: testDevice, trainable });
      using trainer = make(model, tokenizer);
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
