import assert from "node:assert/strict";
import { join } from "node:path";
import {
  CausalLM,
  Engine,
  estimateMemory,
  type LoadOptions,
  type ModelWorkload,
  PPOTrainer,
  packSequences,
  SFTTrainer,
} from "../../lib/index.ts";
import { randomSequences, TINY_LLAMA, testDevice, withTemporaryDirectory } from "../support/tiny.ts";
import {
  assertSameWeights,
  lossesOf,
  prompts,
  sftRows,
  tinyTokenizer,
  weightsOf,
} from "../trainers/support.ts";
import { modelDirectory, ReferenceTensors, readJson } from "./reference.ts";

/**
 * Products in bfloat16, on any device. On the CPU rounding happens inside products alone; on a GPU activations and the weights that
 * products read are bfloat16 too. Everything that is kept, and all losses, are float32 on both.
 */
const MIXED = { device: testDevice, compute: "bfloat16" } as const;
const FULL = { ...MIXED, trainable: "all" } as const;

/** The CPU has no products in float16, and a GPU none in bfloat16x3. */
const FLOAT16: readonly "float16"[] = testDevice === "cpu" ? [] : ["float16"];
const BFLOAT16X3: readonly "bfloat16x3"[] = testDevice === "cpu" ? ["bfloat16x3"] : [];

type Measured = "logProb" | "entropy" | "lse" | "value" | "gradients";

const tokenizer = tinyTokenizer();
const CONFIG = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize, eos_token_id: tokenizer.eosTokenId };
const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };

/** ‖actual − expected‖ / ‖expected‖ */
function distance(actual: readonly Float32Array[], expected: readonly Float32Array[]): number {
  let difference = 0;
  let norm = 0;
  for (const [i, values] of expected.entries())
    for (const [j, value] of values.entries()) {
      difference += (actual[i]![j]! - value) ** 2;
      norm += value ** 2;
    }
  return Math.sqrt(difference / norm);
}

/** Log-probs of every sequence in a batch of its own, or of all in one. */
async function logProbs(model: CausalLM, sequences: Int32Array[], adapter?: string): Promise<Float32Array> {
  using pass = await model.forward(packSequences(sequences.map((tokens) => ({ tokens }))), { adapter });
  return pass.logProb();
}

