import assert from "node:assert/strict";
import {
  CausalLM,
  DPOTrainer,
  loadPreferences,
  type Metrics,
  type PreferenceRow,
  RewardModelTrainer,
  SFTTrainer,
  splitDataset,
  Tokenizer,
} from "../../lib/index.ts";
import { describeWithShared, sharedFile } from "../data/support.ts";

const MAX_LENGTH = 192;

describeWithShared("learning from HH-RLHF on a pretrained model", function () {
  this.timeout(300_000);
  let tokenizer: Tokenizer;
  let rows: readonly PreferenceRow[];
  let split: { train: PreferenceRow[]; eval: PreferenceRow[] };
  let modelPath: string;

  before(async () => {
    modelPath = sharedFile("models/stories260k");
    const dataPath = sharedFile("data/hh-rlhf/harmless-test.jsonl.gz");
    tokenizer = await Tokenizer.load(modelPath);
    rows = await loadPreferences(dataPath);
    split = pairsFitting(MAX_LENGTH, 240);
  });

  /** The first pairs of dialogues that fit: the model spells most words of this data in single letters. */
  function pairsFitting(maxLength: number, count: number): { train: PreferenceRow[]; eval: PreferenceRow[] } {
    const short = rows.filter(({ prompt, chosen, rejected }) =>
      [chosen, rejected].every((answer) => tokenizer.encode(`${prompt}${answer}`).length < maxLength),
    );
    return splitDataset(short.slice(0, count), { evalFraction: 0.2, seed: 1, groupOf: (row) => row.prompt });
  }

  it("SFT on chosen answers lowers training and held-out loss", async () => {
    const toSft = ({ prompt, chosen }: PreferenceRow) => ({ prompt, response: chosen });
    using model = await CausalLM.load(modelPath, { device: "cpu", trainable: "all" });
    using trainer = new SFTTrainer({
      model,
      tokenizer,
      trainData: split.train.map(toSft),
      evalData: split.eval.map(toSft),
      config: { batchSize: 16, numEpochs: 3, learningRate: 1e-3, warmupSteps: 5, maxLength: MAX_LENGTH },
    });
    const before = await trainer.evaluate();
    const losses: number[] = [];
    for await (const { metrics } of trainer.steps()) losses.push(metrics.loss as number);
    const after = await trainer.evaluate();
    console.log(`      held-out loss ${before["eval/loss"]?.toFixed(3)} → ${after["eval/loss"]?.toFixed(3)}`);
    assert.ok((losses.at(-1) as number) < 0.75 * (losses[0] as number), "training loss falls by a quarter");
    assert.ok(
      (after["eval/loss"] as number) < 0.8 * (before["eval/loss"] as number),
      "held-out loss falls by a fifth",
    );
  });

  // Few dialogues fit, so the beginnings of the others are cut off.
  it("a reward model trained for half an epoch judges unseen dialogues better than chance", async () => {
    const pairs = splitDataset(rows, { evalFraction: 0.25, seed: 1, groupOf: (row) => row.prompt });
    using model = await CausalLM.load(modelPath, { device: "cpu", trainable: "all" });
    using trainer = new RewardModelTrainer({
      model,
      tokenizer,
      trainData: pairs.train,
      evalData: pairs.eval,
      config: {
        batchSize: 16,
        maxSteps: 48,
        learningRate: 6e-4,
        warmupSteps: 10,
        maxLength: MAX_LENGTH,
        overlong: "truncate-prompt",
        centerCoefficient: 0.01,
      },
    });
    let last: Metrics = {};
    for await (const { metrics } of trainer.steps()) last = metrics;
    const loss = last["eval/loss"] as number;
    const accuracy = last["eval/accuracy"] as number;
    const held = trainer.evalExamples.length;
    console.log(
      `      ${held} pairs held out: loss ${loss.toFixed(3)}, accuracy ${accuracy.toFixed(3)}, calibration error ${last["eval/ece"]?.toFixed(3)}`,
    );
    assert.ok(loss < 0.99 * Math.LN2, `loss ${loss}, and a head that knows nothing has ${Math.LN2}`);
    assert.ok((accuracy - 0.5) * 2 * Math.sqrt(held) > 2, "two standard errors better than chance");
    assert.ok((last["eval/ece"] as number) < 0.1);
    assert.equal(trainer.calibration?.pairs, held);
  });

  it("DPO comes to prefer chosen answers, of dialogues it has not seen too", async () => {
    const { train, eval: held } = pairsFitting(224, 480);
    using model = await CausalLM.load(modelPath, { device: "cpu", trainable: "all" });
    using trainer = new DPOTrainer({
      model,
      tokenizer,
      trainData: train,
      evalData: held,
      config: { batchSize: 16, numEpochs: 2, learningRate: 5e-5, warmupSteps: 5, maxLength: 224 },
    });
    const steps: Metrics[] = [];
    for await (const { metrics } of trainer.steps()) steps.push(metrics);
    const last = steps.at(-1) as Metrics;
    const accuracy = last["eval/rewards/accuracies"] as number;
    const loss = last["eval/loss"] as number;
    const trained = steps.slice(-5).reduce((sum, metrics) => sum + (metrics.loss as number), 0) / 5;
    console.log(
      `      ${held.length} pairs held out: loss ${Math.LN2.toFixed(3)} → ${loss.toFixed(3)}, accuracy ${accuracy.toFixed(2)}; training loss ${trained.toFixed(3)}`,
    );
    for (const metrics of steps)
      for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
    assert.ok(trained < 0.85 * Math.LN2, `training loss ${trained}`);
    assert.ok(loss < 0.99 * Math.LN2, `held-out loss ${loss}`);
    assert.ok(accuracy > 0.55, `held-out accuracy ${accuracy}`);
    assert.ok((last["eval/rewards/margins"] as number) > 0.03);
  });
});
