import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  CausalLM,
  type PPOConfig,
  PPOTrainer,
  RewardEnsemble,
  type RewardFunction,
  RewardModel,
  type RewardSource,
  type RewardStatistics,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { assertSameWeights, prompts, tinyModel, tinyTokenizer, weightsOf } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG: PPOConfig = {
  batchSize: 6,
  maxNewTokens: 7,
  learningRate: 3e-3,
  numPpoEpochs: 2,
  numMinibatches: 2,
  numIterations: 3,
  targetKl: null,
  seed: 5,
};

/** Deterministic, and different for most answers. */
const countLetters: RewardFunction = (_prompt, response) => (response.match(/[aeiou]/g) ?? []).length / 3;

function makeTrainer(
  model: CausalLM,
  config: PPOConfig = {},
  reward: RewardSource = countLetters,
  outputDir?: string,
) {
  return new PPOTrainer({ model, tokenizer, reward, prompts, config: { ...CONFIG, ...config }, outputDir });
}

const VARIANTS: [string, "all" | "none", PPOConfig][] = [
  ["all weights, shared value head", "all", {}],
  ["all weights, separate value model", "all", { valueModel: "separate", valueHead: "linear" }],
  ["LoRA, shared value head", "none", { lora: { r: 4, targetModules: "all-linear" }, temperature: 0.7 }],
  ["LoRA, value adapter", "none", { lora: { r: 4 }, valueModel: "adapter", microBatchTokens: 30 }],
];

