import assert from "node:assert/strict";
import {
  type CausalLM,
  type ReinforcePlusPlusConfig,
  ReinforcePlusPlusTrainer,
  type RewardFunction,
} from "../../lib/index.ts";
import { assertResumes, prompts, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG = {
  batchSize: 8,
  maxNewTokens: 7,
  learningRate: 3e-3,
  updateEpochs: 2,
  numMinibatches: 2,
  numIterations: 3,
  seed: 5,
};

const vowels: RewardFunction = (_prompt, response) =>
  (response.match(/[aeiou]/g) ?? []).length / Math.max(1, response.length);

function make(
  model: CausalLM,
  config: ReinforcePlusPlusConfig = {},
  outputDir?: string,
): ReinforcePlusPlusTrainer {
  const options = { model, tokenizer, reward: vowels, prompts, config: { ...CONFIG, ...config } };
  return new ReinforcePlusPlusTrainer({ ...options, ...(outputDir ? { outputDir } : {}) });
}

describe("ReinforcePlusPlusTrainer", () => {
  it("an advantage is what is rewarded from its token on, normalised over all tokens", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = make(model, { klCoefficient: 0.3, numMinibatches: 1, learningRate: 1e-2 });
    await trainer.trainStep();
    const experience = await trainer.computeAdvantages(await trainer.generateResponses());
    const { batch, scores, logProb, refLogProb, advantage } = experience;
    const { mask, offsets } = batch.packed;
    const returns = new Float64Array(mask.length);
    for (let s = 0; s < batch.size; s++)
      for (let t = offsets[s + 1]! - 1, rest = scores[s]!; mask[t] === 1; t--) {
        rest -= 0.3 * (logProb[t]! - refLogProb![t]!);
        returns[t] = rest;
      }
    const ofAnswers = returns.filter((_, t) => mask[t] === 1);
    const mean = ofAnswers.reduce((a, b) => a + b, 0) / ofAnswers.length;
    const variance = ofAnswers.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (ofAnswers.length - 1);
    returns.forEach((value, t) => {
      const expected = mask[t] === 1 ? (value - mean) / Math.sqrt(variance) : 0;
      assert.ok(Math.abs(advantage[t]! - expected) < 1e-4, `${t}: ${advantage[t]}, expected ${expected}`);
    });
    // The penalty makes tokens of one answer differ.
    const first = advantage.subarray(offsets[0], offsets[1]).filter((_, t) => mask[t] === 1);
    assert.ok(new Set(first).size > 1);
  });

  it("without a KL all tokens of an answer share its score; the group's mean is taken off where it is the baseline", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = make(model, { klCoefficient: 0, baseline: "group", groupSize: 4 });
    const { batch, scores, advantage, metrics } = await trainer.computeAdvantages(
      await trainer.generateResponses(),
    );
    assert.equal(metrics["objective/kl"], undefined, "no reference is kept");
    assert.ok((metrics["objective/scores_std"] as number) > 0);
    const { offsets, mask } = batch.packed;
    const ofAnswer = (s: number): number => advantage[offsets[s + 1]! - 1]!;
    for (let s = 0; s < batch.size; s++)
      for (let t = offsets[s]!; t < offsets[s + 1]!; t++)
        assert.equal(advantage[t], mask[t] === 1 ? ofAnswer(s) : 0);
    // Differences within a group are those of the scores, in one unit for the whole batch.
    const unit = (a: number, b: number): number => (ofAnswer(a) - ofAnswer(b)) / (scores[a]! - scores[b]!);
    const pairs = [1, 2, 3, 5, 6, 7]
      .map((s) => [s, s < 4 ? 0 : 4] as const)
      .filter(([a, b]) => Math.abs(scores[a]! - scores[b]!) > 1e-3);
    assert.ok(pairs.length > 2);
    const units = pairs.map(([a, b]) => unit(a, b));
    for (const each of units) assert.ok(Math.abs(each / units[0]! - 1) < 1e-4, units.join());
  });

  it("the first minibatch's ratios are exactly 1, of all weights and of an adapter", async () => {
    for (const [trainable, config] of [
      ["all", {}],
      ["all", { klCoefficient: 0, klLossCoefficient: 0.1 }],
      ["none", { lora: { r: 4 }, temperature: 0.7, microBatchTokens: 30 }],
    ] as const) {
      using model = await tinyModel(tokenizer, trainable);
      using trainer = make(model, config);
      const experience = await trainer.computeAdvantages(await trainer.generateResponses());
      const { minibatches, metrics } = await trainer.updatePolicy(experience);
      const [first, , , last] = minibatches;
      assert.deepEqual([first?.ratio, first?.ratioSquared, first?.approxKl], [1, 1, 0]);
      assert.ok((last?.approxKl as number) > 0);
      assert.equal((last?.divergence as number) > 0, "klLossCoefficient" in config);
      for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
    }
  });

  it("a batch cut into micro-batches makes the same update", async () => {
    const losses: number[][] = [];
    for (const microBatchTokens of [4096, 20]) {
      using model = await tinyModel(tokenizer);
      using trainer = make(model, { microBatchTokens });
      const experience = await trainer.computeAdvantages(await trainer.generateResponses());
      const { minibatches } = await trainer.updatePolicy(experience);
      losses.push(minibatches.map(({ loss }) => loss));
    }
    losses[0]!.forEach((loss, i) => {
      assert.ok(Math.abs(loss - losses[1]![i]!) < 1e-5, losses.join(" and "));
    });
  });

  it("a run that was aborted and resumed ends in the same bits as one left alone", async () => {
    await assertResumes(async (outputDir) => {
      const model = await tinyModel(tokenizer);
      return { model, trainer: make(model, { klCoefficient: 0.05, shapeRewards: true }, outputDir) };
    });
  });

  it("learns: the share of vowels rises, with either baseline", async () => {
    for (const config of [{ groupSize: 1 }, { groupSize: 8, baseline: "group" }] as const) {
      using model = await tinyModel(tokenizer);
      using trainer = make(model, { ...config, batchSize: 32, learningRate: 1e-2, numIterations: 12 });
      const scores: number[] = [];
      for await (const { metrics } of trainer.steps()) scores.push(metrics["objective/scores"] as number);
      const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
      const [first, last] = [mean(scores.slice(0, 3)), mean(scores.slice(-3))];
      assert.ok(last > first + 0.12, scores.map((score) => score.toFixed(3)).join(" "));
    }
  });

  it("refuses settings that are wrong, alone or together, with the cure", async () => {
    using model = await tinyModel(tokenizer);
    const refused: [object, RegExp][] = [
      [{ baseline: "group" }, /config\.baseline "group" needs a groupSize of 2 or more, not 1/],
      [{ baseline: "mean" }, /config\.baseline must be one of "batch", "group"/],
      [{ groupSize: 3 }, /batchSize \(8 rollouts\) must be a multiple of groupSize \(3 answers per prompt\)/],
      [{ lambda: 1 }, /unknown setting "lambda"/],
      [{ gamma: 1.5 }, /config\.gamma must be/],
    ];
    for (const [config, message] of refused)
      assert.throws(() => make(model, config), { code: "ERR_RLHF_ARGUMENT", message });
    assert.throws(() => new ReinforcePlusPlusTrainer({ model, tokenizer, prompts } as never), {
      code: "ERR_RLHF_ARGUMENT",
      message: /ReinforcePlusPlusTrainer: the option reward/,
    });
  });
});
