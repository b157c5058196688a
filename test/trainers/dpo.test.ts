import assert from "node:assert/strict";
import { join } from "node:path";
import {
  CausalLM,
  type DPOConfig,
  DPOTrainer,
  type DPOTrainerOptions,
  type Metrics,
  SFTTrainer,
} from "../../lib/index.ts";
import { readSafetensors, readTensor } from "../../lib/model/safetensors.ts";
import { DPO_LOSSES } from "../../lib/trainers/dpo-losses.ts";
import { assertNear } from "../support/near.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { answerLogProb, HELD_OUT, LOG_2, TRAIN } from "./preference-support.ts";
import {
  assertSameWeights,
  sftRows,
  tinyModel,
  tinyTokenizer,
  weightDistance,
  weightsOf,
} from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG: DPOConfig = { learningRate: 3e-3, batchSize: 4, numEpochs: 4, seed: 3 };
const LORA: DPOConfig = { learningRate: 1e-2, lora: { r: 4, targetModules: "all-linear" } };

function make(model: CausalLM, config: DPOConfig = {}, more: Partial<DPOTrainerOptions> = {}): DPOTrainer {
  const data = { trainData: TRAIN, evalData: HELD_OUT };
  return new DPOTrainer({ model, tokenizer, ...data, config: { ...CONFIG, ...config }, ...more });
}

async function trained(config: DPOConfig, trainable: "all" | "none" = "all"): Promise<CausalLM> {
  const model = await tinyModel(tokenizer, trainable);
  using trainer = make(model, config);
  for await (const _ of trainer.steps());
  return model;
}

function close(actual: number | undefined, expected: number, what: string, tolerance = 1e-5): void {
  assertNear(actual, expected, tolerance * Math.max(1, Math.abs(expected)), what);
}

