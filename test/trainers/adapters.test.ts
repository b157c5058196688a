import assert from "node:assert/strict";
import {
  type CausalLM,
  DPOTrainer,
  KTOTrainer,
  PPOTrainer,
  packSequences,
  Random,
  RewardModelTrainer,
  type SFTConfig,
  SFTTrainer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import {
  assertSameWeights,
  preferenceRows,
  prompts,
  sftRows,
  tinyModel,
  tinyTokenizer,
  weightDistance,
} from "./support.ts";

const tokenizer = tinyTokenizer();
const LORA = { r: 4, alpha: 8, targetModules: "all-linear", dropout: 0.2 } as const;
const CONFIG: SFTConfig = { learningRate: 1e-2, batchSize: 10, numEpochs: 2, seed: 3, lora: LORA };

async function trained(config: SFTConfig = {}, outputDir?: string, steps = 4): Promise<CausalLM> {
  const model = await tinyModel(tokenizer, "none");
  using trainer = new SFTTrainer({
    model,
    tokenizer,
    trainData: sftRows,
    config: { ...CONFIG, ...config },
    ...(outputDir === undefined ? {} : { outputDir }),
  });
  for await (const { step } of trainer.steps()) if (step === steps) break;
  return model;
}

/** Gives an adapter's B random values, as if it had been trained. */
async function pretend(model: CausalLM, adapter: string): Promise<void> {
  for (const { name, shape } of model.parameters()) {
    if (!name.startsWith(`${adapter}:`) || !name.endsWith("lora_B")) continue;
    const random = new Random(5, name);
    const values = Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.1 * random.normal());
    await model.writeParameter(name, values);
  }
}

describe("training with dropout", () => {
  it("is the same from run to run, differs by the seed alone, and does not depend on the micro-batches", async () => {
    using model = await trained();
    using again = await trained();
    await assertSameWeights(again, model);
    using cut = await trained({ microBatchTokens: 40 });
    assert.ok((await weightDistance(cut, model)) < 1e-4, `${await weightDistance(cut, model)}`);
    using without = await trained({ lora: { ...LORA, dropout: 0 } });
    assert.ok((await weightDistance(without, model)) > 1e-2);
  });

  it("goes on from a checkpoint to the same bits", async () => {
    await withTemporaryDirectory(async (directory) => {
      using whole = await trained();
      (await trained({ saveSteps: 2 }, directory, 2)).dispose();
      using resumed = await trained({ saveSteps: 2 }, directory);
      await assertSameWeights(resumed, whole);
    });
  });

  it("leaves it out of evaluation", async () => {
    using model = await tinyModel(tokenizer, "none");
    model.addAdapter("policy", LORA);
    await pretend(model, "policy");
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, evalData: sftRows.slice(0, 3) });
    let sum = 0;
    let count = 0;
    for (const { tokens, promptLength } of trainer.evalExamples) {
      using pass = await model.forward(packSequences([{ tokens }]), { adapter: "policy" });
      const answer = (await pass.logProb()).subarray(promptLength);
      sum -= answer.reduce((total, value) => total + value, 0);
      count += answer.length;
    }
    const loss = (await trainer.evaluate())["eval/loss"] as number;
    assert.ok(Math.abs(loss - sum / count) < 1e-5, `${loss} ${sum / count}`);
  });

  it("is refused by trainers that compare log-probs, and used by reward models", async () => {
    using model = await tinyModel(tokenizer, "none");
    const ppo = { model, tokenizer, prompts, reward: () => 0 };
    assert.throws(() => new PPOTrainer({ ...ppo, config: { lora: LORA } }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /config\.lora\.dropout/,
    });
    const dpo = { model, tokenizer, trainData: preferenceRows, config: { lora: LORA } };
    assert.throws(() => new DPOTrainer(dpo), { code: "ERR_RLHF_ARGUMENT", message: /config\.lora\.dropout/ });
    const trainData = [{ prompt: "Ann wants", completion: " tea.", label: true }];
    const kto = { model, tokenizer, trainData, config: { lora: LORA } };
    assert.throws(() => new KTOTrainer(kto), { code: "ERR_RLHF_ARGUMENT", message: /config\.lora\.dropout/ });
    assert.equal(model.adapters.size, 0);
    const losses: number[] = [];
    for (const dropout of [0, 0.5]) {
      using judge = await tinyModel(tokenizer, "none");
      using trainer = new RewardModelTrainer({
        model: judge,
        tokenizer,
        trainData: preferenceRows,
        config: { learningRate: 1e-2, lora: { ...LORA, dropout }, maxSteps: 4, seed: 1 },
      });
      for await (const { metrics } of trainer.steps())
        if (trainer.step === 4) losses.push(metrics.loss as number);
    }
    assert.ok(losses.every(Number.isFinite) && losses[0] !== losses[1], `${losses}`);
  });
});

