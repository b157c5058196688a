import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  type CausalLM,
  CPOTrainer,
  DPOTrainer,
  EnvironmentPPOTrainer,
  FeatureRewardModel,
  FeatureRewardTrainer,
  GRPOTrainer,
  KTOTrainer,
  ORPOTrainer,
  PPOTrainer,
  ReinforcePlusPlusTrainer,
  RewardModelTrainer,
  RLOOTrainer,
  SFTTrainer,
  SimPOTrainer,
} from "../../lib/index.ts";
import { temporaryDirectory } from "../data/support.ts";
import { CartPole } from "../environment/tasks.ts";
import { assertSameWeights, preferenceRows, prompts, sftRows, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const common = { batchSize: 4, learningRate: 1e-3 };
const online = {
  tokenizer,
  prompts,
  reward: (_prompt: string, response: string) => response.length,
  config: { ...common, groupSize: 2, numIterations: 3, maxNewTokens: 4 },
};
const config = { ...common, maxSteps: 3 };
const pairs = { tokenizer, trainData: preferenceRows, config };
const labelled = preferenceRows.flatMap(({ prompt, chosen, rejected }) => [
  { prompt, completion: chosen, label: true },
  { prompt, completion: rejected, label: false },
]);

const features = [{ chosen: [1, 2], rejected: [0, 3] }];
const { groupSize: _, ...ppoConfig } = online.config;
const trainers = {
  sft: (model: CausalLM, outputDir?: string) =>
    new SFTTrainer({ model, tokenizer, trainData: sftRows, config, outputDir }),
  reward: (model: CausalLM) => new RewardModelTrainer({ ...pairs, model }),
  dpo: (model: CausalLM) => new DPOTrainer({ ...pairs, model }),
  kto: (model: CausalLM) => new KTOTrainer({ ...pairs, model, trainData: labelled }),
  orpo: (model: CausalLM) => new ORPOTrainer({ ...pairs, model }),
  cpo: (model: CausalLM) => new CPOTrainer({ ...pairs, model }),
  simpo: (model: CausalLM) => new SimPOTrainer({ ...pairs, model }),
  ppo: (model: CausalLM) => new PPOTrainer({ ...online, model, config: ppoConfig }),
  grpo: (model: CausalLM) => new GRPOTrainer({ ...online, model }),
  "reinforce-plus-plus": (model: CausalLM) =>
    new ReinforcePlusPlusTrainer({ ...online, model, config: ppoConfig }),
  rloo: (model: CausalLM) => new RLOOTrainer({ ...online, model }),
};
const busy = { code: "ERR_RLHF_BUSY", message: /trainer is training already: await the train\(\)/ };
const disposed = { code: "ERR_RLHF_DISPOSED", message: /was used after dispose\(\); make another one/ };
const quiet = { progress: { update: () => {}, note: () => {}, finish: () => {} } };

describe("misuse of a trainer", () => {
  const directory = temporaryDirectory();

  for (const [name, make] of Object.entries(trainers)) {
    it(`${name}: a second training beside one is refused and changes nothing of it`, async () => {
      using model = await tinyModel(tokenizer);
      using alone = await tinyModel(tokenizer);
      using trainer = make(model);
      const first = trainer.train(quiet);
      await assert.rejects(trainer.train(quiet), busy);
      await assert.rejects(trainer.trainStep(), busy);
      await assert.rejects(trainer.steps().next(), busy);
      assert.equal((await first).steps, 3);
      using other = make(alone);
      await other.train(quiet);
      await assertSameWeights(model, alone);
    });

    it(`${name}: it does not train after dispose()`, async () => {
      using model = await tinyModel(tokenizer);
      const trainer = make(model);
      await trainer.trainStep();
      trainer.dispose();
      trainer.dispose();
      await assert.rejects(trainer.train(quiet), disposed);
      await assert.rejects(trainer.trainStep(), disposed);
      await assert.rejects(trainer.steps().next(), disposed);
      const fresh = make(model);
      fresh.dispose();
      await assert.rejects(fresh.trainStep(), disposed);
      await model.generate([Int32Array.of(1)], { maxNewTokens: 1 });
    });
  }

  const withoutModels = {
    "environment-ppo": (outputDir?: string) =>
      new EnvironmentPPOTrainer({
        environment: () => new CartPole(),
        config: { numIterations: 2, numEnvironments: 1, stepsPerIteration: 8, numMinibatches: 1 },
        outputDir,
      }),
    "feature-reward": (outputDir?: string) =>
      new FeatureRewardTrainer({
        model: FeatureRewardModel.create({ inputDim: 2 }),
        trainData: features,
        config: { maxSteps: 2 },
        outputDir,
      }),
  };
  for (const [name, make] of Object.entries(withoutModels))
    it(`${name}: the same`, async () => {
      using trainer = make();
      const first = trainer.train(quiet);
      await assert.rejects(trainer.train(quiet), busy);
      await assert.rejects(trainer.trainStep(), busy);
      assert.equal((await first).steps, 2);
      trainer.dispose();
      await assert.rejects(trainer.trainStep(), disposed);
      assert.throws(() => make(3 as never), {
        code: "ERR_RLHF_ARGUMENT",
        message: /option outputDir must be the path of a directory/,
      });
    });

  it("an option of train() that there is not is refused before a step", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = trainers.sft(model);
    const unknown = {
      code: "ERR_RLHF_ARGUMENT",
      message: /^train: unknown option "resum" \(did you mean "resume"\?\)/,
    };
    await assert.rejects(trainer.train({ resum: false } as never), unknown);
    await assert.rejects(trainer.steps({ resum: false } as never).next(), unknown);
    assert.equal(trainer.step, 0);
  });

  it("a step on no examples, and a directory that is no path, are refused", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = trainers.sft(model);
    for (const examples of [[], "rows.jsonl"])
      await assert.rejects(trainer.trainStep(examples as never), {
        code: "ERR_RLHF_ARGUMENT",
        message: /^trainStep: expected a list of one example or more/,
      });
    assert.equal(trainer.step, 0);
    for (const directory of [5, ""])
      await assert.rejects(trainer.save(directory as never), {
        code: "ERR_RLHF_ARGUMENT",
        message: /^save: expected the path of a directory, got/,
      });
  });

  it("two single steps at once are one too many, and the trainer goes on", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = trainers.sft(model);
    const both = await Promise.allSettled([trainer.trainStep(), trainer.trainStep()]);
    assert.deepEqual(
      both.map(({ status }) => status),
      ["fulfilled", "rejected"],
    );
    assert.equal((await trainer.trainStep()).step, 2);
    assert.equal(trainer.step, 2);
  });

  it("within the loop's body, and after it was left, the trainer is free", async () => {
    const outputDir = join(directory, "loop");
    using model = await tinyModel(tokenizer);
    using trainer = trainers.sft(model, outputDir);
    for await (const { step } of trainer.steps()) {
      assert.equal(step, 1);
      assert.equal((await trainer.trainStep()).step, 2);
      break;
    }
    assert.ok(!existsSync(join(outputDir, ".run.lock")), "a loop that was left gives its lock back");
    assert.equal((await trainer.train(quiet)).steps, 3);
  });

  it("a step that fails leaves the trainer free", async () => {
    using model = await tinyModel(tokenizer);
    let fails = true;
    const reward = (): number => {
      if (fails) throw new Error("not now");
      return 1;
    };
    using trainer = new PPOTrainer({ ...online, model, reward, config: ppoConfig });
    await assert.rejects(trainer.trainStep(), { code: "ERR_RLHF_REWARD" });
    fails = false;
    assert.equal((await trainer.trainStep()).step, 1);
  });
});
