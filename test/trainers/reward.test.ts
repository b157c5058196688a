import assert from "node:assert/strict";
import { type RewardConfig, RewardModel, RewardModelTrainer } from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { preferenceRows, tinyModel, tinyTokenizer, weightsOf } from "./support.ts";

const tokenizer = tinyTokenizer();
const HELD_OUT = preferenceRows.slice(0, 5);
const TRAIN = preferenceRows.slice(5);

const KINDS: [string, "all" | "none", RewardConfig][] = [
  ["all weights", "all", { learningRate: 3e-3 }],
  ["an adapter", "none", { learningRate: 1e-2, lora: { r: 4, targetModules: "all-linear" } }],
  ["the head alone", "none", { learningRate: 3e-2, head: "mlp", numEpochs: 20 }],
];

describe("RewardModelTrainer", () => {
  for (const [what, trainable, config] of KINDS) {
    it(`training ${what} learns to prefer chosen answers, held-out ones too`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      const base = await weightsOf(model);
      using trainer = new RewardModelTrainer({
        model,
        tokenizer,
        trainData: TRAIN,
        evalData: HELD_OUT,
        config: { batchSize: 5, numEpochs: 8, ...config },
      });
      const before = await trainer.evaluate();
      assert.ok(
        Math.abs((before["eval/loss"] as number) - Math.log(2)) < 1e-6,
        "a head of zeros knows nothing",
      );
      assert.equal(before["eval/accuracy"], 0.5, "equal rewards count as half");
      for await (const _ of trainer.steps());
      const after = await trainer.evaluate();
      assert.equal(after["eval/accuracy"], 1);
      assert.ok((after["eval/loss"] as number) < 0.5, `${after["eval/loss"]}`);
      assert.ok((after["eval/margin"] as number) > 0.3);
      const unchanged = [...base.entries()].filter(([name]) => name !== "lm_head.weight");
      for (const [name, values] of unchanged) {
        const same =
          Buffer.compare(
            Buffer.from(values.buffer),
            Buffer.from((await model.readParameter(name)).buffer),
          ) === 0;
        assert.equal(same, trainable === "none", name);
      }
    });
  }

  it("metrics are those of the scores at each sequence's last token, margin and centring included", async () => {
    using model = await tinyModel(tokenizer);
    const margin = 0.3;
    const centerCoefficient = 0.05;
    const rows = preferenceRows.map((row) => ({ ...row, margin }));
    using trainer = new RewardModelTrainer({
      model,
      tokenizer,
      trainData: rows,
      evalData: rows,
      config: { head: { bias: false, initStd: 0.5, seed: 4 }, centerCoefficient, microBatchTokens: 40 },
    });
    const examples = trainer.evalExamples.filter((example) => "chosen" in example);
    const chosen = await trainer.rewardModel.score(examples.map((pair) => pair.chosen.tokens));
    const rejected = await trainer.rewardModel.score(examples.map((pair) => pair.rejected.tokens));
    const pairs = Array.from(chosen, (c, i) => [c, rejected[i] as number] as const);
    const mean = (read: (c: number, r: number) => number): number =>
      pairs.reduce((sum, [c, r]) => sum + read(c, r), 0) / pairs.length;
    const metrics = await trainer.evaluate();
    const close = (name: string, expected: number): void =>
      assert.ok(
        Math.abs((metrics[name] as number) - expected) < 1e-5,
        `${name}: ${metrics[name]}, expected ${expected}`,
      );
    close(
      "eval/loss",
      mean((c, r) => Math.log1p(Math.exp(-(c - r - margin))) + centerCoefficient * (c + r) ** 2),
    );
    close(
      "eval/accuracy",
      mean((c, r) => (c > r ? 1 : 0)),
    );
    close(
      "eval/margin",
      mean((c, r) => c - r),
    );
    close(
      "eval/mean_reward",
      mean((c, r) => (c + r) / 2),
    );
  });

  it("a saved reward model scores as it did", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await tinyModel(tokenizer, "none");
      using trainer = new RewardModelTrainer({
        model,
        tokenizer,
        trainData: TRAIN,
        config: { batchSize: 5, learningRate: 1e-2, lora: { r: 4, targetModules: "all-linear" } },
      });
      for await (const _ of trainer.steps());
      await trainer.save(directory);
      using loaded = await RewardModel.load(directory, { device: "cpu" });
      const sequences = trainer.trainExamples.flatMap((example) =>
        "chosen" in example ? [example.chosen.tokens, example.rejected.tokens] : [example.tokens],
      );
      const [ours, theirs] = [await trainer.rewardModel.score(sequences), await loaded.score(sequences)];
      ours.forEach((score, i) => {
        assert.ok(Math.abs(score - (theirs[i] as number)) < 1e-4 * Math.max(1, Math.abs(score)));
      });
    });
  });
});