describe("which adapter is trained", () => {
  it("is the one with gradients; frozen ones are others' references", async () => {
    using model = await tinyModel(tokenizer, "none");
    model.addAdapter("start", { r: 2, alpha: 2 });
    await model.copyAdapter("start", "reference", { trainable: false });
    using trainer = new SFTTrainer({
      model,
      tokenizer,
      trainData: sftRows,
      config: { maxSteps: 1, learningRate: 1e-2 },
    });
    const before = await model.readParameter("reference:model.layers.0.self_attn.q_proj.lora_B");
    await trainer.trainStep();
    assert.ok(
      (await model.readParameter("start:model.layers.0.self_attn.q_proj.lora_B")).some(
        (value) => value !== 0,
      ),
    );
    assert.deepEqual(await model.readParameter("reference:model.layers.0.self_attn.q_proj.lora_B"), before);
    const frozen = { model, tokenizer, trainData: sftRows, config: { adapter: "reference" } };
    assert.throws(() => new SFTTrainer(frozen), {
      code: "ERR_RLHF_ARGUMENT",
      message: /frozen; train a copy/,
    });
  });

  it("has the ranks and layers that config.lora gives it", async () => {
    using model = await tinyModel(tokenizer, "none");
    const lora = { r: 2, useRslora: true, layersToTransform: [1], rankPattern: { q_proj: 3 } };
    using _trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: { lora } });
    const { layers } = model.adapters.get("default")!;
    assert.deepEqual(
      [...layers.keys()].filter((module) => !module.startsWith("model.layers.1.self_attn")),
      [],
    );
    assert.deepEqual(layers.get("model.layers.1.self_attn.q_proj"), { rank: 3, scale: 32 / Math.sqrt(3) });
    assert.deepEqual(layers.get("model.layers.1.self_attn.v_proj"), { rank: 2, scale: 32 / Math.sqrt(2) });
  });

  it("that training goes on from has its start as PPO's reference, frozen, while it trains", async () => {
    using model = await tinyModel(tokenizer, "none");
    model.addAdapter("policy", { ...LORA, dropout: 0.1 });
    await pretend(model, "policy");
    await model.copyAdapter("policy", "before", { trainable: false });
    const config = { numIterations: 2, batchSize: 4, maxNewTokens: 4, learningRate: 1e-2, targetKl: null };
    const trainer = new PPOTrainer({
      model,
      tokenizer,
      prompts,
      reward: (_, answer) => answer.length,
      config,
    });
    const kls: number[] = [];
    for await (const { metrics } of trainer.steps()) kls.push(metrics["objective/kl"] as number);
    assert.equal(kls[0], 0);
    assert.notEqual(kls[1], 0);
    for (const { name } of model.parameters().filter(({ group }) => group === "adapter:reference"))
      assert.deepEqual(
        await model.readParameter(name),
        await model.readParameter(name.replace("reference", "before")),
      );
    assert.equal(model.adapters.get("reference")?.trainable, false);
    trainer.dispose();
    assert.deepEqual([...model.adapters.keys()], ["policy", "before"]);
  });
});
