import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir, readFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import {
  type CausalLM,
  type DPOConfig,
  DPOTrainer,
  KTOTrainer,
  ORPOTrainer,
  type PreferenceRow,
  readMetrics,
  SimPOTrainer,
} from "../../lib/index.ts";
import { readSafetensors, readTensor } from "../../lib/model/safetensors.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { HELD_OUT, LOG_2, notesOf, TRAIN, UNPAIRED } from "./preference-support.ts";
import { assertSameWeights, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const COMMON = {
  learningRate: 1e-2,
  batchSize: 4,
  numEpochs: 2,
  warmupSteps: 2,
  schedule: "cosine" as const,
};
const LORA = { lora: { r: 4 } };

interface Kind {
  readonly what: string;
  readonly trainable: "all" | "none";
  readonly make: (model: CausalLM, outputDir: string) => DPOTrainer | KTOTrainer | ORPOTrainer | SimPOTrainer;
}

function dpo(what: string, trainable: "all" | "none", config: DPOConfig): Kind {
  const make = (model: CausalLM, outputDir: string): DPOTrainer =>
    new DPOTrainer({
      model,
      tokenizer,
      trainData: TRAIN,
      evalData: HELD_OUT,
      config: { ...COMMON, ...config },
      outputDir,
    });
  return { what, trainable, make };
}

const KINDS: Kind[] = [
  dpo("DPO of all weights", "all", {}),
  dpo("DPO of an adapter", "none", LORA),
  dpo("DPO with a measured reference", "all", { precomputeRefLogProbs: true }),
  dpo("DPO whose reference follows the policy", "all", { syncRefModel: true, refModelSyncSteps: 3 }),
  dpo("DPO whose reference follows an adapter", "none", {
    ...LORA,
    syncRefModel: true,
    refModelSyncSteps: 2,
  }),
  dpo("DPO with losses of the whole batch", "all", { lossType: ["aot", "sft"], microBatchTokens: 60 }),
  {
    what: "KTO",
    trainable: "none",
    make: (model, outputDir) =>
      new KTOTrainer({ model, tokenizer, trainData: UNPAIRED, config: { ...COMMON, ...LORA }, outputDir }),
  },
  {
    what: "ORPO",
    trainable: "all",
    make: (model, outputDir) =>
      new ORPOTrainer({ model, tokenizer, trainData: TRAIN, config: COMMON, outputDir }),
  },
  {
    what: "SimPO",
    trainable: "none",
    make: (model, outputDir) =>
      new SimPOTrainer({ model, tokenizer, trainData: TRAIN, config: { ...COMMON, ...LORA }, outputDir }),
  },
];

/** Trains in `outputDir`, as a process of its own would; `stopAfter` raises the abort signal in that step. */
async function run({ make, trainable }: Kind, outputDir: string, stopAfter?: number): Promise<CausalLM> {
  const model = await tinyModel(tokenizer, trainable);
  using trainer = make(model, outputDir);
  const controller = new AbortController();
  const iterate = async (): Promise<void> => {
    for await (const { step } of trainer.steps({ signal: controller.signal }))
      if (step + 1 === stopAfter) controller.abort();
  };
  if (stopAfter === undefined) await iterate();
  else await assert.rejects(iterate(), { code: "ERR_RLHF_ABORTED" });
  return model;
}

describe("checkpoints of preference training", () => {
  for (const kind of KINDS) {
    it(`${kind.what}: a run that was aborted and resumed ends in the same bits as one left alone`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const [cut, whole] = [join(directory, "cut"), join(directory, "whole")];
        using half = await run(kind, cut, 4);
        using resumed = await run(kind, cut);
        using uninterrupted = await run(kind, whole);
        await assertSameWeights(resumed, uninterrupted);
        await assert.rejects(assertSameWeights(half, uninterrupted));
        const [ours, theirs] = [cut, whole].map((run) =>
          readMetrics(join(run, "metrics.jsonl")).map(({ step, metrics }) => [
            step,
            metrics.loss,
            metrics["rewards/chosen"],
          ]),
        );
        assert.deepEqual(ours, theirs);
      });
    });
  }
});

