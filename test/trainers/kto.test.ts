import assert from "node:assert/strict";
import { type KTOConfig, KTOTrainer, type Metrics, type UnpairedRow } from "../../lib/index.ts";
import { assertNear } from "../support/near.ts";
import { answerLogProb, HELD_OUT, notesOf, thumbsOf, UNPAIRED } from "./preference-support.ts";
import { assertSameWeights, preferenceRows, tinyModel, tinyTokenizer, weightDistance } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG: KTOConfig = { learningRate: 3e-3, batchSize: 8, numEpochs: 6, seed: 3 };
const LORA: KTOConfig = { learningRate: 2e-2, lora: { r: 4, targetModules: "all-linear" } };

describe("KTOTrainer", () => {
  for (const [what, trainable, config] of [
    ["all weights", "all", {}],
    ["an adapter", "none", LORA],
  ] as const) {
    it(`training ${what} makes desirable answers likelier and undesirable ones less`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      using trainer = new KTOTrainer({
        model,
        tokenizer,
        trainData: UNPAIRED,
        evalData: thumbsOf(HELD_OUT),
        config: { ...CONFIG, ...config },
      });
      const before = await trainer.evaluate();
      assert.equal(before["eval/loss"], 0.5, "1 − σ(0)");
      assert.equal(before["eval/kl"], 0);
      const steps: Metrics[] = [];
      for await (const { metrics } of trainer.steps()) steps.push(metrics);
      const after = await trainer.evaluate();
      assert.equal(steps[0]?.loss, 0.5);
      assert.ok((after["eval/loss"] as number) < 0.48, `${after["eval/loss"]}`);
      assert.ok((after["eval/rewards/margins"] as number) > 0.1);
      assert.ok((after["eval/kl"] as number) >= 0);
    });
  }

  it("loss and kl are those of the log-probs, prompts with the answer before theirs included", async () => {
    using model = await tinyModel(tokenizer);
    using refModel = await tinyModel(tokenizer);
    const name = "model.norm.weight";
    const norm = await refModel.readParameter(name);
    await refModel.writeParameter(
      name,
      norm.map((value, i) => value * (1 + 0.1 * (i % 3))),
    );
    const weights = { desirableWeight: 1.2, undesirableWeight: 0.7 };
    using trainer = new KTOTrainer({
      model,
      tokenizer,
      trainData: UNPAIRED,
      config: { ...CONFIG, ...weights, beta: 0.4, microBatchTokens: 40 },
      refModel,
    });
    const examples = trainer.trainExamples.slice(3, 9);
    const logRatio = async (example: (typeof examples)[0]): Promise<number> =>
      (await answerLogProb(model, example)) - (await answerLogProb(refModel, example));
    const mismatched = examples.map(({ tokens, promptLength }, i) => {
      const other = examples.at(i - 1)!;
      const answer = other.tokens.slice(other.promptLength);
      const joined = Int32Array.from([...tokens.slice(0, promptLength), ...answer]);
      return {
        ...other,
        tokens: joined,
        promptLength,
        lossMask: new Uint8Array(joined.length).fill(1, promptLength),
      };
    });
    let sum = 0;
    for (const example of mismatched) sum += await logRatio(example);
    const kl = Math.max(0, sum / mismatched.length);
    let loss = 0;
    for (const example of examples) {
      const sign = example.label ? 1 : -1;
      const value = 1 - 1 / (1 + Math.exp(-0.4 * sign * ((await logRatio(example)) - kl)));
      loss += (example.label ? 1.2 : 0.7) * value;
    }
    const { metrics } = await trainer.trainStep(examples);
    assertNear(metrics.kl, kl, 1e-4, "kl");
    assertNear(metrics.loss, loss / examples.length, 1e-4, "loss");
  });

  it("accumulation is one large batch, and micro-batches change rounding alone", async () => {
    const trained = async (config: KTOConfig) => {
      const model = await tinyModel(tokenizer);
      using trainer = new KTOTrainer({
        model,
        tokenizer,
        trainData: UNPAIRED,
        config: { ...CONFIG, numEpochs: 1, ...config },
      });
      for await (const _ of trainer.steps());
      return model;
    };
    using accumulated = await trained({ batchSize: 2, gradientAccumulationSteps: 4 });
    using whole = await trained({});
    using cut = await trained({ microBatchTokens: 30 });
    await assertSameWeights(accumulated, whole);
    const distance = await weightDistance(cut, whole);
    assert.ok(distance > 0 && distance < 1e-4, `the weights differ by ${distance}`);
  });

  it("says what to set when one kind of answers outweighs the other", async () => {
    const rows = preferenceRows.flatMap(({ prompt, chosen, rejected }, i): UnpairedRow[] => [
      { prompt, completion: chosen, label: true },
      ...(i % 4 === 0 ? [{ prompt, completion: rejected, label: false }] : []),
    ]);
    using model = await tinyModel(tokenizer);
    const warningsWith = async (config: KTOConfig): Promise<string> => {
      using trainer = new KTOTrainer({ model, tokenizer, trainData: rows, config });
      const { notes, progress } = notesOf();
      await trainer.prepare({ progress });
      return notes.join("\n");
    };
    assert.match(
      await warningsWith({}),
      /20 desirable and 5 undesirable answers weigh 4\.00 to 1; set desirableWeight between 0\.250 and 0\.333/,
    );
    assert.equal(await warningsWith({ desirableWeight: 0.3 }), "");
  });

  it("refuses steps of a single answer, and rows without a label", async () => {
    using model = await tinyModel(tokenizer);
    const make = (config: KTOConfig) => new KTOTrainer({ model, tokenizer, trainData: UNPAIRED, config });
    assert.throws(() => make({ batchSize: 1 }), { code: "ERR_RLHF_ARGUMENT", message: /must be over 1/ });
    make({ batchSize: 1, gradientAccumulationSteps: 2 }).dispose();
    assert.throws(() => make({ desirableWeight: 0 }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /desirableWeight/,
    });
    const rows = [{ prompt: "x", completion: " y" } as UnpairedRow];
    assert.throws(() => new KTOTrainer({ model, tokenizer, trainData: rows }), {
      code: "ERR_RLHF_DATA",
      message: /row 0: "label" must be true or false/,
    });
  });
});