describe("mixed precision", () => {
  // First of all, since the marks of a GPU's engine are those of the whole process.
  it("the memory estimate equals what the engine holds at most, use by use", async () => {
    const where = { ...MIXED, threads: 13 };
    const [sequences, head] = [[9, 30, 17], "value"];
    const workload: Omit<ModelWorkload, "model"> = {
      ...{ trainable: "all", heads: { value: { kind: "mlp" } }, head, maxTokens: 56, maxSequences: 3 },
      generation: { prompts: 4, promptTokens: 8, maxNewTokens: 6, maxBatch: 2 },
    };
    const { bytes } = await estimateMemory({ model: CONFIG, ...workload }, where);
    using model = await CausalLM.create(CONFIG, { ...where, trainable: "all" });
    model.addHead("value", { kind: "mlp" });
    using optimizer = model.createOptimizer({ heads: ["value"] });
    const batch = packSequences(randomSequences(sequences, model.vocabSize).map((tokens) => ({ tokens })));
    for (let round = 0; round < 2; round++) {
      const drawn = randomSequences([8, 8, 8, 8], model.vocabSize, round);
      await model.generate(drawn, { maxNewTokens: 6, maxBatch: 2, seed: round, stop: [0] });
      using pass = await model.forward(batch, { head, grad: true });
      const upstream = new Float32Array(batch.tokens.length).fill(1);
      await pass.backward({ dLogProb: upstream, dValue: upstream });
      await optimizer.step({ learningRate: 1e-3 });
    }
    const { arrays: _, ...peak } = Engine.shared(where).memory().peak;
    assert.deepEqual(bytes, { ...peak, arrays: 0 });
  });

  const errors = readJson<Record<string, Record<Measured, number>>>("mixed-precision.json");
  for (const [name, compute, share] of [
    ...Object.keys(errors).map((name) => [name, "bfloat16", 1.25] as const),
    // Three more bits, and eight.
    ...FLOAT16.flatMap((compute) => ["gpt2", "llama"].map((name) => [name, compute, 0.25] as const)),
    ...BFLOAT16X3.flatMap((compute) => Object.keys(errors).map((name) => [name, compute, 0.005] as const)),
  ])
    it(`${name}: statistics, values and gradients in ${compute}, ${share} of PyTorch's distance in bfloat16 from float64`, async () => {
      const expected = new ReferenceTensors(`${name}-gradients.safetensors`);
      using model = await CausalLM.load(modelDirectory(name), { ...FULL, compute });
      assert.equal(model.engine.info.compute, compute);
      model.addHead("value", { kind: "linear" });
      await model.writeParameter("value:weight", expected.floats("head.weight"));
      await model.writeParameter("value:bias", expected.floats("head.bias"));
      using optimizer = model.createOptimizer({ heads: ["value"] });
      if (optimizer.lossScale) await optimizer.setLossScale(2 ** 6, 0); // upstream gradients are about 1, and up to 65504 fit
      const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
      const pass = await model.forward(batch, { head: "value", temperature: 0.7, grad: true });
      const actual: Record<string, Float32Array[]> = { value: [await pass.value()] };
      const exact: Record<string, Float32Array[]> = { value: [expected.floats("value")] };
      for (const key of ["logProb", "entropy", "lse"] as const) {
        actual[key] = [await pass[key]()];
        exact[key] = [expected.floats(`t0.7.${key}`)];
      }
      await pass.backward({
        dLogProb: expected.floats("dLogProb"),
        dEntropy: expected.floats("dEntropy"),
        dLse: expected.floats("dLse"),
        dValue: expected.floats("dValue"),
      });
      const names = expected.names("grad.").map((key) => key.slice("grad.".length));
      actual["gradients"] = await Promise.all(names.map((key) => model.readGradient(key)));
      exact["gradients"] = names.map((key) => expected.floats(`grad.${key}`));
      for (const [key, bound] of Object.entries(errors[name]!)) {
        const off = distance(actual[key]!, exact[key]!);
        const least = compute === "bfloat16x3" ? 0 : 1e-5;
        assert.ok(off > least && off <= share * bound, `${key} is ${off} off, PyTorch's ${bound}`);
      }
    });

  it("a sequence's log-probs, and greedy answers, do not depend on what is beside it", async () => {
    using narrow = await CausalLM.load(modelDirectory("llama"), MIXED);
    using wide = await CausalLM.create({ ...TINY_LLAMA, head_dim: 32 }, MIXED);
    for (const model of [narrow, wide]) {
      const sequences = randomSequences([40, 3, 17, 64], model.vocabSize);
      const alone = await Promise.all(sequences.map((tokens) => logProbs(model, [tokens])));
      const together = await logProbs(model, sequences);
      assert.deepEqual(together, Float32Array.from(alone.flatMap((values) => [...values])));

      const settings = { maxNewTokens: 8, temperature: 0, stop: [] } as const;
      const starts = sequences.map((tokens) => tokens.subarray(0, 16));
      const answers = await model.generate(starts, settings);
      for (const [i, prompt] of starts.entries()) {
        const [answer] = await model.generate([prompt], settings);
        assert.deepEqual(answer, answers[i]);
      }
    }
  });

  it("master weights gather updates that bfloat16 cannot hold, and products see them once they are large enough", async () => {
    using model = await CausalLM.create(CONFIG, FULL);
    const optimizer = model.createOptimizer({ weightDecay: 0 });
    const batch = packSequences(randomSequences([12, 20], model.vocabSize).map((tokens) => ({ tokens })));
    const weight = "model.norm.weight"; // 1 at first, where the next number of bfloat16 below is 1 − 2⁻⁸
    const nll = async (): Promise<number> => {
      const pass = await model.forward(batch, { grad: true });
      const logProb = await pass.logProb();
      await pass.backward({ dLogProb: new Float32Array(logProb.length).fill(-1 / logProb.length) });
      return -logProb.reduce((sum, value) => sum + value, 0) / logProb.length;
    };
    const first = await nll();
    const steps = 10;
    for (let step = 0; step < steps; step++) {
      if (step > 0) await nll();
      await optimizer.step({ learningRate: 2e-5 });
    }
    const moved = (await model.readParameter(weight)).map((value) => Math.abs(value - 1));
    assert.ok(Math.max(...moved) < 2 ** -9, `${Math.max(...moved)}`);
    const far = moved.filter((value) => value > 0.9 * steps * 2e-5).length;
    assert.ok(far > moved.length / 2, `${far} of ${moved.length} went as far as AdamW's steps`);
    for (let step = 0; step < steps; step++) {
      await nll();
      await optimizer.step({ learningRate: 3e-3 });
    }
    assert.ok((await nll()) < 0.9 * first);
    optimizer.dispose();
  });

  it("training goes where float32's goes, and a run cut off ends in the bits of one left alone", async () => {
    const settings = { maxSteps: 20, batchSize: 2, learningRate: 3e-3, seed: 2 };
    const train = async (options: LoadOptions, cut?: { outputDir: string; after: number }) => {
      const model = await CausalLM.create({ ...CONFIG, initializer_range: 0.1 }, options);
      const outputDir = cut?.outputDir;
      using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: settings, outputDir });
      return { model, losses: await lossesOf(trainer, cut?.after) };
    };
    const exact = await train({ ...FULL, compute: "float32" });
    const mixed = await train(FULL);
    assert.ok(exact.losses.at(-1)! < 0.8 * exact.losses[0]!, String(exact.losses));
    for (const [step, loss] of exact.losses.entries()) {
      const off = Math.abs(mixed.losses[step]! - loss);
      assert.ok(off < 0.02 * exact.losses[0]!, `step ${step}: ${mixed.losses[step]} and ${loss}`);
    }
    await withTemporaryDirectory(async (directory) => {
      const outputDir = join(directory, "run");
      (await train(FULL, { outputDir, after: 12 })).model.dispose();
      const resumed = await train(FULL, { outputDir, after: 0 });
      assert.equal(resumed.losses.length, 8);
      await assertSameWeights(resumed.model, mixed.model);
      resumed.model.dispose();
    });
    exact.model.dispose();
    mixed.model.dispose();
  });

  it("one PPO update: the metrics of float32's, first ratios of exactly 1", async () => {
    const update = async (options: LoadOptions) => {
      using model = await CausalLM.create({ ...CONFIG, initializer_range: 0.1 }, options);
      const config = { batchSize: 4, numMinibatches: 2, numPpoEpochs: 2, maxNewTokens: 6, seed: 1 };
      const reward = (_: string, response: string): number => response.length;
      using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config });
      const tokens = randomSequences([11, 9, 12, 10], 255).map((each) => each.map((token) => token + 3));
      const rollouts = tokens.map((sequence, i) => ({
        tokens: sequence,
        promptLength: 4,
        row: { prompt: "" },
        response: "x".repeat(i),
        finishReason: "length" as const,
      }));
      const experience = await trainer.computeRewardsAndValues(rollouts);
      return (await trainer.ppoStep(experience, 1e-3)).minibatches;
    };
    const [exact, mixed] = [await update({ ...FULL, compute: "float32" }), await update(FULL)];
    assert.equal(mixed[0]!.ratioSquared, 1);
    for (const [index, expected] of exact.entries())
      for (const key of ["policyLoss", "valueLoss", "entropy", "approxKl", "gradNorm"] as const) {
        const scale = Math.max(...exact.map((each) => Math.abs(each[key] as number)));
        const off = Math.abs((mixed[index]![key] as number) - (expected[key] as number));
        assert.ok(
          off <= 0.05 * scale,
          `${key} of minibatch ${index}: ${mixed[index]![key]}, ${expected[key]}`,
        );
      }
  });

  for (const compute of FLOAT16) {
    it("float16: gradients far below its range survive, and those above it cost a step and half the loss scale", async () => {
      using model = await CausalLM.create(CONFIG, { ...FULL, compute });
      using optimizer = model.createOptimizer();
      const batch = packSequences(randomSequences([12, 20], model.vocabSize).map((tokens) => ({ tokens })));
      const backward = async (upstream: number): Promise<void> => {
        const pass = await model.forward(batch, { grad: true });
        await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(upstream) });
      };
      const gradient = (): Promise<Float32Array> => model.readGradient("model.layers.0.mlp.up_proj.weight");
      await backward(1 / 32);
      const plain = await gradient();
      await model.zeroGradients(["base"]);
      await backward(2 ** -24);
      const tiny = (await gradient()).map((value) => value * 2 ** 19);
      assert.ok(distance([tiny], [plain]) < 0.01, `${distance([tiny], [plain])}`);
      assert.deepEqual(optimizer.lossScale, [2 ** 16, 0]);
      await optimizer.setLossScale(2 ** 15, 1998);
      await backward(2 ** -24); // added to what has another scale
      assert.ok(distance([(await gradient()).map((value) => value * 2 ** 18)], [plain]) < 0.01);
      for (const expected of [1999, 0]) {
        if (expected === 0) await backward(1 / 32);
        assert.equal((await optimizer.step({ learningRate: 1e-6 })).skipped, false);
        assert.equal(optimizer.lossScale![1], expected);
      }
      assert.deepEqual(optimizer.lossScale, [2 ** 16, 0]);

      const weights = await weightsOf(model);
      await backward(1e5);
      const { skipped, lossScale } = await optimizer.step({ learningRate: 1e-3 });
      assert.deepEqual({ skipped, lossScale }, { skipped: true, lossScale: 2 ** 16 });
      assert.deepEqual(await weightsOf(model), weights);
      assert.deepEqual(optimizer.lossScale, [2 ** 15, 0]);
    });

    it("float16: metrics have the loss scale of each model that trains, by name where there are several", async () => {
      const scalesOf = async (valueModel: "shared" | "separate"): Promise<string[]> => {
        using model = await CausalLM.create(CONFIG, { ...FULL, compute });
        const config = { batchSize: 2, maxNewTokens: 2, valueModel, numPpoEpochs: 1, seed: 1 };
        const reward = (_: string, response: string): number => response.length;
        using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config });
        const { metrics } = await trainer.trainStep();
        const scales = Object.entries(metrics).filter(([name]) => name.startsWith("lossScale"));
        // Where the one update overflowed, the scale was halved.
        for (const [name, scale] of scales)
          assert.ok(scale === 2 ** 16 || scale === 2 ** 15, `${name} ${scale}`);
        return scales.map(([name]) => name);
      };
      assert.deepEqual(await scalesOf("shared"), ["lossScale"]);
      assert.deepEqual(await scalesOf("separate"), ["lossScale/policy", "lossScale/value"]);
    });

    it("float16: a run with its loss scale goes on in the same bits after a checkpoint", async () => {
      const train = async (outputDir?: string, after?: number) => {
        const model = await CausalLM.create({ ...CONFIG, initializer_range: 0.1 }, { ...FULL, compute });
        const settings = { maxSteps: 6, saveSteps: 3, batchSize: 2, learningRate: 3e-3, seed: 2 };
        using trainer = new SFTTrainer({ model, tokenizer, trainData: sftRows, config: settings, outputDir });
        const scales: unknown[] = [];
        for await (const { step, metrics } of trainer.steps()) {
          scales.push(metrics["lossScale"]);
          if (step === after) break;
        }
        return { model, scales };
      };
      await withTemporaryDirectory(async (directory) => {
        const whole = await train();
        const cut = await train(directory, 3);
        const resumed = await train(directory);
        assert.deepEqual([...cut.scales, ...resumed.scales], whole.scales);
        assert.ok((whole.scales[0] as number) >= 2 ** 10);
        await assertSameWeights(resumed.model, whole.model);
        for (const { model } of [whole, cut, resumed]) model.dispose();
      });
    });
  }

  it("an adapter trains on a base that is kept in bfloat16 alone, and is merged into one that is not", async () => {
    await withTemporaryDirectory(async (directory) => {
      using source = await CausalLM.create(CONFIG, { device: testDevice });
      await source.save(directory);
      using narrow = await CausalLM.load(directory, { ...MIXED, dtype: "bfloat16" });
      using wide = await CausalLM.load(directory, MIXED);
      const sequences = randomSequences([12, 20], wide.vocabSize);
      for (const model of [narrow, wide]) {
        model.addAdapter("policy", LORA);
        const optimizer = model.createOptimizer({ adapter: "policy" });
        for (let step = 0; step < 3; step++) {
          const batch = packSequences(sequences.map((tokens) => ({ tokens })));
          const pass = await model.forward(batch, { adapter: "policy", grad: true });
          await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(-1) });
          await optimizer.step({ learningRate: 1e-2 });
        }
        optimizer.dispose();
      }
      const adapted = await logProbs(wide, sequences, "policy");
      // On the CPU a vector that is kept in float32 is read so; matrices are rounded either way.
      assert.ok(distance([await logProbs(narrow, sequences, "policy")], [adapted]) < 0.05);
      assert.ok(distance([await logProbs(wide, sequences)], [adapted]) > 0.1, "three steps are seen");
      await assert.rejects(narrow.mergeAdapter("policy"), { code: "ERR_RLHF_UNSUPPORTED" });

      await wide.copyAdapter("policy", "copy");
      assert.deepEqual(await logProbs(wide, sequences, "copy"), adapted);
      wide.removeAdapter("copy");
      const [weights, plain] = [await weightsOf(wide), await logProbs(wide, sequences)];
      await wide.mergeAdapter("policy", { reversible: true });
      assert.ok(distance([await logProbs(wide, sequences)], [adapted]) < 0.02);
      await wide.unmergeAdapter("policy");
      assert.deepEqual(await weightsOf(wide), weights);
      assert.deepEqual(await logProbs(wide, sequences), plain);
    });
  });

  it("weights are loaded, read and saved as float32; a file of bfloat16 comes back in its own bits", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create(CONFIG, FULL);
      await model.save(directory);
      using loaded = await CausalLM.load(directory, { device: testDevice });
      await assertSameWeights(loaded, model);
      const half = modelDirectory("micro-llama-bf16");
      using exact = await CausalLM.load(half, { device: testDevice });
      using narrow = await CausalLM.load(half, { ...MIXED, dtype: "bfloat16" });
      await assertSameWeights(narrow, exact);
    });
  });

  it("a type that the device has no products of is refused", async () => {
    const kept = { device: testDevice, dtype: "bfloat16" } as const;
    if (testDevice === "cpu") return (await CausalLM.create(CONFIG, kept)).dispose();
    await assert.rejects(CausalLM.create(CONFIG, kept), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /kept as float32 or as what `compute` names \(float32 here\), not as bfloat16/,
    });
  });
});
