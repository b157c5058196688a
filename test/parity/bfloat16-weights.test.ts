import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, type LoadOptions, PPOTrainer, packSequences, SFTTrainer } from "../../lib/index.ts";
import { readModelTensors } from "../../lib/model/safetensors.ts";
import { randomSequences, TINY_LLAMA, testDevice, withTemporaryDirectory } from "../support/tiny.ts";
import { assertSameWeights, lossesOf, prompts, sftRows, tinyTokenizer } from "../trainers/support.ts";

/** Matrices that train in bfloat16 with no float32 form beside them. A GPU keeps in 16 bits what it computes with. */
const COMPUTE = testDevice === "cpu" ? "float32" : "bfloat16";
const WIDE = { device: testDevice, compute: COMPUTE, trainable: "all" } as const;
const NARROW = { ...WIDE, dtype: "bfloat16" } as const;

const tokenizer = tinyTokenizer();
const CONFIG = {
  ...TINY_LLAMA,
  ...{ vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId, initializer_range: 0.1 },
};

const isBfloat16 = (values: Float32Array): boolean =>
  new Uint32Array(values.buffer).every((word) => (word & 0xffff) === 0);

/** Matrices are numbers of bfloat16, vectors are not: after a step no float32 is one but by chance. */
async function assertKept(model: CausalLM): Promise<void> {
  for (const { name, shape, dtype } of model.parameters()) {
    assert.equal(dtype, shape.length > 1 ? "bfloat16" : "float32", name);
    assert.equal(isBfloat16(await model.readParameter(name)), shape.length > 1, name);
  }
}

/** The same log-probs: on a GPU a frozen model has its vectors as products read them, rounded, and a trained one reads such copies. */
async function assertComputesAs(actual: CausalLM, expected: CausalLM): Promise<void> {
  const sequences = randomSequences([12, 20], actual.vocabSize).map((tokens) => ({ tokens }));
  const logProbs = async (model: CausalLM): Promise<Float32Array> => {
    using pass = await model.forward(packSequences(sequences));
    return pass.logProb();
  };
  assert.deepEqual(await logProbs(actual), await logProbs(expected));
}

interface Run {
  readonly model: CausalLM;
  readonly losses: number[];
}

/** Some steps of supervised fine-tuning; with `after` it is cut off there. */
async function train(options: LoadOptions, cut?: { outputDir: string; after?: number }): Promise<Run> {
  const model = await CausalLM.create(CONFIG, options);
  const config = { maxSteps: 14, batchSize: 2, learningRate: 3e-3, seed: 2 };
  using trainer = new SFTTrainer({
    ...{ model, tokenizer, trainData: sftRows, config },
    outputDir: cut?.outputDir,
  });
  return { model, losses: await lossesOf(trainer, cut?.after) };
}

