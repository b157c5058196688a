import assert from "node:assert/strict";
import {
  CausalLM,
  type GRPOConfig,
  GRPOTrainer,
  type GroupExperience,
  type GroupTrainer,
  groupAdvantages,
  leaveOneOutAdvantages,
  type RewardFunction,
  type RLOOConfig,
  RLOOTrainer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { assertResumes, assertSameWeights, prompts, tinyModel, tinyTokenizer, weightsOf } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG = {
  batchSize: 8,
  groupSize: 4,
  maxNewTokens: 7,
  learningRate: 3e-3,
  updateEpochs: 2,
  numMinibatches: 2,
  numIterations: 3,
  seed: 5,
};

/** Deterministic, and different for most answers. */
const countLetters: RewardFunction = (_prompt, response) => (response.match(/[aeiou]/g) ?? []).length / 3;

function grpo(model: CausalLM, config: GRPOConfig = {}, outputDir?: string): GRPOTrainer {
  const options = { model, tokenizer, reward: countLetters, prompts, config: { ...CONFIG, ...config } };
  return new GRPOTrainer({ ...options, ...(outputDir ? { outputDir } : {}) });
}

function rloo(model: CausalLM, config: RLOOConfig = {}, outputDir?: string): RLOOTrainer {
  const options = { model, tokenizer, reward: countLetters, prompts, config: { ...CONFIG, ...config } };
  return new RLOOTrainer({ ...options, ...(outputDir ? { outputDir } : {}) });
}

type AnyTrainer = GRPOTrainer | RLOOTrainer;

const rounded = (values: Float32Array): number[] => Array.from(values, (value) => Number(value.toFixed(6)));

describe("advantages within groups", () => {
  it("of scores 1, 0, 0, 1: GRPO ±0.865875, Dr. GRPO ±0.5, leave-one-out ±0.666667", () => {
    const scores = Float32Array.of(1, 0, 0, 1);
    const signed = (size: number): number[] => [size, -size, -size, size];
    assert.deepEqual(rounded(groupAdvantages(scores, 4)), signed(0.865875));
    assert.deepEqual(rounded(groupAdvantages(scores, 4, "none")), signed(0.5));
    assert.deepEqual(rounded(leaveOneOutAdvantages(scores, 4)), signed(0.666667));
  });

  it("groups are apart, equal scores teach nothing, and the batch's deviation is one for all", () => {
    const scores = Float32Array.of(2, 4, 5, 5);
    const deviation = Math.sqrt(2) + 1e-4;
    assert.deepEqual(groupAdvantages(scores, 2), Float32Array.of(-1 / deviation, 1 / deviation, 0, 0));
    // Mean 4, squares 4 + 0 + 1 + 1.
    const batchDeviation = Math.sqrt(2) + 1e-4;
    assert.deepEqual(
      groupAdvantages(scores, 2, "batch"),
      Float32Array.of(-1, 1, 0, 0).map((a) => a / batchDeviation),
    );
    assert.deepEqual(leaveOneOutAdvantages(scores, 2), Float32Array.of(-2, 2, 0, 0));
  });

  it("scores that do not divide into groups are refused", () => {
    const message = /5 scores do not make groups of 2/;
    assert.throws(() => groupAdvantages(new Float32Array(5), 2), { code: "ERR_RLHF_SHAPE", message });
    assert.throws(() => leaveOneOutAdvantages(new Float32Array(4), 1), { code: "ERR_RLHF_SHAPE" });
  });
});

const VARIANTS: [string, "all" | "none", (model: CausalLM) => AnyTrainer][] = [
  ["GRPO without a reference", "all", (model) => grpo(model)],
  ["GRPO with a KL", "all", (model) => grpo(model, { klCoefficient: 0.04, lossAggregation: "grpo" })],
  [
    "GRPO of an adapter",
    "none",
    (model) => grpo(model, { klCoefficient: 0.04, lora: { r: 4 }, temperature: 0.7 }),
  ],
  ["GSPO", "all", (model) => grpo(model, { ratioLevel: "sequence", microBatchTokens: 30 })],
  ["CISPO", "all", (model) => grpo(model, { surrogate: "cispo" })],
  ["RLOO", "all", (model) => rloo(model)],
  [
    "RLOO of an adapter, whitened",
    "none",
    (model) => rloo(model, { lora: { r: 4 }, whitenAdvantages: true }),
  ],
];

describe("GRPOTrainer and RLOOTrainer", () => {
  for (const [what, trainable, make] of VARIANTS) {
    it(`${what}: the first minibatch's ratios are exactly 1, and the update changes later ones`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      using trainer = make(model);
      const before = await weightsOf(model);
      const experience = await trainer.computeAdvantages(await trainer.generateResponses());
      const { minibatches, metrics } = await trainer.updatePolicy(experience);
      const [first, , , last] = minibatches;
      assert.equal(minibatches.length, 4);
      assert.deepEqual(
        [first?.ratio, first?.ratioSquared, first?.approxKl, first?.clipFractionLow, first?.clipFractionHigh],
        [1, 1, 0, 0, 0],
      );
      assert.equal(first?.kl, 0, "the policy starts at the reference");
      assert.ok((last?.approxKl as number) > 0);
      for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
      const changed = [...(await weightsOf(model))].filter(
        ([name, values]) => !Buffer.from(values.buffer).equals(Buffer.from(before.get(name)!.buffer)),
      );
      assert.ok(changed.length > 0);
      assert.ok(
        trainable === "all" || changed.every(([name]) => name.includes("lora_")),
        "the base is frozen",
      );
      const after = await trainer.computeAdvantages(await trainer.generateResponses());
      if (trainer.config.klCoefficient === 0) assert.equal(after.metrics["objective/kl"], undefined);
      else assert.notEqual(after.metrics["objective/kl"], 0, "the reference stays where it was");
      const second = await trainer.updatePolicy(after);
      assert.equal(second.minibatches[0]?.ratioSquared, 1);
    });
  }

  it("answers to a prompt stand side by side, and their advantages come from their scores", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = grpo(model, { shufflePrompts: false });
    const rollouts = [...(await trainer.generateResponses()), ...(await trainer.generateResponses())];
    assert.deepEqual(
      rollouts.map((rollout) => rollout.row.prompt),
      prompts.slice(0, 4).flatMap((prompt) => [prompt, prompt, prompt, prompt]),
    );
    assert.ok(new Set(rollouts.map((rollout) => rollout.response)).size > 8, "each is drawn by itself");
    const { scores, advantage } = await trainer.computeAdvantages(rollouts);
    assert.deepEqual(advantage, groupAdvantages(scores, 4));
  });

  it("the loss is averaged as lossAggregation says, however the batch is cut", async () => {
    using model = await tinyModel(tokenizer);
    // At ratio 1 a token's loss is −A, whatever the policy: the loss follows from lengths and advantages alone.
    const expected: Record<string, (experience: GroupExperience, chosen: Int32Array) => number> = {
      grpo: ({ advantage }, chosen) => sum(chosen, (s) => advantage[s]!) / chosen.length,
      bnpo: ({ batch, advantage }, chosen) =>
        sum(chosen, (s) => advantage[s]! * batch.responseTokens([s])) / batch.responseTokens(chosen),
      dapo: ({ batch, advantage }, chosen) =>
        sum(chosen, (s) => advantage[s]! * batch.responseTokens([s])) / (batch.responseTokens() / 2),
      dr_grpo: ({ batch, advantage }, chosen) =>
        sum(chosen, (s) => advantage[s]! * batch.responseTokens([s])) / (chosen.length * 7),
    };
    const losses = new Set<number>();
    for (const [lossAggregation, loss] of Object.entries(expected)) {
      const config = { lossAggregation, microBatchTokens: 40, learningRate: 0 } as GRPOConfig;
      using trainer = grpo(model, config);
      // Answers of one length would make all of these the same.
      const rollouts = (await trainer.generateResponses()).map((rollout, i) => ({
        ...rollout,
        tokens: rollout.tokens.slice(0, rollout.promptLength + 1 + (i % 5)),
      }));
      const experience = await trainer.computeAdvantages(rollouts);
      const { minibatches } = await trainer.updatePolicy(experience);
      const { loss: actual, rollouts: chosen } = minibatches[0]!;
      assert.ok(Math.abs(actual + loss(experience, chosen)) < 1e-6, `${lossAggregation}: ${actual}`);
      losses.add(Number(actual.toFixed(5)));
    }
    assert.equal(losses.size, 4, [...losses].join());
  });

  it("RLOO takes the KL to the reference off the scores before it compares them", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = rloo(model, { klCoefficient: 0.5, learningRate: 1e-2 });
    await trainer.trainStep();
    const experience = await trainer.computeAdvantages(await trainer.generateResponses());
    const { batch, scores, logProb, refLogProb, advantage } = experience;
    const { offsets, mask } = batch.packed;
    const penalized = scores.map((score, s) => {
      const tokens = Array.from({ length: offsets[s + 1]! - offsets[s]! }, (_, i) => offsets[s]! + i);
      return score - 0.5 * sum(tokens, (t) => mask[t]! * (logProb[t]! - refLogProb![t]!));
    });
    assert.notDeepEqual(penalized, scores);
    advantage.forEach((value, s) => {
      const group = Math.floor(s / 4) * 4;
      const others = [0, 1, 2, 3].map((i) => group + i).filter((i) => i !== s);
      const baseline = sum(others, (i) => penalized[i]!) / 3;
      assert.ok(Math.abs(value - (penalized[s]! - baseline)) < 1e-5, `${s}`);
    });
  });

  it("scores are shaped, and penalised for length and a missing end, as PPO's are", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = grpo(model, {
      shapeRewards: true,
      lengthPenalty: 0.25,
      lengthPenaltyStart: 4,
      missingEosPenalty: 0.5,
    });
    const rollouts = await trainer.generateResponses();
    const { scores, metrics } = await trainer.computeAdvantages(rollouts);
    const raw = rollouts.map(({ response }) => Math.fround((response.match(/[aeiou]/g) ?? []).length / 3));
    const mean = sum(raw, Number) / 8;
    const deviation = Math.sqrt(sum(raw, (score) => (score - mean) ** 2) / 7);
    rollouts.forEach(({ tokens, promptLength, finishReason }, s) => {
      const surplus = Math.max(0, tokens.length - promptLength - 4);
      const penalties = 0.25 * surplus + (finishReason === "stop" ? 0 : 0.5);
      assert.ok(Math.abs(scores[s]! - ((raw[s]! - mean) / deviation - penalties)) < 1e-5, `${s}`);
    });
    assert.ok(Math.abs(metrics["objective/raw_scores"]! - mean) < 1e-6);
  });

  it("a run that was aborted and resumed ends in the same bits as one left alone", async () => {
    const runs: [string, (model: CausalLM, outputDir: string) => GroupTrainer<never> | AnyTrainer][] = [
      ["grpo", (model, outputDir) => grpo(model, { klCoefficient: 0.1 }, outputDir)],
      ["rloo", (model, outputDir) => rloo(model, {}, outputDir)],
      // The statistics of the scores before the interruption shape those after it.
      ["shaped", (model, outputDir) => rloo(model, { shapeRewards: true }, outputDir)],
    ];
    for (const [_name, make] of runs)
      await assertResumes(async (outputDir) => {
        const model = await tinyModel(tokenizer);
        return { model, trainer: make(model, outputDir) };
      });
  });

  it("learns: the share of vowels rises, from all the variants of the loss", async () => {
    const vowels: RewardFunction = (_prompt, response) =>
      (response.match(/[aeiou]/g) ?? []).length / Math.max(1, response.length);
    const trainers: [string, (model: CausalLM) => AnyTrainer][] = [
      ["grpo", (model) => make(GRPOTrainer, model, { groupSize: 8 })],
      ["gspo", (model) => make(GRPOTrainer, model, { groupSize: 8, ratioLevel: "sequence" })],
      ["cispo", (model) => make(GRPOTrainer, model, { groupSize: 8, surrogate: "cispo" })],
      [
        "rloo",
        (model) => make(RLOOTrainer, model, { updateEpochs: 1, numMinibatches: 1, numIterations: 24 }),
      ],
    ];
    function make<Config>(
      Trainer: new (options: ConstructorParameters<typeof GRPOTrainer>[0]) => AnyTrainer,
      model: CausalLM,
      config: Config,
    ): AnyTrainer {
      const settings = { ...CONFIG, batchSize: 32, learningRate: 1e-2, numIterations: 12, ...config };
      return new Trainer({ model, tokenizer, reward: vowels, prompts, config: settings });
    }
    for (const [name, makeTrainer] of trainers) {
      using model = await tinyModel(tokenizer);
      using trainer = makeTrainer(model);
      const scores: number[] = [];
      for await (const { metrics } of trainer.steps()) scores.push(metrics["objective/scores"] as number);
      const [first, last] = [sum(scores.slice(0, 3), Number) / 3, sum(scores.slice(-3), Number) / 3];
      assert.ok(last > first + 0.12, `${name}: ${scores.map((score) => score.toFixed(3)).join(" ")}`);
    }
  });

  it("evaluate answers held-out prompts without training; save writes the policy alone", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await tinyModel(tokenizer);
      const before = await weightsOf(model);
      using trainer = new RLOOTrainer({
        model,
        tokenizer,
        reward: countLetters,
        prompts,
        evalPrompts: ["Ann has", "Ben has", "Cleo has"],
        config: CONFIG,
      });
      const metrics = await trainer.evaluate();
      assert.equal(metrics["eval/objective/kl"], 0);
      assert.ok(Number.isFinite(metrics["eval/objective/scores"]));
      for (const [name, values] of await weightsOf(model)) assert.deepEqual(values, before.get(name));
      await trainer.trainStep();
      await trainer.save(directory);
      using saved = await CausalLM.load(directory, { device: "cpu" });
      await assertSameWeights(saved, model);
    });
  });

  it("refuses settings that are wrong, alone or together, with the cure; and use after dispose", async () => {
    using model = await tinyModel(tokenizer);
    const refused: [object, RegExp][] = [
      [
        { batchSize: 10 },
        /batchSize \(10 rollouts\) must be a multiple of groupSize \(4 answers per prompt\)/,
      ],
      [{ groupSize: 1 }, /config\.groupSize must be an integer of at least 2/],
      [{ numMinibatches: 9 }, /numMinibatches \(9\) must not be over batchSize \(8\)/],
      [{ minNewTokens: 8 }, /minNewTokens \(8\) must not be over maxNewTokens \(7\)/],
      [
        { lossAggregation: "drgrpo" },
        /config\.lossAggregation must be one of "grpo", "bnpo", "dapo", "dr_grpo"/,
      ],
      [{ scaleReward: "none" }, /unknown setting "scaleReward" \(did you mean "scaleRewards"\?\)/],
      [{ clipRange: 1.5 }, /config\.clipRange must be a number over 0, at most 1/],
    ];
    for (const [config, message] of refused)
      assert.throws(() => grpo(model, config), { code: "ERR_RLHF_ARGUMENT", message });
    assert.throws(() => rloo(model, { scaleRewards: "none" } as RLOOConfig), /unknown setting/);
    const incomplete = { model, tokenizer, prompts } as unknown as ConstructorParameters<
      typeof GRPOTrainer
    >[0];
    for (const Trainer of [GRPOTrainer, RLOOTrainer])
      assert.throws(() => new Trainer(incomplete), {
        code: "ERR_RLHF_ARGUMENT",
        message: /the option reward/,
      });
    const trainer = rloo(model);
    await trainer.prepare();
    trainer.dispose();
    await assert.rejects(trainer.generateResponses(), { code: "ERR_RLHF_DISPOSED" });
  });
});

function sum<Item>(items: ArrayLike<Item>, value: (item: Item) => number): number {
  return Array.from(items).reduce((total, item) => total + value(item), 0);
}
