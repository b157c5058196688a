import assert from "node:assert/strict";
import { CausalLM, Engine, estimateMemory, PPOTrainer, packSequences, SFTTrainer } from "../../lib/index.ts";
import { randomSequences, TINY_FAMILIES, TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";
import { prompts, tinyTokenizer } from "../trainers/support.ts";

const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };
const BFLOAT16 = { device: "cpu", compute: "bfloat16" } as const;
/** The tiny models, and some whose heads are wide enough for attention's products to be in bfloat16 too. */
const MODELS = {
  ...TINY_FAMILIES,
  "llama with heads of 32": { ...TINY_LLAMA, head_dim: 32 },
  "mistral with heads of 40": { ...TINY_FAMILIES.mistral, head_dim: 40 },
};
/** How far log-probs and gradients of tiny models may be from float32's. */
const DISTANCES = [
  { compute: "bfloat16", logProb: 0.02, gradient: 0.05 },
  { compute: "bfloat16x3", logProb: 1e-4, gradient: 2e-4 },
] as const;

/** Largest difference ÷ largest number. */
function distance(actual: Float32Array, expected: Float32Array): number {
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0) / largest;
}

/** Log-probs, and gradients of everything that trains, one after the other. */
async function measure(model: CausalLM): Promise<{ logProb: Float32Array; gradient: Float32Array }> {
  const sequences = randomSequences([5, 20, 9], model.vocabSize);
  const adapter = model.trainable === "none" ? "policy" : undefined;
  if (adapter) model.addAdapter(adapter, LORA);
  const batch = packSequences(sequences.map((tokens) => ({ tokens })));
  using pass = await model.forward(batch, { adapter, grad: true });
  const logProb = await pass.logProb();
  await pass.backward({ dLogProb: Float32Array.from(logProb, (_, i) => Math.cos(i)) });
  const gradients: number[] = [];
  for (const { name, group } of model.parameters())
    if (group !== "base" || !adapter) gradients.push(...(await model.readGradient(name)));
  return { logProb, gradient: Float32Array.from(gradients) };
}

