import assert from "node:assert/strict";
import {
  type PPOConfig,
  PPOTrainer,
  type RewardConfig,
  RewardModel,
  RewardModelTrainer,
  type SFTConfig,
  SFTTrainer,
} from "../../lib/index.ts";
import { preferenceRows, prompts, sftRows, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();

describe("settings in code", () => {
  it("that no trainer has, or with values it does not take, are refused with what was meant", async () => {
    using model = await tinyModel(tokenizer);
    const sft = (config: object) =>
      new SFTTrainer({ model, tokenizer, trainData: sftRows, config: config as SFTConfig });
    const reward = (config: object) =>
      new RewardModelTrainer({
        model,
        tokenizer,
        trainData: preferenceRows,
        config: config as RewardConfig,
      });
    const ppo = (config: object) =>
      new PPOTrainer({ model, tokenizer, reward: () => 0, prompts, config: config as PPOConfig });
    const cases: [(config: object) => unknown, object, RegExp][] = [
      [sft, { learning_rate: 1 }, /unknown setting "learning_rate" \(did you mean "learningRate"\?\)/],
      [sft, { schedule: "lineer" }, /config\.schedule must be one of "constant", "linear", "cosine"/],
      [sft, { overlong: "Drop" }, /config\.overlong/],
      [sft, { batchSize: null }, /config\.batchSize must be a positive integer, got null/],
      [sft, { betas: [0.9, 1] }, /config\.betas/],
      [sft, { lora: { rank: 4 } }, /config\.lora: unknown setting "rank"/],
      [sft, { lora: { r: 0 } }, /config\.lora\.r must be a positive integer/],
      [reward, { head: "MLP" }, /config\.head/],
      [ppo, { maxSteps: 3 }, /unknown setting "maxSteps"/],
      [ppo, { klEstimator: "k4" }, /config\.klEstimator must be one of "k1", "k2", "k3"/],
      [ppo, { valueModel: "seperate" }, /config\.valueModel/],
      [ppo, { whitenRewards: "no" }, /config\.whitenRewards must be true or false/],
      [ppo, { stop: ["x"] }, /config\.stop must be a list/],
      [ppo, { topP: 0 }, /config\.topP must be a number over 0, at most 1/],
    ];
    for (const [make, config, message] of cases)
      assert.throws(() => make(config), { code: "ERR_RLHF_ARGUMENT", message }, JSON.stringify(config));
  });

  it("that do not fit the model's context are refused before training", async () => {
    using model = await tinyModel(tokenizer);
    const refused = { code: "ERR_RLHF_ARGUMENT" };
    const sft = (maxLength: number) =>
      new SFTTrainer({ model, tokenizer, trainData: sftRows, config: { maxLength } });
    assert.throws(() => sft(65), { ...refused, message: /maxLength \(65\) is over the 64 tokens/ });
    sft(64).dispose();
    const ppo = (config: PPOConfig) => new PPOTrainer({ model, tokenizer, reward: () => 0, prompts, config });
    assert.throws(() => ppo({ maxNewTokens: 63 }), { ...refused, message: /leaves no room for a prompt/ });
    assert.throws(() => ppo({ maxNewTokens: 10, maxLength: 55 }), {
      ...refused,
      message: /maxLength \(55\) is over the 54 tokens that maxNewTokens \(10\) leaves/,
    });
    ppo({ maxNewTokens: 10, maxLength: 54 }).dispose();
  });

  it("that are refused leave the model without the adapter they ask for", async () => {
    using model = await tinyModel(tokenizer, "none");
    const make = (trainData: typeof sftRows) =>
      new SFTTrainer({ model, tokenizer, trainData, config: { lora: { r: 4 } } });
    assert.throws(() => make([]), { code: "ERR_RLHF_DATA", message: /no row was given/ });
    assert.equal(model.adapters.size, 0);
    make(sftRows).dispose();
    assert.equal(model.adapters.size, 1);
  });

  it("a trained reward model can be trained further through a new adapter", async () => {
    using model = await tinyModel(tokenizer, "none");
    const rewardModel = RewardModel.create(model);
    using trainer = new RewardModelTrainer({
      model: rewardModel,
      tokenizer,
      trainData: preferenceRows,
      config: { learningRate: 1e-2, maxSteps: 3, lora: { r: 4 } },
    });
    for await (const _ of trainer.steps());
    assert.equal(trainer.rewardModel.adapter, "default");
    assert.ok((await trainer.rewardModel.score([Int32Array.of(5, 6, 7)]))[0] !== 0);
  });

  it("rows in code without the texts they need are an error that names the row", async () => {
    using model = await tinyModel(tokenizer);
    const make = (row: object) =>
      new SFTTrainer({ model, tokenizer, trainData: [...sftRows.slice(0, 2), row as (typeof sftRows)[0]] });
    assert.throws(() => make({ prompt: "x", completion: "y" }), {
      code: "ERR_RLHF_DATA",
      message: /row 2: "response" must be a string or a list of messages, got undefined/,
    });
  });
});