describe("DPOTrainer", () => {
  const kinds: [string, "all" | "none", DPOConfig, (model: CausalLM) => Partial<DPOTrainerOptions>][] = [
    ["a copy of the weights", "all", {}, () => ({})],
    ["the adapter switched off", "none", LORA, () => ({})],
    ["log-probs measured before", "all", { precomputeRefLogProbs: true }, () => ({})],
    [
      "a copy that follows the policy",
      "none",
      { ...LORA, syncRefModel: true, refModelSyncSteps: 100 },
      () => ({}),
    ],
  ];
  for (const [what, trainable, config] of kinds) {
    it(`with ${what} as reference: starts from log 2 exactly, learns, and generalises`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      using trainer = make(model, config);
      const before = await trainer.evaluate();
      assert.equal(before["eval/loss"], LOG_2);
      assert.equal(before["eval/rewards/margins"], 0);
      const steps: Metrics[] = [];
      for await (const { metrics } of trainer.steps()) steps.push(metrics);
      assert.equal(steps[0]?.loss, LOG_2);
      const after = await trainer.evaluate();
      assert.ok((steps.at(-1)?.loss as number) < 0.6, `${steps.at(-1)?.loss}`);
      assert.equal(after["eval/rewards/accuracies"], 1);
      assert.ok((after["eval/loss"] as number) < 0.65, `${after["eval/loss"]}`);
      for (const metrics of steps)
        for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
    });
  }

  it("an adapter that had been trained before is compared with a frozen copy of itself", async () => {
    using model = await tinyModel(tokenizer, "none");
    using sft = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: { ...LORA, maxSteps: 4 } });
    for await (const _ of sft.steps());
    using trainer = make(model, { ...CONFIG, learningRate: 1e-2 });
    const [pair] = trainer.evalExamples;
    const start = await answerLogProb(model, pair!.chosen, "default");
    assert.equal((await trainer.evaluate())["eval/loss"], LOG_2);
    assert.deepEqual([...model.adapters.keys()].length, 2, "the copy is an adapter");
    for await (const _ of trainer.steps());
    const moved = (await answerLogProb(model, pair!.chosen, "default")) - start;
    const { metrics } = await trainer.trainStep([pair!]);
    close(metrics["rewards/chosen"], 0.1 * moved, "reward against the adapter as it was", 1e-4);
    trainer.dispose();
    assert.deepEqual([...model.adapters.keys()], ["default"]);
  });

  it("metrics are those of log-probs against a reference model of the caller's", async () => {
    using model = await tinyModel(tokenizer);
    using refModel = await trained({ maxSteps: 3 });
    using trainer = make(model, { beta: 0.3, microBatchTokens: 40 }, { refModel });
    const pairs = await Promise.all(
      trainer.evalExamples.map(async ({ chosen, rejected }) => ({
        chosen: await answerLogProb(model, chosen),
        rejected: await answerLogProb(model, rejected),
        refChosen: await answerLogProb(refModel, chosen),
        refRejected: await answerLogProb(refModel, rejected),
      })),
    );
    const mean = (read: (pair: (typeof pairs)[0]) => number): number =>
      pairs.reduce((sum, pair) => sum + read(pair), 0) / pairs.length;
    const a = (pair: (typeof pairs)[0]): number => 0.3 * (pair.chosen - pair.refChosen);
    const c = (pair: (typeof pairs)[0]): number => 0.3 * (pair.rejected - pair.refRejected);
    const metrics = await trainer.evaluate();
    const expected = {
      loss: mean((pair) => Math.log1p(Math.exp(c(pair) - a(pair)))),
      "rewards/chosen": mean(a),
      "rewards/rejected": mean(c),
      "rewards/margins": mean((pair) => a(pair) - c(pair)),
      "rewards/accuracies": mean((pair) => (a(pair) > c(pair) ? 1 : 0)),
      "logps/chosen": mean((pair) => pair.chosen),
      "logps/rejected": mean((pair) => pair.rejected),
    };
    for (const [name, value] of Object.entries(expected)) close(metrics[`eval/${name}`], value, name);
    assert.ok((metrics["eval/entropy"] as number) > 1);
  });

  for (const lossType of DPO_LOSSES) {
    it(`trains with the loss ${lossType}`, async () => {
      using model = await tinyModel(tokenizer);
      const before = await weightsOf(model);
      using trainer = make(model, { lossType, ...(lossType === "exo_pair" ? { labelSmoothing: 1e-3 } : {}) });
      const { metrics } = await trainer.trainStep();
      for (const [name, value] of Object.entries(metrics)) assert.ok(Number.isFinite(value), name);
      assert.ok((metrics.gradNorm as number) > 0);
      const name = "model.embed_tokens.weight";
      assert.notDeepEqual(await model.readParameter(name), before.get(name));
    });
  }

  const WINDOWS: [string, DPOConfig][] = [
    ["one loss", {}],
    ["a likelihood beside it", { lossType: ["sigmoid", "sft"], lossWeights: [1, 0.3] }],
    ["sorting over the batch", { lossType: "aot" }],
    ["sorting of both sides", { lossType: ["aot_unpaired", "sft"] }],
    ["weighted pairs, long answers at half weight", { useWeighting: true, ldAlpha: 0.5 }],
  ];
  for (const [what, config] of WINDOWS) {
    it(`with ${what}: accumulation is one large batch, and micro-batches change rounding alone`, async () => {
      const steps = { ...config, numEpochs: 1 };
      using accumulated = await trained({ ...steps, batchSize: 2, gradientAccumulationSteps: 4 });
      using whole = await trained({ ...steps, batchSize: 8 });
      await assertSameWeights(accumulated, whole);
      using cut = await trained({ ...steps, batchSize: 8, microBatchTokens: 40 });
      const distance = await weightDistance(cut, whole);
      assert.ok(distance > 0 && distance < 1e-4, `the weights differ by ${distance}`);
    });
  }

  it("several losses add up with their weights, and are told apart", async () => {
    using model = await tinyModel(tokenizer);
    using both = make(model, { lossType: ["sigmoid", "ipo", "sft"], lossWeights: [1, 0.01, 0.5] });
    const metrics = await both.evaluate();
    const parts =
      (metrics["eval/loss/sigmoid"] as number) +
      0.01 * (metrics["eval/loss/ipo"] as number) +
      0.5 * (metrics["eval/nll_loss"] as number);
    close(metrics["eval/loss"], parts, "loss");
    close(metrics["eval/loss/ipo"], 25, "ipo at the start is (1/2β)²");
  });

  for (const [what, trainable, config] of [
    ["all weights", "all", {}],
    ["an adapter", "none", LORA],
  ] as const) {
    it(`the reference follows ${what} every refModelSyncSteps`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      const sync = { syncRefModel: true, refModelSyncSteps: 2, refModelMixupAlpha: 1 };
      using trainer = make(model, { ...config, ...sync });
      const margins: number[] = [];
      for await (const { step } of trainer.steps()) {
        margins.push(Math.abs((await trainer.evaluate())["eval/rewards/margins"] as number));
        if (step === 4) break;
      }
      // With alpha 1 it is the policy of that step; merging an adapter into its weights rounds.
      const [first, second, third, fourth] = margins as [number, number, number, number];
      assert.ok(first > 1e-3 && third > 1e-3, `${margins}`);
      assert.ok(second < 1e-5 && fourth < 1e-5, `${margins}`);
    });
  }

  it("a reference that follows at half speed is half-way between where it was and the policy", async () => {
    using model = await tinyModel(tokenizer);
    const before = await weightsOf(model);
    await withTemporaryDirectory(async (outputDir) => {
      const sync = { syncRefModel: true, refModelSyncSteps: 1, refModelMixupAlpha: 0.5 };
      using trainer = make(model, { ...sync, maxSteps: 1, saveSteps: 1 }, { outputDir });
      for await (const _ of trainer.steps());
      const { entries } = await readSafetensors(join(outputDir, "checkpoint-1", "state.safetensors"));
      const name = "model.embed_tokens.weight";
      const kept = await readTensor(entries.get(`reference/weight/${name}`)!);
      const [start, policy] = [before.get(name)!, await model.readParameter(name)];
      kept.forEach((value, i) => {
        assert.equal(value, Math.fround(0.5 * policy[i]! + 0.5 * start[i]!));
      });
      assert.notDeepEqual(kept, start);
    });
  });

  it("warns once, with the cure, when chosen answers become less likely while the margin grows", async () => {
    using model = await tinyModel(tokenizer);
    // The answers are swapped in every other respect but their ends, so that both are pushed down.
    const rows = TRAIN.map((row) => ({
      ...row,
      chosen: row.rejected,
      rejected: `${row.rejected} ${row.chosen}`,
    }));
    using trainer = new DPOTrainer({
      model,
      tokenizer,
      trainData: rows,
      config: { ...CONFIG, learningRate: 1e-2, lossType: "apo_down", numEpochs: 20 },
    });
    const notes: string[] = [];
    await trainer.train({ progress: { update() {}, note: (text) => void notes.push(text), finish() {} } });
    const warnings = notes.filter((note) => /log-prob of chosen answers has fallen/.test(note));
    assert.equal(warnings.length, 1, notes.join("\n"));
    assert.match(warnings[0]!, /dpo: warning: .*fallen by \d.* while the margin grows .*raise beta/);
  });

  it("says so when the loss stands at log 2", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = make(model, { learningRate: 1e-9, numEpochs: 14 });
    const notes: string[] = [];
    await trainer.train({ progress: { update() {}, note: (text) => void notes.push(text), finish() {} } });
    assert.equal(notes.filter((note) => /stood at log 2 = 0\.693 for 50 steps/.test(note)).length, 1);
  });

  it("refuses settings and data that make no sense, before the model is touched", async () => {
    using model = await tinyModel(tokenizer, "none");
    using other = await tinyModel(tokenizer);
    const cases: [DPOConfig, RegExp][] = [
      [{ beta: 0 }, /config\.beta must be a number over 0, got 0/],
      [{ beta: -1 }, /config\.beta/],
      [{ lossType: "sigmod" as "sigmoid" }, /config\.lossType must be one of "sigmoid", "hinge", .*"sft"/],
      [{ lora: { dropout: 0.1 } }, /config\.lora\.dropout/],
      [{ lossType: [] }, /config\.lossType/],
      [{ lossType: ["sigmoid", "sft"], lossWeights: [1] }, /a weight for each of the 2 losses/],
      [{ lossType: ["ipo", "sft", "ipo"] }, /names ipo twice/],
      [{ lossType: "exo_pair" }, /labelSmoothing must be over 0/],
      [{ lossType: "aot", useWeighting: true }, /useWeighting has no meaning with the loss aot/],
      [{ labelSmoothing: 0.5 }, /config\.labelSmoothing must be a number from 0 to below 0\.5/],
      [{ lossType: "nca_pair", fDivergence: "js_divergence" }, /nca_pair is defined for "reverse_kl" alone/],
      [
        { referenceFree: true, precomputeRefLogProbs: true },
        /referenceFree and precomputeRefLogProbs exclude/,
      ],
      [{ syncRefModel: true, precomputeRefLogProbs: true }, /exclude each other/],
      [{ loss_type: "ipo" } as DPOConfig, /unknown setting "loss_type" \(did you mean "lossType"\?\)/],
    ];
    for (const [config, message] of cases)
      assert.throws(() => make(model, { ...LORA, ...config }), { code: "ERR_RLHF_ARGUMENT", message });
    assert.throws(() => make(other, {}, { refModel: other }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /itself/,
    });
    using larger = await CausalLM.create({ ...model.hfConfig, num_hidden_layers: 3 }, { device: "cpu" });
    make(model, LORA, { refModel: larger }).dispose();
    model.removeAdapter("default");
    assert.throws(() => make(model, { ...LORA, syncRefModel: true }, { refModel: larger }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /the same names and shapes/,
    });
    assert.throws(() => make(model, LORA, { trainData: [] }), { code: "ERR_RLHF_DATA", message: /no row/ });
    const same = TRAIN.map((row) => ({ ...row, rejected: row.chosen }));
    assert.throws(() => make(model, LORA, { trainData: same }), {
      code: "ERR_RLHF_DATA",
      message: /the chosen answer is the rejected one too/,
    });
    const ties = TRAIN.map((row, i) => ({ ...row, tie: i % 4 === 0 }));
    assert.throws(() => make(model, LORA, { trainData: ties }), {
      code: "ERR_RLHF_DATA",
      message: /4 of 20 .*ties/,
    });
    assert.equal(model.adapters.size, 0);
  });
});