describe("models that compute in bfloat16", () => {
  for (const { compute, ...most } of DISTANCES)
    for (const [family, config] of Object.entries(MODELS))
      for (const trainable of ["all", "none"] as const)
        it(`${family}, ${trainable === "all" ? "all weights" : "an adapter"}, ${compute}: log-probs and gradients near float32's, the same on any number of threads`, async () => {
          const options = { device: "cpu", compute, trainable } as const;
          using exact = await CausalLM.create(config, { device: "cpu", trainable });
          using model = await CausalLM.create(config, { ...options, threads: 1 });
          using threaded = await CausalLM.create(config, { ...options, threads: 2 });
          const [wanted, got, same] = [await measure(exact), await measure(model), await measure(threaded)];
          assert.deepEqual(same, got);
          const [near, nearGradient] = [
            distance(got.logProb, wanted.logProb),
            distance(got.gradient, wanted.gradient),
          ];
          assert.ok(near > 0 && near < most.logProb, `log-probs ${near}`);
          assert.ok(nearGradient > 0 && nearGradient < most.gradient, `gradients ${nearGradient}`);
        });

  it("frozen matrices kept in 16 bits give the bits of the same numbers in float32", async () => {
    await withTemporaryDirectory(async (directory) => {
      using source = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
      for (const { name } of source.parameters()) {
        const values = await source.readParameter(name);
        const bits = new Uint32Array(values.buffer);
        bits.forEach((word, i) => {
          bits[i] = word & 0xffff0000;
        });
        await source.writeParameter(name, values);
      }
      await source.save(directory);
      using wide = await CausalLM.load(directory, BFLOAT16);
      using narrow = await CausalLM.load(directory, { ...BFLOAT16, dtype: "bfloat16" });
      assert.deepEqual(await measure(narrow), await measure(wide));
    });
  });

  it("an answer's log-probs are those that its tokens were drawn by, and copies compute as their model", async () => {
    using model = await CausalLM.create(TINY_LLAMA, BFLOAT16);
    using copy = await model.clone();
    assert.equal(copy.engine, model.engine);
    assert.equal(model.engine.info.compute, "bfloat16");
    assert.notEqual(Engine.shared({ device: "cpu" }), model.engine);
    const { logProb } = await measure(model);
    const { logProb: again } = await measure(copy);
    assert.deepEqual(again, logProb);
  });

  it("the estimate is what the engine holds, of packed weights half of float32's, or as much in bfloat16x3", async () => {
    // Widths that panels of every instruction set divide.
    const model = { ...TINY_LLAMA, hidden_size: 64, head_dim: 16, intermediate_size: 128, vocab_size: 128 };
    const workload = { model, maxTokens: 64 };
    const [narrow, split, wide] = [
      await estimateMemory(workload, { threads: 1, compute: "bfloat16" }),
      await estimateMemory(workload, { threads: 1, compute: "bfloat16x3" }),
      await estimateMemory(workload, { threads: 1 }),
    ];
    assert.equal(narrow.bytes.packedWeights, wide.bytes.packedWeights / 2);
    assert.equal(split.bytes.packedWeights, wide.bytes.packedWeights);
  });

  it("PPO's first ratios are exactly 1, and a checkpoint of float32 is not gone on from", async () => {
    const tokenizer = tinyTokenizer();
    const config = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize };
    const settings = { batchSize: 4, maxNewTokens: 6, numIterations: 2, learningRate: 1e-3, seed: 1 };
    const reward = (_prompt: string, response: string): number => response.length;
    await withTemporaryDirectory(async (outputDir) => {
      const options = { tokenizer, reward, prompts, outputDir, config: { ...settings, saveSteps: 1 } };
      using model = await CausalLM.create(config, { ...BFLOAT16, trainable: "all" });
      using trainer = new PPOTrainer({ ...options, model });
      const experience = await trainer.computeRewardsAndValues(await trainer.generateResponses());
      const { minibatches } = await trainer.ppoStep(experience);
      assert.equal(minibatches[0]?.ratioSquared, 1);
      const steps = trainer.steps();
      await steps.next();
      await steps.return();
      using exact = await CausalLM.create(config, { device: "cpu", trainable: "all" });
      using other = new PPOTrainer({ ...options, model: exact });
      await assert.rejects(other.train(), { code: "ERR_RLHF_CHECKPOINT" });
    });
  });

  it("training goes where float32's goes", async () => {
    const tokenizer = tinyTokenizer();
    const config = { ...TINY_LLAMA, vocab_size: tokenizer.vocabSize };
    const rows = prompts.map((prompt) => ({ prompt, response: " the end" }));
    const losses: number[][] = [];
    for (const compute of ["float32", "bfloat16", "bfloat16x3"] as const) {
      using model = await CausalLM.create(config, { device: "cpu", compute, trainable: "all" });
      const settings = { maxSteps: 20, batchSize: 4, learningRate: 3e-3, seed: 2 };
      using trainer = new SFTTrainer({ model, tokenizer, trainData: rows, config: settings });
      const course: number[] = [];
      for await (const { metrics } of trainer.steps()) course.push(metrics["loss"] as number);
      losses.push(course);
    }
    const [exact, rounded, split] = losses as [number[], number[], number[]];
    assert.ok(exact.at(-1)! < 0.5 * exact[0]!);
    exact.forEach((loss, step) => {
      for (const [course, share] of [
        [rounded, 0.05],
        [split, 2e-3],
      ] as const)
        assert.ok(
          Math.abs(course[step]! - loss) < share * exact[0]!,
          `step ${step}: ${course[step]} and ${loss}`,
        );
    });
  });

  it("another type is refused", async () => {
    await assert.rejects(CausalLM.create(TINY_LLAMA, { compute: "int8" as "float32" }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /compute must be "float32", "bfloat16x3", "bfloat16" or "float16"/,
    });
    await assert.rejects(CausalLM.create(TINY_LLAMA, { device: "cpu", compute: "float16" }), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /the CPU has no products in float16: give compute: "bfloat16"/,
    });
    await assert.rejects(CausalLM.create(TINY_LLAMA, { device: "cuda", compute: "bfloat16x3" }), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /bfloat16x3 are there on the CPU alone/,
    });
  });
});