describe("weights that train in bfloat16 alone", () => {
  it("learn as float32 ones do, on any number of threads, and a run cut off ends in the bits of one left alone", async () => {
    const exact = await train(WIDE);
    const narrow = await train({ ...NARROW, threads: 1 });
    assert.ok(exact.losses.at(-1)! < 0.8 * exact.losses[0]!, String(exact.losses));
    for (const [step, loss] of exact.losses.entries()) {
      const off = Math.abs(narrow.losses[step]! - loss);
      assert.ok(off < 0.05 * exact.losses[0]!, `step ${step}: ${narrow.losses[step]} and ${loss}`);
    }
    await assertKept(narrow.model);
    await withTemporaryDirectory(async (directory) => {
      const outputDir = join(directory, "run");
      (await train({ ...NARROW, threads: 2 }, { outputDir, after: 8 })).model.dispose();
      const resumed = await train({ ...NARROW, threads: 2 }, { outputDir });
      assert.equal(resumed.losses.length, 6);
      await assertSameWeights(resumed.model, narrow.model);
      resumed.model.dispose();
    });
    for (const { model } of [exact, narrow]) model.dispose();
  });

  it("take the seed's bits: another seed's weights are others, and nearly the same", async () => {
    const batch = packSequences(randomSequences([12, 20], CONFIG.vocab_size).map((tokens) => ({ tokens })));
    const name = "model.layers.0.mlp.up_proj.weight";
    const step = async (seed?: number): Promise<Float32Array> => {
      using model = await CausalLM.create(CONFIG, NARROW);
      using optimizer = model.createOptimizer({ seed });
      const pass = await model.forward(batch, { grad: true });
      await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(-1) });
      await optimizer.step({ learningRate: 1e-4 });
      return model.readParameter(name);
    };
    const [first, again, other] = [await step(0), await step(), await step(1)];
    assert.deepEqual(again, first);
    assert.notDeepEqual(other, first);
    // Neighbours at the most: 2⁻⁷ of the number.
    for (const [i, value] of first.entries())
      assert.ok(Math.abs(other[i]! - value) <= 2 ** -7 * Math.max(Math.abs(value), Math.abs(other[i]!)));
  });

  it("are rounded by the trainer's seed", async () => {
    const config = { learningRate: 1e-3, numEpochs: 1, batchSize: 4, maxSteps: 1 };
    // All rows in each batch, so that the seed decides nothing but how the update is rounded.
    const trainData = new Array(4).fill(sftRows[0]) as typeof sftRows;
    const trainedWith = async (seed: number): Promise<Float32Array> => {
      using model = await CausalLM.create(CONFIG, NARROW);
      using trainer = new SFTTrainer({ model, tokenizer, trainData, config: { ...config, seed } });
      for await (const _ of trainer.steps());
      return model.readParameter("model.layers.0.mlp.up_proj.weight");
    };
    assert.deepEqual(await trainedWith(3), await trainedWith(3));
    assert.notDeepEqual(await trainedWith(3), await trainedWith(4));
  });

  it("go through PPO with copies kept alike: a reference, a value model of its own", async () => {
    using model = await CausalLM.create(CONFIG, NARROW);
    const reward = (_: string, response: string): number => response.length;
    const config = {
      ...{ numIterations: 2, batchSize: 4, numMinibatches: 2, maxNewTokens: 6, seed: 1 },
      ...{ valueModel: "separate" as const, learningRate: 1e-3 },
    };
    using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config });
    for await (const { metrics } of trainer.steps())
      for (const value of Object.values(metrics))
        assert.ok(typeof value !== "number" || Number.isFinite(value));
    await assertKept(model);
    using frozen = await model.clone();
    using twin = await model.clone({ trainable: "all" });
    for (const copy of [frozen, twin]) {
      assert.equal(copy.dtype, "bfloat16");
      await assertComputesAs(copy, model);
    }
    await assertSameWeights(twin, model);
  });

  it("are saved as they are, and come back in the same bits under either type", async () => {
    const { model } = await train(NARROW);
    await withTemporaryDirectory(async (directory) => {
      await model.save(directory);
      const saved = JSON.parse(await readFile(join(directory, "config.json"), "utf8")) as { dtype: string };
      assert.equal(saved.dtype, "bfloat16");
      for (const { dtype, shape } of (await readModelTensors(directory)).entries.values())
        assert.equal(dtype, shape.length > 1 ? "BF16" : "F32");
      for (const options of [NARROW, WIDE, { ...NARROW, trainable: "none" as const }]) {
        using loaded = await CausalLM.load(directory, options);
        await assertComputesAs(loaded, model);
        if (options.trainable === "all") await assertSameWeights(loaded, model);
      }
    });
    model.dispose();
  });

  it("cannot be float16, which is said with the cure", async () => {
    await assert.rejects(CausalLM.create(CONFIG, { ...WIDE, dtype: "float16" }), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /kept as float32 or "bfloat16", not as "float16": give one of those, or train an adapter/,
    });
  });
});
