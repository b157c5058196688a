import assert from "node:assert/strict";
import { Engine } from "../../lib/engine/engine.ts";
import {
  type CausalLM,
  type PPOConfig,
  PPOTrainer,
  type RewardFunction,
  type Rollout,
} from "../../lib/index.ts";
import { estimateAdvantages } from "../../lib/trainers/experience.ts";
import { RolloutBatch } from "../../lib/trainers/rollouts.ts";
import { assertResumes, prompts, tinyModel, tinyTokenizer, weightDistance } from "./support.ts";

const SETTINGS = {
  klEstimator: "k1",
  gamma: 1,
  lambda: 0.95,
  whitenRewards: false,
  whitenAdvantages: false,
} as const;

const rollout = (tokens: number, promptLength: number, ended: boolean): Rollout => ({
  tokens: new Int32Array(tokens).fill(3),
  promptLength,
  row: { prompt: "" },
  response: "",
  finishReason: ended ? "stop" : "length",
});

/** Two answers of three tokens with the same numbers, one that ended itself and one that was cut off; behind each its last value, 0.25. */
const TWO_ANSWERS = {
  batch: new RolloutBatch([rollout(4, 1, true), rollout(5, 2, false)]),
  scores: Float32Array.of(1, 1),
  logProb: Float32Array.of(0, -1, -2, -0.5, 0, 0, -1, -2, -0.5),
  refLogProb: Float32Array.of(0, -1.2, -1.5, -0.5, 0, 0, -1.2, -1.5, -0.5),
  divergence: null,
  value: Float32Array.of(0.1, 0.2, 0.3, 0.25, 9, 0.1, 0.2, 0.3, 0.25),
};

function assertRounded(actual: Float32Array | null, expected: readonly number[], what: string): void {
  assert.equal(actual?.length, expected.length, what);
  expected.forEach((value, i) => {
    assert.ok(Math.abs(actual![i]! - value) < 2e-6, `${what}[${i}]: ${actual![i]}, expected ${value}`);
  });
}

describe("where the score is given", () => {
  const engine = Engine.shared({ device: "cpu" });

  it("at the last token: advantages .8405, .79, .7", async () => {
    const estimated = await estimateAdvantages(engine, TWO_ANSWERS, 0.05, SETTINGS);
    assert.equal(estimated.endReturns, null);
    const [advantage, returns] = [
      [0.8405, 0.79, 0.7],
      [0.9405, 0.99, 1],
    ];
    assertRounded(estimated.advantage, [0, ...advantage!, 0, 0, ...advantage!], "advantage");
    assertRounded(estimated.returns, [0, ...returns!, 0, 0, ...returns!], "return");
  });

  it("after the end: advantages .806656, .754375, .6625, and .75 at the place after it; a cut answer has no such place", async () => {
    const settings = { ...SETTINGS, rewardPlacement: "after-end" } as const;
    const { advantage, returns, endReturns, reward, kl } = await estimateAdvantages(
      engine,
      TWO_ANSWERS,
      0.05,
      settings,
    );
    assertRounded(advantage, [0, 0.80665625, 0.754375, 0.6625, 0, 0, 0.8405, 0.79, 0.7], "advantage");
    assertRounded(returns, [0, 0.90665625, 0.954375, 0.9625, 0, 0, 0.9405, 0.99, 1], "return");
    // .75 is that place's advantage: its return less its value, .25.
    assertRounded(endReturns, [1, 0], "return after the end");
    assertRounded(reward, [0, -0.01, 0.025, 0, 0, 0, -0.01, 0.025, 1], "reward");
    assert.ok(Math.abs(kl - (0.2 - 0.5)) < 1e-6);
  });

  it("with γ and λ 1 both give the same advantages, but for what the last value adds to the return", async () => {
    const settings = { ...SETTINGS, lambda: 1, whitenAdvantages: true };
    const placed = { ...settings, rewardPlacement: "after-end" } as const;
    const [last, after] = [
      await estimateAdvantages(engine, TWO_ANSWERS, 0.05, settings),
      await estimateAdvantages(engine, TWO_ANSWERS, 0.05, placed),
    ];
    assertRounded(after.advantage, Array.from(last.advantage), "advantage");
  });

  it("rewards are whitened over the places after ends too", async () => {
    const settings = { ...SETTINGS, whitenRewards: true, rewardPlacement: "after-end" } as const;
    const { reward, endReturns } = await estimateAdvantages(engine, TWO_ANSWERS, 0.05, settings);
    const rewards = [-0.01, 0.025, 0, 1, -0.01, 0.025, 1];
    const mean = rewards.reduce((a, b) => a + b) / 7;
    const variance = rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / 6;
    const whitened = rewards.map((r) => (r - mean) / Math.sqrt(variance) + mean);
    assertRounded(endReturns, [whitened[3]!, 0], "return after the end");
    assertRounded(reward.subarray(1, 4), whitened.slice(0, 3), "reward");
  });
});

