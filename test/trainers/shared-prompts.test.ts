import assert from "node:assert/strict";
import { join } from "node:path";
import {
  CPOTrainer,
  type DPOConfig,
  DPOTrainer,
  type Metrics,
  ORPOTrainer,
  type PairTrainerOptions,
} from "../../lib/index.ts";
import { readSafetensors, readTensor } from "../../lib/model/safetensors.ts";
import { PairBatch, sharedTokens } from "../../lib/trainers/pair-batch.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { TRAIN } from "./preference-support.ts";
import { tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();

interface Outcome {
  readonly before: Metrics;
  readonly step: Metrics;
  /** AdamW's first moments after one step, which are a tenth of the gradients. */
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

type Make = (options: PairTrainerOptions<DPOConfig>) => DPOTrainer | ORPOTrainer | CPOTrainer;

async function firstStep(make: Make, trainable: "all" | "none", config: DPOConfig): Promise<Outcome> {
  let outcome: Outcome | undefined;
  await withTemporaryDirectory(async (outputDir) => {
    using model = await tinyModel(tokenizer, trainable);
    const options = { model, tokenizer, trainData: TRAIN, evalData: TRAIN.slice(3, 9), outputDir };
    const settings = {
      batchSize: 8,
      learningRate: 1e-3,
      maxSteps: 1,
      saveSteps: 1,
      maxGradNorm: null,
      ...config,
    };
    using trainer = make({ ...options, config: settings });
    const before = await trainer.evaluate();
    const steps: Metrics[] = [];
    for await (const { metrics } of trainer.steps()) steps.push(metrics);
    const { entries } = await readSafetensors(join(outputDir, "checkpoint-1", "state.safetensors"));
    const gradients = new Map<string, Float32Array>();
    for (const [name, entry] of entries)
      if (name.startsWith("model/m/")) gradients.set(name, await readTensor(entry));
    outcome = { before, step: steps[0] as Metrics, gradients };
  });
  return outcome as Outcome;
}

/** Metrics of a step that its update has no part in. */
function beforeUpdate(metrics: Metrics): Metrics {
  const others = Object.entries(metrics).filter(
    ([name]) => !name.startsWith("eval/") && name !== "tokens/s" && name !== "gradNorm",
  );
  return Object.fromEntries(others);
}

const CASES: [string, Make, "all" | "none", DPOConfig][] = [
  ["DPO", (options) => new DPOTrainer(options), "all", {}],
  [
    "DPO of an adapter",
    (options) => new DPOTrainer(options),
    "none",
    { lora: { r: 4, targetModules: "all-linear" } },
  ],
  [
    "DPO with a likelihood, weighted pairs and long answers at half weight",
    (options) => new DPOTrainer(options),
    "all",
    { lossType: ["sigmoid", "sft"], useWeighting: true, ldAlpha: 0.5 },
  ],
  ["DPO with sorting", (options) => new DPOTrainer(options), "all", { lossType: "aot" }],
  [
    "ORPO with the prompts' likelihood",
    ({ config, ...options }) => new ORPOTrainer({ ...options, config: { ...config, nllOn: "all" } }),
    "all",
    {},
  ],
  ["CPO", (options) => new CPOTrainer(options as PairTrainerOptions<object>), "all", {}],
];

describe("prompts shared by the two answers of a pair", () => {
  for (const [what, make, trainable, config] of CASES) {
    it(`${what}: the same metrics bit for bit, and gradients within 1e-6`, async () => {
      const shared = await firstStep(make, trainable, { ...config, sharePrompts: true });
      const apart = await firstStep(make, trainable, { ...config, sharePrompts: false });
      assert.deepEqual(shared.before, apart.before);
      assert.deepEqual(beforeUpdate(shared.step), beforeUpdate(apart.step));
      const [norm, expected] = [shared.step.gradNorm as number, apart.step.gradNorm as number];
      assert.ok(Math.abs(norm - expected) < 1e-6 * expected, `${norm} and ${expected}`);
      assert.ok(apart.gradients.size > 0);
      for (const [name, values] of apart.gradients) {
        const own = shared.gradients.get(name) as Float32Array;
        const largest = values.reduce((size, value) => Math.max(size, Math.abs(value)), 0);
        const distance = values.reduce(
          (most, value, i) => Math.max(most, Math.abs(value - (own[i] as number))),
          0,
        );
        assert.ok(distance <= 1e-6 * Math.max(largest, 1e-3), `${name}: ${distance} of ${largest}`);
      }
    });
  }

  it("are in the batch once, and not where the two sequences begin otherwise", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = new DPOTrainer({ model, tokenizer, trainData: TRAIN });
    const pairs = trainer.trainExamples.slice(0, 3);
    const { promptLength } = pairs[0]!.chosen;
    const count = (sharePrompts: boolean): number =>
      new PairBatch(pairs, { nll: "none", sharePrompts }).batch.tokens.length;
    const saved = pairs.reduce((sum, pair) => sum + sharedTokens(pair), 0);
    assert.ok(promptLength > 0 && saved >= 3);
    assert.equal(count(false) - count(true), saved);
    const [pair] = pairs;
    const other = {
      ...pair!.rejected,
      tokens: pair!.rejected.tokens.map((token, t) => (t === 0 ? token + 1 : token)),
    };
    assert.equal(sharedTokens({ ...pair!, rejected: other }), 0);
  });
});
