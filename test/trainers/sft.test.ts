import assert from "node:assert/strict";
import { join } from "node:path";
import {
  CausalLM,
  packSequences,
  readMetrics,
  type SFTConfig,
  SFTTrainer,
  Tokenizer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import {
  assertSameWeights,
  sftRows,
  tinyModel,
  tinyTokenizer,
  weightDistance,
  weightsOf,
} from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG: SFTConfig = { learningRate: 1e-2, batchSize: 8, numEpochs: 2, seed: 3 };

/** A model trained with these settings. */
async function trained(config: SFTConfig): Promise<CausalLM> {
  const model = await tinyModel(tokenizer);
  using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: { ...CONFIG, ...config } });
  for await (const _ of trainer.steps());
  return model;
}

describe("SFTTrainer", () => {
  it("lowers the loss, and the held-out loss with it", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = new SFTTrainer({
      model,
      tokenizer,
      trainData: sftRows.slice(4),
      evalData: sftRows.slice(0, 4),
      config: { ...CONFIG, numEpochs: 6 },
    });
    const before = (await trainer.evaluate())["eval/loss"] as number;
    const losses: number[] = [];
    for await (const { metrics } of trainer.steps()) losses.push(metrics.loss as number);
    const after = (await trainer.evaluate())["eval/loss"] as number;
    assert.equal(losses.length, 12);
    assert.ok((losses.at(-1) as number) < 0.5 * (losses[0] as number), `${losses}`);
    assert.ok(after < 0.6 * before, `held-out loss went from ${before} to ${after}`);
  });

  it("the loss is the mean over response tokens alone, the end token included", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, evalData: sftRows });
    let sum = 0;
    let count = 0;
    for (const example of trainer.trainExamples) {
      assert.equal(example.tokens.at(-1), tokenizer.eosTokenId);
      using pass = await model.forward(packSequences([{ tokens: example.tokens }]));
      const logProb = await pass.logProb();
      for (let t = example.promptLength; t < example.tokens.length; t++, count++) sum -= logProb[t] as number;
    }
    const { "eval/loss": loss } = await trainer.evaluate();
    assert.ok(Math.abs((loss as number) - sum / count) < 1e-5 * (sum / count));
  });

  it("accumulation over batches is one large batch, bit for bit", async () => {
    using accumulated = await trained({ batchSize: 2, gradientAccumulationSteps: 4 });
    using whole = await trained({ batchSize: 8, gradientAccumulationSteps: 1 });
    await assertSameWeights(accumulated, whole);
  });

  it("micro-batches change nothing but rounding", async () => {
    using cut = await trained({ microBatchTokens: 20, maxSteps: 4 });
    using whole = await trained({ microBatchTokens: 4096, maxSteps: 4 });
    const distance = await weightDistance(cut, whole);
    assert.ok(distance < 1e-4, `the weights differ by ${distance}`);
  });

  it("an update from a loss that is not finite is left out and counted", async () => {
    using model = await tinyModel(tokenizer);
    const name = "model.norm.weight";
    const norm = await model.readParameter(name);
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: CONFIG });
    await model.writeParameter(
      name,
      norm.map(() => Number.NaN),
    );
    await trainer.trainStep();
    assert.equal(trainer.skippedUpdates, 1);
    await model.writeParameter(name, norm);
    const before = await weightsOf(model);
    const { metrics } = await trainer.trainStep();
    assert.ok(Number.isFinite(metrics.loss) && Number.isFinite(metrics.gradNorm));
    assert.equal(trainer.skippedUpdates, 1);
    assert.notDeepEqual(
      await model.readParameter("model.embed_tokens.weight"),
      before.get("model.embed_tokens.weight"),
    );
  });

  it("a run that diverges says so when the first update is left out, and at its end", async () => {
    using model = await tinyModel(tokenizer);
    const config: SFTConfig = { ...CONFIG, learningRate: 3e38, warmupSteps: 0, maxSteps: 4 };
    using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config });
    const notes: string[] = [];
    const progress = { update() {}, note: (text: string) => void notes.push(text), finish() {} };
    await trainer.train({ progress });
    const warnings = notes.filter((note) => note.includes("warning"));
    assert.equal(warnings.length, 2, warnings.join("\n"));
    assert.match(
      warnings[0]!,
      /^sft: warning: an update of step \d was left out because its loss or gradient was not finite: lower/,
    );
    assert.match(warnings[1]!, new RegExp(`: ${trainer.skippedUpdates} updates in all were left out`));
  });

  it("LoRA trains the adapter alone, and saves merged weights that compute the same", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await tinyModel(tokenizer, "none");
      const before = await weightsOf(model);
      using trainer = new SFTTrainer({
        model,
        tokenizer,
        trainData: sftRows,
        config: { ...CONFIG, lora: { r: 4, alpha: 8, targetModules: "all-linear" } },
      });
      await trainer.train({ progress: { update() {}, note() {}, finish() {} } });
      for (const [name, values] of before) assert.deepEqual(await model.readParameter(name), values, name);
      await trainer.save(directory);
      using merged = await CausalLM.load(directory, { device: "cpu" });
      const batch = packSequences([{ tokens: trainer.trainExamples[0]!.tokens }]);
      using a = await model.forward(batch, { adapter: "default" });
      using b = await merged.forward(batch);
      using c = await model.forward(batch);
      const [adapted, loaded, base] = [await a.logProb(), await b.logProb(), await c.logProb()];
      adapted.forEach((value, t) => {
        assert.ok(Math.abs(value - (loaded[t] as number)) < 1e-4);
      });
      assert.ok(adapted.some((value, t) => Math.abs(value - (base[t] as number)) > 0.1));
      assert.deepEqual((await Tokenizer.load(directory)).encode("Ann wants"), tokenizer.encode("Ann wants"));
    });
  });

  it("records every evaluation, also between two steps that are logged", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      using model = await tinyModel(tokenizer);
      using trainer = new SFTTrainer({
        model,
        tokenizer,
        trainData: sftRows,
        evalData: sftRows.slice(0, 4),
        config: { ...CONFIG, maxSteps: 7, evalSteps: 3, loggingSteps: 5 },
        outputDir,
      });
      for await (const _ of trainer.steps());
      const records = readMetrics(join(outputDir, "metrics.jsonl"));
      const steps = records.map(({ step, metrics }) => [step, "eval/loss" in metrics]);
      assert.deepEqual(steps, [
        [3, true],
        [5, false],
        [6, true],
        [7, true],
      ]);
    });
  });

  it("writes metrics.jsonl with a record per step", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      using model = await tinyModel(tokenizer);
      using trainer = new SFTTrainer({
        model,
        tokenizer,
        trainData: sftRows,
        evalData: sftRows.slice(0, 4),
        config: { ...CONFIG, maxSteps: 5, evalSteps: 2, loggingSteps: 2, schedule: "constant" },
        outputDir,
      });
      for await (const _ of trainer.steps());
      const records = readMetrics(join(outputDir, "metrics.jsonl"));
      assert.deepEqual(
        records.map((record) => record.step),
        [2, 4, 5],
      );
      for (const { metrics } of records) {
        for (const name of ["loss", "lr", "gradNorm", "epoch", "tokens/s", "eval/loss"])
          assert.ok(Number.isFinite(metrics[name]), name);
        assert.equal(metrics.lr, 1e-2);
      }
    });
  });

  it("refuses settings out of their range and a model of which nothing can be trained", async () => {
    using model = await tinyModel(tokenizer);
    const make = (config: SFTConfig, of = model) =>
      new SFTTrainer({ model: of, tokenizer, trainData: sftRows, config });
    assert.throws(() => make({ batchSize: 0 }), { code: "ERR_RLHF_ARGUMENT", message: /config\.batchSize/ });
    assert.throws(() => make({ learningRate: Number.NaN }), { code: "ERR_RLHF_ARGUMENT" });
    assert.throws(() => make({ adapter: "no such" }), { code: "ERR_RLHF_UNKNOWN_NAME" });
    using frozen = await tinyModel(tokenizer, "none");
    assert.throws(() => make({}, frozen), { code: "ERR_RLHF_ARGUMENT", message: /frozen/ });
    const trainer = make({});
    await assert.rejects(trainer.save(), { code: "ERR_RLHF_ARGUMENT", message: /outputDir/ });
    trainer.dispose();
  });
});