describe("PPO with the score after the end", () => {
  const tokenizer = tinyTokenizer();
  const reward: RewardFunction = (_prompt, response) => (response.match(/[aeiou]/g) ?? []).length / 3;
  const CONFIG = {
    batchSize: 8,
    maxNewTokens: 7,
    learningRate: 3e-3,
    numPpoEpochs: 2,
    numMinibatches: 2,
    numIterations: 3,
    targetKl: null,
    seed: 5,
    rewardPlacement: "after-end",
    // Most of the tiny vocabulary ends an answer, so that some end themselves and some are cut.
    stop: Array.from({ length: 60 }, (_, i) => i),
  } as const;
  const make = (model: CausalLM, config: PPOConfig = {}, outputDir?: string): PPOTrainer =>
    new PPOTrainer({
      model,
      tokenizer,
      reward,
      prompts,
      config: { ...CONFIG, ...config },
      ...(outputDir ? { outputDir } : {}),
    });

  it("the value loss is the mean over tokens and places after ends, with a gradient at the answer's last value", async () => {
    for (const valueModel of ["shared", "separate"] as const) {
      using model = await tinyModel(tokenizer);
      using trainer = make(model, { numMinibatches: 1, numPpoEpochs: 1, valueClipRange: null, valueModel });
      const rollouts = await trainer.generateResponses();
      const ended = rollouts.filter(({ finishReason }) => finishReason === "stop").length;
      assert.ok(
        ended > 0 && ended < rollouts.length,
        `${ended} of ${rollouts.length} answers ended themselves`,
      );
      const experience = await trainer.computeRewardsAndValues(rollouts);
      const { batch, value, returns, endReturns, scores } = experience;
      const { mask, offsets } = batch.packed;
      const errors = Array.from(mask, (selected, t) =>
        selected === 1 ? (value[t - 1]! - returns[t]!) ** 2 : 0,
      );
      rollouts.forEach(({ finishReason }, s) => {
        if (finishReason !== "stop") return;
        assert.ok(Math.abs(endReturns![s]! - scores[s]!) < 1e-5, "the value after the end learns the score");
        errors.push((value[offsets[s + 1]! - 1]! - endReturns![s]!) ** 2);
      });
      const places = batch.responseTokens() + ended;
      const expected = errors.reduce((a, b) => a + b, 0) / (2 * places);
      const { minibatches } = await trainer.ppoStep(experience);
      assert.ok(Math.abs(minibatches[0]!.valueLoss - expected) < 1e-5 * expected, valueModel);
      assert.equal(minibatches[0]!.ratioSquared, 1);
    }
  });

  it("takes no other place", async () => {
    using model = await tinyModel(tokenizer);
    assert.throws(() => make(model, { rewardPlacement: "eos" } as never), {
      code: "ERR_RLHF_ARGUMENT",
      message: /config\.rewardPlacement must be one of "last-token", "after-end"/,
    });
  });

  it("resumes to the same bits", async () => {
    await assertResumes(async (outputDir) => {
      const model = await tinyModel(tokenizer);
      return { model, trainer: make(model, {}, outputDir) };
    });
  });

  it("differs from the score at the last token, and is cut into micro-batches at will", async () => {
    const run = async (config: PPOConfig): Promise<CausalLM> => {
      const model = await tinyModel(tokenizer);
      using trainer = make(model, config);
      for await (const _ of trainer.steps());
      return model;
    };
    using whole = await run({});
    using last = await run({ rewardPlacement: "last-token" });
    assert.ok((await weightDistance(last, whole)) > 1e-4);
    using once = await run({ numIterations: 1 });
    using parts = await run({ numIterations: 1, microBatchTokens: 20 });
    assert.ok((await weightDistance(parts, once)) < 1e-4);
  });
});
