import assert from "node:assert/strict";
import { mkdir, readdir, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type CausalLM,
  DPOTrainer,
  readMetrics,
  type SFTConfig,
  SFTTrainer,
  type TrainOptions,
} from "../../lib/index.ts";
import { findCheckpoint } from "../../lib/trainers/checkpoint.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { assertSameWeights, preferenceRows, sftRows, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const CONFIG: SFTConfig = {
  learningRate: 1e-2,
  batchSize: 4,
  numEpochs: 2,
  warmupSteps: 3,
  schedule: "cosine",
  weightDecay: 0.01,
};

/** Trains in `outputDir`, as a process of its own would; `stopAfter` raises the abort signal in that step. */
async function run(
  outputDir: string,
  options: { config?: SFTConfig; stopAfter?: number; train?: TrainOptions } = {},
): Promise<CausalLM> {
  const model = await tinyModel(tokenizer);
  const config = { ...CONFIG, ...options.config };
  using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config, outputDir });
  const controller = new AbortController();
  const iterate = async (): Promise<void> => {
    for await (const { step } of trainer.steps({ ...options.train, signal: controller.signal })) {
      if (step + 1 === options.stopAfter) controller.abort();
    }
  };
  if (options.stopAfter === undefined) await iterate();
  else await assert.rejects(iterate(), { code: "ERR_RLHF_ABORTED" });
  return model;
}

const checkpoints = async (directory: string): Promise<string[]> =>
  (await readdir(directory)).filter((name) => name.includes("checkpoint")).sort();

describe("checkpoints", () => {
  it("a run that was aborted and resumed ends in the same bits as one left alone", async () => {
    await withTemporaryDirectory(async (directory) => {
      const [cut, whole] = [join(directory, "cut"), join(directory, "whole")];
      using half = await run(cut, { stopAfter: 4 });
      assert.deepEqual(await checkpoints(cut), ["checkpoint-4"]);
      using resumed = await run(cut);
      using uninterrupted = await run(whole);
      await assertSameWeights(resumed, uninterrupted);
      await assert.rejects(assertSameWeights(half, uninterrupted));
      const steps = readMetrics(join(cut, "metrics.jsonl")).map((record) => record.step);
      assert.deepEqual(steps, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    });
  });

  it("keeps the newest saveTotalLimit, and sweeps up what a killed run left", async () => {
    await withTemporaryDirectory(async (directory) => {
      await mkdir(join(directory, ".checkpoint-1.tmp"));
      using _model = await run(directory, { config: { saveSteps: 2, saveTotalLimit: 3 } });
      assert.deepEqual(await checkpoints(directory), ["checkpoint-10", "checkpoint-6", "checkpoint-8"]);
    });
  });

  it("a run that starts anew keeps its own checkpoints, not later ones of the run before", async () => {
    await withTemporaryDirectory(async (directory) => {
      using _before = await run(directory, { config: { saveSteps: 2 } });
      assert.deepEqual(await checkpoints(directory), ["checkpoint-10", "checkpoint-8"]);
      const config = { learningRate: 1e-3, saveSteps: 3 };
      using _anew = await run(directory, { config, stopAfter: 3, train: { resume: false } });
      assert.deepEqual(await checkpoints(directory), ["checkpoint-3"]);
    });
  });

  it("a damaged checkpoint is passed over for the one before it", async () => {
    await withTemporaryDirectory(async (directory) => {
      using _model = await run(directory, { config: { saveSteps: 2 }, stopAfter: 6 });
      await truncate(join(directory, "checkpoint-6", "state.safetensors"), 1000);
      assert.equal((await findCheckpoint(directory))?.state.step, 4);
      await writeFile(join(directory, "checkpoint-4", "trainer.json"), "{");
      assert.equal(await findCheckpoint(directory), null);
    });
  });

  it("another run's checkpoint is refused with what differs, unless resume is false", async () => {
    await withTemporaryDirectory(async (directory) => {
      using _model = await run(directory, { stopAfter: 2 });
      await assert.rejects(run(directory, { config: { learningRate: 1e-3 } }), {
        code: "ERR_RLHF_CHECKPOINT",
        message: /learningRate was 0\.01 and is 0\.001/,
      });
      using _anew = await run(directory, { config: { learningRate: 1e-3 }, train: { resume: false } });
      const [first] = readMetrics(join(directory, "metrics.jsonl"));
      assert.equal(first?.step, 1);
    });
  });

  it("is refused when the model is another than the run began with, which is named", async () => {
    await withTemporaryDirectory(async (directory) => {
      using _model = await run(directory, { stopAfter: 2 });
      using other = await tinyModel(tokenizer);
      const name = "model.norm.weight";
      const values = await other.readParameter(name);
      values[0] = (values[0] as number) + 1e-6;
      await other.writeParameter(name, values);
      const options = { tokenizer, trainData: sftRows, config: CONFIG, outputDir: directory };
      using trainer = new SFTTrainer({ ...options, model: other });
      await assert.rejects(trainer.train(), {
        code: "ERR_RLHF_CHECKPOINT",
        message:
          /a model \(made from a configuration\) has other weights than the one that the run began with/,
      });
      using same = await tinyModel(tokenizer);
      using goesOn = new SFTTrainer({ ...options, model: same });
      assert.equal((await goesOn.steps().next()).value?.step, 3);
    });
  });

  it("a frozen base and a reference count as models of the run", async () => {
    await withTemporaryDirectory(async (directory) => {
      const lora = { r: 2 };
      const attempt = async (norm: number, referenceNorm: number, stop: boolean): Promise<void> => {
        using model = await tinyModel(tokenizer, "none");
        using refModel = await tinyModel(tokenizer, "none");
        for (const [changed, value] of [
          [model, norm],
          [refModel, referenceNorm],
        ] as const) {
          const weights = await changed.readParameter("model.norm.weight");
          await changed.writeParameter("model.norm.weight", weights.fill(value));
        }
        const config = { batchSize: 4, numEpochs: 2, saveSteps: 1, lora };
        using trainer = new DPOTrainer({
          model,
          refModel,
          tokenizer,
          trainData: preferenceRows,
          config,
          outputDir: directory,
        });
        for await (const _ of trainer.steps()) if (stop) break;
      };
      await attempt(1, 1, true);
      await assert.rejects(attempt(2, 1, false), { code: "ERR_RLHF_CHECKPOINT" });
      await assert.rejects(attempt(1, 2, false), { code: "ERR_RLHF_CHECKPOINT" });
      await attempt(1, 1, false);
    });
  });

  it("how a run is watched may change when it is resumed", async () => {
    await withTemporaryDirectory(async (directory) => {
      using _model = await run(directory, { stopAfter: 2 });
      using _resumed = await run(directory, { config: { loggingSteps: 4, saveSteps: 5 } });
      assert.deepEqual(await checkpoints(directory), ["checkpoint-10", "checkpoint-5"]);
    });
  });

  it("a signal raised beforehand stops before the first step", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await tinyModel(tokenizer);
      using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, outputDir: directory });
      await assert.rejects(trainer.train({ signal: AbortSignal.abort() }), { code: "ERR_RLHF_ABORTED" });
      assert.equal(trainer.step, 0);
    });
  });
});