describe("PPOTrainer", () => {
  for (const [what, trainable, config] of VARIANTS) {
    it(`${what}: the first minibatch's ratios are exactly 1, and the update changes later ones`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      using trainer = makeTrainer(model, config);
      const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
      assert.equal(experience.kl, 0, "the policy starts at the reference");
      const { minibatches, metrics } = await trainer.ppoStep(experience);
      const [first, , , last] = minibatches;
      assert.equal(minibatches.length, 4);
      assert.deepEqual(
        [first?.ratio, first?.ratioSquared, first?.approxKl, first?.clipFraction],
        [1, 1, 0, 0],
      );
      assert.ok((last?.approxKl as number) > 0);
      for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
      const after = await trainer.computeRewardsAndValues(await trainer.generateResponses());
      assert.notEqual(after.kl, 0, "the reference stays where it was");
      const second = await trainer.ppoStep(after);
      assert.equal(second.minibatches[0]?.ratioSquared, 1);
    });
  }

  it("every epoch passes over each rollout once, in a new order", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = makeTrainer(model);
    const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    const { minibatches } = await trainer.ppoStep(experience);
    const epochs = [minibatches.slice(0, 2), minibatches.slice(2)].map((epoch) =>
      epoch.flatMap((m) => [...m.rollouts]),
    );
    for (const epoch of epochs) assert.deepEqual([...epoch].sort(), [0, 1, 2, 3, 4, 5]);
    assert.notDeepEqual(epochs[0], epochs[1]);
  });

  it("rewards, returns and advantages are those of the formulas", async () => {
    using model = await tinyModel(tokenizer);
    const klCoefficient = 0.3;
    using trainer = makeTrainer(model, {
      klCoefficient,
      whitenAdvantages: false,
      gamma: 0.9,
      lambda: 0.8,
      stop: [],
    });
    await trainer.trainStep();
    const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    const { batch, logProb, refLogProb, value, scores } = experience;
    let kl = 0;
    batch.rollouts.forEach(({ promptLength }, s) => {
      const [begin, end] = [batch.packed.offsets[s] as number, batch.packed.offsets[s + 1] as number];
      let [advantage, after] = [0, 0];
      for (let t = end - 1; t >= begin + promptLength; t--) {
        const d = (logProb[t] as number) - (refLogProb[t] as number);
        kl += d;
        const reward = -klCoefficient * d + (t === end - 1 ? (scores[s] as number) : 0);
        const v = value[t - 1] as number;
        advantage = reward + 0.9 * after - v + 0.9 * 0.8 * advantage;
        after = v;
        for (const [name, expected] of [
          ["reward", reward],
          ["advantage", advantage],
          ["returns", advantage + v],
        ] as const) {
          const actual = experience[name][t] as number;
          assert.ok(
            Math.abs(actual - expected) < 1e-4,
            `${name} of token ${t}: ${actual}, expected ${expected}`,
          );
        }
      }
      for (let t = begin; t < begin + promptLength; t++) assert.equal(experience.reward[t], 0);
    });
    assert.ok(Math.abs(experience.kl - kl / batch.size) < 1e-4);
    assert.ok(Math.abs((experience.metrics["objective/kl"] as number) - kl / batch.size) < 1e-4);
  });

  it("the updates of an iteration end when the approximate KL goes over targetKl", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = makeTrainer(model, { targetKl: 1e-4, numPpoEpochs: 10, learningRate: 1e-2 });
    const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    const { minibatches, stoppedEarly, metrics } = await trainer.ppoStep(experience);
    assert.ok(stoppedEarly);
    assert.ok(minibatches.length < 20);
    assert.equal(metrics.updates, minibatches.length - 1, "the minibatch that went over is not applied");
    assert.ok((minibatches.at(-1)?.approxKl as number) > 1e-4);
    assert.ok(minibatches.slice(0, -1).every((minibatch) => minibatch.approxKl <= 1e-4));
    const name = "model.embed_tokens.weight";
    assert.ok(
      (await model.readGradient(name)).every((value) => value === 0),
      "no gradient is left behind",
    );
  });

  it("scores are clipped, and an answer without an end is punished", async () => {
    using model = await tinyModel(tokenizer);
    const config = { rewardClip: 0.5, missingEosPenalty: 0.25, batchSize: 16 };
    using trainer = makeTrainer(
      model,
      { ...config, stop: Array.from({ length: 150 }, (_, id) => id) },
      () => 3,
    );
    const rollouts = await trainer.generateResponses();
    const { scores, metrics } = await trainer.computeRewardsAndValues(rollouts);
    const ended = rollouts.filter((rollout) => rollout.finishReason === "stop").length;
    assert.ok(ended > 0 && ended < 16, `${ended} of 16 ended`);
    assert.equal(metrics["val/num_eos_tokens"], ended);
    rollouts.forEach(({ finishReason, tokens, promptLength }, i) => {
      assert.equal(scores[i], finishReason === "stop" ? 0.5 : 0.25);
      assert.ok(finishReason === "stop" || tokens.length === promptLength + 7);
    });
  });

  it("shaped scores have the running mean and deviation of all batches so far; evaluation reports them as they are", async () => {
    using model = await tinyModel(tokenizer);
    const config = { ...CONFIG, shapeRewards: true, rewardClip: 10 };
    using trainer = new PPOTrainer({
      model,
      tokenizer,
      reward: countLetters,
      prompts,
      evalPrompts: prompts,
      config,
    });
    const raw: number[] = [];
    for (let batch = 0; batch < 2; batch++) {
      const rollouts = await trainer.generateResponses();
      const { scores, metrics } = await trainer.computeRewardsAndValues(rollouts);
      const own = rollouts.map(({ response }) => Math.fround((response.match(/[aeiou]/g) ?? []).length / 3));
      raw.push(...own);
      const mean = raw.reduce((sum, score) => sum + score, 0) / raw.length;
      const squares = raw.reduce((sum, score) => sum + (score - mean) ** 2, 0);
      const deviation = Math.sqrt(squares / (raw.length - 1));
      assert.ok(deviation > 0);
      scores.forEach((score, i) => {
        assert.ok(Math.abs(score - ((own[i] as number) - mean) / deviation) < 1e-5);
      });
      const batchMean = own.reduce((sum, score) => sum + score, 0) / own.length;
      assert.ok(Math.abs((metrics["objective/raw_scores"] as number) - batchMean) < 1e-6);
    }
    const evaluated = await trainer.evaluate();
    assert.equal(evaluated["eval/objective/scores"], evaluated["eval/objective/raw_scores"]);
    assert.deepEqual(await trainer.evaluate(), evaluated, "an evaluation leaves the statistics alone");
  });

  it("a diversity bonus and a length penalty are part of the reward at the last token", async () => {
    using model = await tinyModel(tokenizer);
    const shaping = { diversityBonus: 0.5, diversityNgram: 1, lengthPenalty: 0.1, lengthPenaltyStart: 3 };
    using trainer = makeTrainer(model, { ...shaping, stop: [] }, () => 2);
    const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    const { batch, scores, reward, metrics } = experience;
    const diversity = batch.rollouts.map(({ tokens, promptLength }) => {
      const response = tokens.subarray(promptLength);
      return new Set(response).size / response.length;
    });
    diversity.forEach((share, i) => {
      const expected = 2 - 0.1 * (7 - 3) + 0.5 * share;
      assert.ok(Math.abs((scores[i] as number) - expected) < 1e-6);
      assert.ok(Math.abs((reward[(batch.packed.offsets[i + 1] as number) - 1] as number) - expected) < 1e-6);
    });
    const mean = diversity.reduce((sum, share) => sum + share, 0) / 6;
    assert.ok(Math.abs((metrics["objective/diversity"] as number) - mean) < 1e-6);
    assert.equal(metrics["objective/response_length"], 7);
  });

  it("dual clip leaves ratios near 1 alone, and bounds those far away", async () => {
    const update = async (dualClip: number | null): Promise<[CausalLM, number]> => {
      const model = await tinyModel(tokenizer);
      using trainer = makeTrainer(model, { dualClip, learningRate: 3e-2, numPpoEpochs: 4 });
      const { metrics } = await trainer.trainStep();
      return [model, metrics["policy/dual_clipfrac_avg"] as number];
    };
    const [free, none] = await update(null);
    const [loose, few] = await update(1e9);
    const [tight, some] = await update(1.21);
    using _models = { [Symbol.dispose]: () => [free, loose, tight].forEach((model) => void model.dispose()) };
    assert.deepEqual([none, few], [0, 0]);
    assert.ok(some > 0);
    await assertSameWeights(loose, free);
    await assert.rejects(assertSameWeights(tight, free));
  });

  it("accumulating over micro-batches is one batch: the same experience bits, the same update but for rounding", async () => {
    const update = async (microBatchTokens: number) => {
      const model = await tinyModel(tokenizer);
      using trainer = makeTrainer(model, { microBatchTokens, learningRate: 1e-4 });
      const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
      const { minibatches } = await trainer.ppoStep(experience);
      return { model, experience, minibatches };
    };
    const [whole, cut] = [await update(4096), await update(24)];
    using _models = {
      [Symbol.dispose]: () => [whole, cut].forEach(({ model }) => void model.dispose()),
    };
    assert.ok(cut.experience.batch.microBatches(24, [0, 1, 2, 3, 4, 5]).length > 2);
    for (const name of ["logProb", "value", "reward", "advantage", "returns"] as const)
      assert.deepEqual(cut.experience[name], whole.experience[name], name);
    cut.minibatches.forEach((minibatch, i) => {
      for (const name of ["policyLoss", "valueLoss", "gradNorm"] as const) {
        const expected = whole.minibatches[i]?.[name] as number;
        const actual = minibatch[name] as number;
        assert.ok(
          Math.abs(actual - expected) <= 1e-4 * Math.max(0.01, Math.abs(expected)),
          `${name} of ${i}: ${actual}, ${expected}`,
        );
      }
    });
  });

  it("a separate value model may start from the reward model, with a new head", async () => {
    using model = await tinyModel(tokenizer);
    using judge = await tinyModel(tokenizer, "all", 77);
    using reward = RewardModel.create(judge, { head: { initStd: 0.5 } });
    const config: PPOConfig = { valueModel: "separate", valueInit: "reward" };
    await withTemporaryDirectory(async (directory) => {
      using trainer = makeTrainer(model, config, reward);
      const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
      assert.ok(experience.value.every((value) => value === 0));
      await trainer.save(directory);
      using value = await CausalLM.load(join(directory, "value"), { device: "cpu" });
      const name = "model.layers.0.mlp.up_proj.weight";
      assert.deepEqual(await value.readParameter(name), await judge.readParameter(name));
      assert.notDeepEqual(await value.readParameter(name), await model.readParameter(name));
      const { minibatches } = await trainer.ppoStep(experience);
      assert.ok((minibatches[0]?.valueGradNorm as number) > 0);
    });
    const refused = { code: "ERR_RLHF_ARGUMENT", message: /valueInit/ };
    assert.throws(() => makeTrainer(model, config), refused);
    assert.throws(() => makeTrainer(model, { valueInit: "reward" }, reward), refused);
  });

  it("a reward function is given both texts and the prompt's row", async () => {
    using model = await tinyModel(tokenizer);
    const seen: string[] = [];
    const reward: RewardFunction = async (prompt, response, { row, finishReason }) => {
      seen.push(`${prompt}${response}`);
      assert.equal(row.prompt, prompt);
      assert.deepEqual(row.metadata, { topic: "wishes" });
      assert.ok(finishReason === "stop" || finishReason === "length");
      return 0;
    };
    const rows = prompts.map((prompt) => ({ prompt, metadata: { topic: "wishes" } }));
    using trainer = new PPOTrainer({
      model,
      tokenizer,
      reward,
      prompts: rows,
      config: { ...CONFIG, shufflePrompts: false },
    });
    const rollouts = await trainer.generateResponses();
    await trainer.computeRewardsAndValues(rollouts);
    assert.deepEqual(
      seen,
      rollouts.map((rollout) => tokenizer.decode(rollout.tokens)),
    );
    assert.deepEqual(
      rollouts.map((rollout) => rollout.row.prompt),
      [...prompts, ...prompts.slice(0, 2)],
    );
  });

  it("what a reward function throws or returns amiss is ERR_RLHF_REWARD with the answer", async () => {
    using model = await tinyModel(tokenizer);
    const failing: RewardFunction[] = [
      () => {
        throw new Error("service is down");
      },
      () => Promise.reject(new Error("service is down")),
      () => Number.NaN,
      () => Number.POSITIVE_INFINITY,
      () => "3" as unknown as number,
    ];
    for (const [index, reward] of failing.entries()) {
      using trainer = makeTrainer(model, {}, reward);
      const message = index < 2 ? /service is down/ : /must return a finite number/;
      await assert.rejects(trainer.trainStep(), { code: "ERR_RLHF_REWARD", message });
    }
  });

  it("a reward model scores prompt and answer; it may lend the frozen base, not one that is trained", async () => {
    using model = await tinyModel(tokenizer, "none");
    using reward = RewardModel.create(model, { head: { initStd: 0.5 } });
    using trainer = makeTrainer(model, { lora: { r: 4 } }, reward);
    const rollouts = await trainer.generateResponses();
    const { scores } = await trainer.computeRewardsAndValues(rollouts);
    assert.deepEqual(scores, await reward.score(rollouts.map((rollout) => rollout.tokens)));
    const { mean, deviation } = (await reward.measureStatistics(
      rollouts.map((rollout) => rollout.tokens),
    )) as RewardStatistics;
    const { scores: normalized } = await trainer.computeRewardsAndValues(rollouts);
    normalized.forEach((score, i) => {
      assert.ok(Math.abs(score - ((scores[i] as number) - mean) / deviation) < 1e-5);
    });
    using plain = makeTrainer(model, { normalizeReward: false, adapter: "policy" }, reward);
    assert.deepEqual((await plain.computeRewardsAndValues(rollouts)).scores, scores);
    using trained = await tinyModel(tokenizer, "all");
    using shared = RewardModel.create(trained);
    assert.throws(() => makeTrainer(trained, {}, shared), { code: "ERR_RLHF_ARGUMENT", message: /shares/ });
  });

  it("an ensemble's score is its members', and how far they are apart is a metric", async () => {
    using model = await tinyModel(tokenizer, "none");
    const members = [1, 2].map((seed) => RewardModel.create(model, { head: { initStd: 0.5, seed } }));
    using reward = new RewardEnsemble(members, { combine: "min" });
    using trainer = makeTrainer(model, { lora: { r: 4 } }, reward);
    const rollouts = await trainer.generateResponses();
    const { scores, metrics } = await trainer.computeRewardsAndValues(rollouts);
    const both = await Promise.all(
      members.map((member) => member.score(rollouts.map(({ tokens }) => tokens))),
    );
    const [first, second] = both as [Float32Array, Float32Array];
    assert.deepEqual(
      scores,
      first.map((score, i) => Math.min(score, second[i] as number)),
    );
    const apart = first.reduce((sum, score, i) => sum + Math.abs(score - (second[i] as number)) / 2, 0);
    const spread = metrics["objective/reward_spread"] as number;
    assert.ok(spread > 0 && Math.abs(spread - apart / first.length) < 1e-5);
  });

  it("an adapter that had been trained before keeps a frozen copy of itself as reference", async () => {
    using model = await tinyModel(tokenizer, "none");
    model.addAdapter("policy", { r: 4, alpha: 8 });
    for (const { name, shape } of model
      .parameters()
      .filter((parameter) => parameter.name.endsWith("lora_B"))) {
      const size = shape.reduce((product, extent) => product * extent, 1);
      await model.writeParameter(
        name,
        Float32Array.from({ length: size }, (_, i) => 0.1 * Math.sin(i)),
      );
    }
    using trainer = makeTrainer(model);
    const { kl, logProb } = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    assert.equal(kl, 0);
    assert.ok(logProb.some((value) => value !== 0));
    await trainer.trainStep();
    const after = await trainer.computeRewardsAndValues(await trainer.generateResponses());
    assert.notEqual(after.kl, 0);
  });

  it("a run that was aborted and resumed ends in the same bits as one left alone", async () => {
    await withTemporaryDirectory(async (directory) => {
      const run = async (outputDir: string, interrupt = false): Promise<CausalLM> => {
        const model = await tinyModel(tokenizer);
        const adaptive: PPOConfig = { klTarget: 0.01, klHorizon: 10, shapeRewards: true, rewardClip: 2 };
        const config: PPOConfig = { ...adaptive, valueModel: "separate" };
        using trainer = makeTrainer(model, config, countLetters, outputDir);
        const controller = new AbortController();
        const steps = trainer.steps({ signal: controller.signal });
        await steps.next();
        if (!interrupt) {
          for await (const _ of steps);
          return model;
        }
        controller.abort();
        await assert.rejects(steps.next(), { code: "ERR_RLHF_ABORTED" });
        return model;
      };
      using _half = await run(join(directory, "cut"), true);
      using resumed = await run(join(directory, "cut"));
      using whole = await run(join(directory, "whole"));
      await assertSameWeights(resumed, whole);
    });
  });

  it("a reward that fails costs no finished step: in the same trainer or another, the run goes on as if it had not", async () => {
    await withTemporaryDirectory(async (directory) => {
      const config: PPOConfig = { valueModel: "separate" };
      let calls = 0;
      let failing = true;
      const flaky: RewardFunction = (prompt, response, context) => {
        // The first iteration asks for six.
        if (++calls > 6 && failing) throw new Error("service is down");
        return countLetters(prompt, response, context);
      };
      const finish = async (trainer: PPOTrainer): Promise<void> => {
        for await (const _ of trainer.steps());
      };
      using model = await tinyModel(tokenizer);
      using trainer = makeTrainer(model, config, flaky, join(directory, "cut"));
      await assert.rejects(finish(trainer), { code: "ERR_RLHF_REWARD" });
      assert.ok(existsSync(join(directory, "cut", "checkpoint-1")));
      using another = await tinyModel(tokenizer);
      using resumed = makeTrainer(another, config, countLetters, join(directory, "cut"));
      await finish(resumed);
      failing = false;
      await finish(trainer);
      using untroubled = await tinyModel(tokenizer);
      using whole = makeTrainer(untroubled, config, countLetters, join(directory, "whole"));
      await finish(whole);
      await assertSameWeights(model, untroubled);
      await assertSameWeights(another, untroubled);
    });
  });

  it("rollouts follow from the seed and the number of rollouts before them alone", async () => {
    using model = await tinyModel(tokenizer);
    const sample = async (seed: number, batchSize: number): Promise<string[]> => {
      using trainer = makeTrainer(model, { seed, batchSize, shufflePrompts: false });
      const rollouts = [...(await trainer.generateResponses()), ...(await trainer.generateResponses())];
      return rollouts.slice(0, 6).map((rollout) => rollout.tokens.join());
    };
    assert.deepEqual(await sample(1, 6), await sample(1, 3));
    assert.notDeepEqual(await sample(1, 6), await sample(2, 6));
  });

  it("β adapts towards klTarget", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = makeTrainer(model, { klTarget: 1, klHorizon: 60, klCoefficient: 0.1 });
    await trainer.trainStep();
    // KL 0 is 100 % below the target, clipped to 20 %, times 6 rollouts of 60.
    assert.ok(Math.abs(trainer.klCoefficient - 0.1 * (1 - 0.02)) < 1e-12, `${trainer.klCoefficient}`);
  });

  it("evaluate answers held-out prompts without training; save writes policy and value model", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await tinyModel(tokenizer);
      const before = await weightsOf(model);
      using trainer = new PPOTrainer({
        model,
        tokenizer,
        reward: countLetters,
        prompts,
        evalPrompts: ["Eve wants"],
        config: { ...CONFIG, valueModel: "separate" },
      });
      const first = await trainer.evaluate();
      assert.ok(Number.isFinite(first["eval/objective/scores"]));
      assert.deepEqual(await trainer.evaluate(), first, "the same answers each time");
      for (const [name, values] of before) assert.deepEqual(await model.readParameter(name), values);
      await trainer.save(directory);
      using saved = await CausalLM.load(directory, { device: "cpu" });
      for (const [name, values] of before) assert.deepEqual(await saved.readParameter(name), values);
      using value = await CausalLM.load(join(directory, "value"), { device: "cpu" });
      assert.ok(value.heads.has("value"));
    });
  });

  it("saves the policy without the head of a reward model that it lends its weights", async () => {
    using model = await tinyModel(tokenizer, "none");
    using reward = RewardModel.create(model);
    await withTemporaryDirectory(async (directory) => {
      const config = { ...CONFIG, lora: { r: 2 } };
      using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config });
      await trainer.trainStep();
      await trainer.save(directory);
      using saved = await CausalLM.load(directory, { device: "cpu" });
      assert.deepEqual([...saved.heads.keys()], ["value"]);
    });
  });

  it("counts prompts that are too long, and refuses to go on after dispose", async () => {
    using model = await tinyModel(tokenizer);
    const trainer = new PPOTrainer({
      model,
      tokenizer,
      reward: countLetters,
      prompts: [...prompts, "Xq".repeat(40)],
      config: CONFIG,
    });
    assert.equal(trainer.tokenized.examples, prompts.length);
    assert.equal(trainer.tokenized.dropped, 1);
    await trainer.generateResponses(prompts);
    trainer.dispose();
    await assert.rejects(trainer.generateResponses(prompts), { code: "ERR_RLHF_DISPOSED" });
  });

  it("refuses settings that exclude each other, and prompts that leave no room to answer", async () => {
    using model = await tinyModel(tokenizer);
    const refused = { code: "ERR_RLHF_ARGUMENT" };
    assert.throws(() => makeTrainer(model, { valueModel: "adapter" }), { ...refused, message: /valueModel/ });
    assert.throws(() => makeTrainer(model, { dualClip: 1.2 }), { ...refused, message: /dualClip/ });
    assert.throws(() => makeTrainer(model, { minNewTokens: 8 }), { ...refused, message: /minNewTokens/ });
    assert.throws(() => makeTrainer(model, { lora: { r: 4 } }), { ...refused, message: /frozen base/ });
    const long = { model, tokenizer, reward: countLetters, prompts: ["Xq".repeat(40)], config: CONFIG };
    assert.throws(() => new PPOTrainer(long), { code: "ERR_RLHF_DATA", message: /maxLength/ });
  });
});
