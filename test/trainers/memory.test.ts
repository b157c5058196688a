import assert from "node:assert/strict";
import { MEMORY_USES } from "../../lib/engine/memory.ts";
import {
  CausalLM,
  DPOTrainer,
  Engine,
  GRPOTrainer,
  type LoadOptions,
  PPOTrainer,
  ReinforcePlusPlusTrainer,
  RewardModel,
  RewardModelTrainer,
  RLOOTrainer,
  SFTTrainer,
  type TrainingStep,
} from "../../lib/index.ts";
import { type ProgressReporter, silentProgress } from "../../lib/monitor/progress.ts";
import type { Trainer } from "../../lib/trainers/trainer.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { preferenceRows, prompts, sftRows, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
/** Engines are shared by number of threads: one that no other test uses has high-water marks that begin at zero. */
let threads = 64;

function makeModel(trainable: "all" | "none", options: LoadOptions = {}): Promise<CausalLM> {
  const config = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId };
  return CausalLM.create(config, { trainable, threads, ...options });
}

const LORA = { r: 4, targetModules: "all-linear" as const };
const CONFIG = { batchSize: 8, maxSteps: 2 };
const PPO = { numIterations: 1, batchSize: 6, maxNewTokens: 8, numMinibatches: 2, numPpoEpochs: 2 };
const GROUPS = { numIterations: 1, batchSize: 6, groupSize: 3, maxNewTokens: 8, numMinibatches: 2 };
const reward = (_prompt: string, response: string): number => response.length;

type Runnable = Trainer & { trainStep(): Promise<TrainingStep> };

/** Each makes a trainer on an engine of its own. */
const TRAINERS: Readonly<Record<string, () => Promise<Runnable>>> = {
  "SFT of all weights": async () =>
    new SFTTrainer({ model: await makeModel("all"), tokenizer, trainData: sftRows, config: CONFIG }),
  "SFT of an adapter, layers recomputed": async () =>
    new SFTTrainer({
      model: await makeModel("none"),
      tokenizer,
      trainData: sftRows,
      config: { ...CONFIG, lora: LORA, recomputeLayers: true, microBatchTokens: 64 },
    }),
  "SFT of an adapter with dropout": async () =>
    new SFTTrainer({
      model: await makeModel("none"),
      tokenizer,
      trainData: sftRows,
      config: { ...CONFIG, lora: { ...LORA, dropout: 0.1 } },
    }),
  "a reward model's adapter with dropout": async () =>
    new RewardModelTrainer({
      model: await makeModel("none"),
      tokenizer,
      trainData: preferenceRows,
      config: { ...CONFIG, lora: { ...LORA, dropout: 0.1 } },
    }),
  "a reward model": async () =>
    new RewardModelTrainer({
      model: await makeModel("all"),
      tokenizer,
      trainData: preferenceRows,
      config: CONFIG,
    }),
  "DPO of all weights": async () =>
    new DPOTrainer({ model: await makeModel("all"), tokenizer, trainData: preferenceRows, config: CONFIG }),
  "DPO of an adapter": async () =>
    new DPOTrainer({
      model: await makeModel("none"),
      tokenizer,
      trainData: preferenceRows,
      config: { ...CONFIG, lora: LORA },
    }),
  "PPO of all weights": async () =>
    new PPOTrainer({ model: await makeModel("all"), tokenizer, prompts, reward, config: PPO }),
  "PPO of an adapter, its value function an adapter too, with a reward model": async () => {
    const model = await makeModel("none");
    const judge = RewardModel.create(await makeModel("none"));
    const config = { ...PPO, lora: LORA, valueModel: "adapter" as const };
    return new PPOTrainer({ model, tokenizer, prompts, reward: judge, config });
  },
  "PPO of all weights with the score after the end": async () => {
    const config = { ...PPO, rewardPlacement: "after-end" as const };
    return new PPOTrainer({ model: await makeModel("all"), tokenizer, prompts, reward, config });
  },
  "GRPO of all weights without a reference": async () =>
    new GRPOTrainer({ model: await makeModel("all"), tokenizer, prompts, reward, config: GROUPS }),
  "RLOO of all weights with one": async () =>
    new RLOOTrainer({ model: await makeModel("all"), tokenizer, prompts, reward, config: GROUPS }),
  "PPO of all weights with divergences in reward and loss": async () => {
    const config = { ...PPO, klEstimator: "full" as const, klLossCoefficient: 0.1 };
    return new PPOTrainer({ model: await makeModel("all"), tokenizer, prompts, reward, config });
  },
  "GRPO of an adapter with a divergence in the loss": async () => {
    const config = { ...GROUPS, lora: LORA, klLossCoefficient: 0.1 };
    return new GRPOTrainer({ model: await makeModel("none"), tokenizer, prompts, reward, config });
  },
  "REINFORCE++ of an adapter": async () =>
    new ReinforcePlusPlusTrainer({
      model: await makeModel("none"),
      tokenizer,
      prompts,
      reward,
      config: { ...GROUPS, lora: LORA },
    }),
  "PPO of an adapter with a value model of its own": async () =>
    new PPOTrainer({
      model: await makeModel("none"),
      tokenizer,
      prompts,
      reward,
      config: { ...PPO, lora: LORA, valueModel: "separate" as const },
    }),
  "PPO of all weights in bfloat16 with a value model of its own": async () => {
    const model = await makeModel("all", { dtype: "bfloat16" });
    const config = { ...PPO, valueModel: "separate" as const };
    return new PPOTrainer({ model, tokenizer, prompts, reward, config });
  },
  "DPO of all weights in bfloat16 with a reference that follows them": async () => {
    const model = await makeModel("all", { dtype: "bfloat16" });
    const config = { ...CONFIG, syncRefModel: true, refModelSyncSteps: 1 };
    return new DPOTrainer({ model, tokenizer, trainData: preferenceRows, config });
  },
  "PPO of all weights with a value model that starts from a wider reward model": async () => {
    const model = await makeModel("all");
    const wide = {
      ...TINY_LLAMA,
      vocab_size: tokenizer.vocabSize,
      hidden_size: 2 * Number(TINY_LLAMA["hidden_size"]),
    };
    const judge = RewardModel.create(await CausalLM.create(wide, { trainable: "none", threads }));
    const config = { ...PPO, valueModel: "separate" as const, valueInit: "reward" as const };
    return new PPOTrainer({ model, tokenizer, prompts, reward: judge, config });
  },
};