describe("the measured reference", () => {
  const precompute =
    (config: DPOConfig = {}, data: readonly PreferenceRow[] = TRAIN) =>
    (model: CausalLM, outputDir: string): DPOTrainer =>
      new DPOTrainer({
        model,
        tokenizer,
        trainData: data,
        evalData: HELD_OUT,
        config: { ...COMMON, precomputeRefLogProbs: true, ...config },
        outputDir,
      });

  const filesOf = async (outputDir: string): Promise<string[]> =>
    existsSync(join(outputDir, "reference")) ? (await readdir(join(outputDir, "reference"))).sort() : [];

  it("is kept on disk and taken from there by later runs, unless model, data or what is measured differ", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      const notesAfter = async (
        make: (model: CausalLM, outputDir: string) => DPOTrainer,
        change?: (model: CausalLM) => Promise<void>,
      ): Promise<string> => {
        using model = await tinyModel(tokenizer);
        await change?.(model);
        using trainer = make(model, outputDir);
        const { notes, progress } = notesOf();
        await trainer.prepare({ progress });
        assert.equal((await trainer.evaluate())["eval/loss"], LOG_2);
        return notes.join("\n");
      };
      assert.match(await notesAfter(precompute()), /of 20 of 20 examples measured/);
      const [file] = await filesOf(outputDir);
      assert.match(await notesAfter(precompute()), /log-probs of 20 examples taken from/);
      assert.match(await notesAfter(precompute({ learningRate: 1, beta: 0.5 })), /taken from/);
      assert.deepEqual(await filesOf(outputDir), [file]);

      const others: [string, Parameters<typeof notesAfter>][] = [
        ["ldAlpha", [precompute({ ldAlpha: 0.5 })]],
        ["data", [precompute({}, TRAIN.slice(1))]],
        [
          "weights",
          [
            precompute(),
            async (model) => {
              const norm = await model.readParameter("model.norm.weight");
              await model.writeParameter(
                "model.norm.weight",
                norm.map((value) => 1.5 * value),
              );
            },
          ],
        ],
      ];
      for (const [what, args] of others) assert.match(await notesAfter(...args), /measured/, what);
      assert.equal((await filesOf(outputDir)).length, 4);
    });
  });

  it("goes on where it was interrupted, and is measured again when its file is damaged", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      using model = await tinyModel(tokenizer);
      using trainer = precompute({ microBatchTokens: 60 })(model, outputDir);
      let looks = 0;
      const signal = {
        get aborted() {
          return ++looks > 4;
        },
      } as AbortSignal;
      await assert.rejects(trainer.prepare({ signal }), { code: "ERR_RLHF_ABORTED" });
      const [name] = await filesOf(outputDir);
      const file = join(outputDir, "reference", name!);
      const known = async (): Promise<number> => {
        const values = await readTensor((await readSafetensors(file)).entries.get("logProbs")!);
        return values.filter((value) => !Number.isNaN(value)).length;
      };
      const part = await known();
      assert.ok(part > 0 && part < 40, `${part} of 40 log-probs`);
      await trainer.prepare();
      assert.equal(await known(), 40);
      const whole = await readFile(file);
      await truncate(file, 100);
      using again = precompute({ microBatchTokens: 60 })(model, outputDir);
      const { notes, progress } = notesOf();
      await again.prepare({ progress });
      assert.match(notes.join("\n"), /measured again/);
      assert.deepEqual(await readFile(file), whole);
    });
  });

  it("knows no examples but those of the run", async () => {
    using model = await tinyModel(tokenizer);
    using trainer = new DPOTrainer({
      model,
      tokenizer,
      trainData: TRAIN,
      config: { ...COMMON, precomputeRefLogProbs: true },
    });
    const [pair] = trainer.trainExamples;
    await trainer.trainStep([pair!]);
    await assert.rejects(trainer.trainStep([{ ...pair! }]), {
      code: "ERR_RLHF_ARGUMENT",
      message: /knows no other examples; set precomputeRefLogProbs to false/,
    });
  });
});