describe("memory of trainers", () => {
  for (const [name, make] of Object.entries(TRAINERS)) {
    it(`is estimated before it is taken: ${name}`, async () => {
      threads++;
      using trainer = await make();
      const { bytes } = await trainer.estimateMemory();
      await trainer.trainStep();
      const { peak } = Engine.shared({ threads }).memory();
      for (const use of MEMORY_USES) {
        if (use === "arrays") continue;
        // What depends on the model is known to the byte; passes are as large as the data can make them, or smaller.
        const known = ["weights", "packedWeights", "gradients", "optimizer"].includes(use);
        const least = known ? bytes[use] : 0;
        assert.ok(
          peak[use] >= least && peak[use] <= bytes[use],
          `${use}: ${peak[use]}, the estimate is ${bytes[use]}`,
        );
      }
    });
  }

  it("is told once, before training", async () => {
    threads++;
    const notes: string[] = [];
    const progress: ProgressReporter = { update() {}, note: (text) => notes.push(text), finish() {} };
    const model = await makeModel("all");
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: CONFIG });
    await trainer.train({ progress });
    const about = notes.filter((note) => note.includes("memory"));
    assert.equal(about.length, 1);
    assert.match(about[0] ?? "", /^sft: memory .*: .*optimizer [\d.]+ KiB.*; the budget is [\d.]+ [GT]iB$/);
  });

  it("over the budget is an error before anything is taken, with the setting to lower", async () => {
    threads++;
    const model = await makeModel("all");
    const config = { ...CONFIG, memoryBudget: "200 kB" };
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config });
    const before = Engine.shared({ threads }).memory().held;
    await assert.rejects(trainer.train({ progress: silentProgress }), {
      code: "ERR_RLHF_MEMORY",
      message:
        /^sft training needs .*: .*optimizer .*; the budget is 195 KiB\. To need less, .*; memoryBudget/,
    });
    await assert.rejects(trainer.trainStep(), { code: "ERR_RLHF_MEMORY" });
    assert.deepEqual(Engine.shared({ threads }).memory().held, before);
    for (const wrong of ["lots", -1])
      assert.throws(
        () =>
          new SFTTrainer({
            model,
            tokenizer,
            trainData: sftRows,
            config: { ...CONFIG, memoryBudget: wrong },
          }),
        { code: "ERR_RLHF_ARGUMENT", message: /config\.memoryBudget must be a number of bytes or text/ },
      );
  });

  it("has frozen matrices packed once where the budget has no room for more, and the steps are the same", async () => {
    const run = async (missing: number) => {
      threads++;
      using model = await makeModel("none");
      const config = { ...CONFIG, lora: LORA };
      using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config });
      const whole = await trainer.estimateMemory();
      Engine.shared({ threads, memoryBudget: whole.total - missing });
      const notes: string[] = [];
      const progress: ProgressReporter = { update() {}, note: (text) => notes.push(text), finish() {} };
      const { bytes, total } = await trainer.estimateMemory();
      const { metrics } = await trainer.train({ progress });
      const { loss, gradNorm } = metrics;
      const packed = model.memory().packedWeights;
      assert.equal(packed, bytes.packedWeights);
      assert.equal(total < whole.total, missing > 0);
      return { packed, metrics: { loss, gradNorm }, told: notes.join("\n") };
    };
    const [free, bound] = [await run(-(2 ** 20)), await run(1)]; // results of losses come on top
    assert.ok(bound.packed < free.packed);
    assert.deepEqual(bound.metrics, free.metrics);
    assert.match(bound.told, /so frozen matrices are packed once/);
    assert.doesNotMatch(free.told, /packed once/);
  });

  it("is less with layers recomputed, and the steps are the same", async () => {
    const run = async (recomputeLayers: boolean): Promise<[number, unknown]> => {
      threads++;
      const model = await makeModel("all");
      const config = { ...CONFIG, recomputeLayers };
      using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config });
      const { metrics } = await trainer.train({ progress: silentProgress });
      const { loss, gradNorm } = metrics;
      return [Engine.shared({ threads }).memory().peak.activations, { loss, gradNorm }];
    };
    const [kept, recomputed] = [await run(false), await run(true)];
    assert.ok(recomputed[0] < kept[0], `${recomputed[0]} and ${kept[0]} bytes of activations`);
    assert.deepEqual(recomputed[1], kept[1]);
  });
});
