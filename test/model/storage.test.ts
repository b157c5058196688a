import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CausalLM, Engine, estimateMemory, packSequences, RewardModel } from "../../lib/index.ts";
import { readModelTensors } from "../../lib/model/safetensors.ts";
import { type KernelArguments, kernels } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  type KernelsModel,
  MICRO_GPT_NEOX,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomBatch,
  randomUpstream,
  TARGETS,
} from "../support/kernels-model.ts";
import { randomSequences, TINY_GPT2, TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";

const TYPES = ["bfloat16", "float16"] as const;
const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };

function referenceModel(name: string): string {
  return fileURLToPath(new URL(`../reference/models/${name}`, import.meta.url));
}

/** Log-probs, gradients of an adapter and generated tokens: all that a frozen model's matrices have a part in. */
async function results(model: CausalLM): Promise<Record<string, ArrayLike<number>>> {
  model.addAdapter("policy", LORA);
  for (const { name, group, shape } of model.parameters()) {
    if (group !== "adapter:policy" || !name.endsWith("lora_B")) continue;
    const length = shape.reduce((product, size) => product * size, 1);
    await model.writeParameter(
      name,
      Float32Array.from({ length }, (_, i) => Math.sin(i)),
    );
  }
  const sequences = randomSequences([5, 1, 20, 9], model.vocabSize);
  const batch = packSequences(sequences.map((tokens) => ({ tokens })));
  using pass = await model.forward(batch, { adapter: "policy", grad: true });
  const logProb = await pass.logProb();
  const entropy = await pass.entropy();
  await pass.backward({ dLogProb: Float32Array.from(logProb, (_, i) => Math.cos(i)) });
  const gradients: Record<string, Float32Array> = {};
  for (const { name, group } of model.parameters())
    if (group === "adapter:policy") gradients[name] = await model.readGradient(name);
  const [generation] = await model.generate(sequences.slice(0, 1), { maxNewTokens: 12, seed: 3, stop: [] });
  return { logProb, entropy, ...gradients, tokens: generation?.tokens ?? [] };
}

describe("weights kept in 16 bits", () => {
  const stored = {
    bfloat16: ["llama3-bf16", "yarn-bf16"],
    float16: ["micro-llama-f16", "gpt_neox-sequential-f16", "yarn-f16"],
  } as const;
  for (const dtype of TYPES) {
    for (const name of stored[dtype]) {
      it(`compute bit for bit as float32 ones of the same ${dtype} file: ${name}`, async () => {
        const directory = referenceModel(name);
        const types = new Set(
          [...(await readModelTensors(directory)).entries.values()].map((entry) => entry.dtype),
        );
        assert.deepEqual([...types], [dtype === "bfloat16" ? "BF16" : "F16"]);
        using wide = await CausalLM.load(directory);
        using narrow = await CausalLM.load(directory, { dtype });
        assert.deepEqual(await results(narrow), await results(wide));
        for (const { name: parameter } of wide.parameters())
          assert.deepEqual(await narrow.readParameter(parameter), await wide.readParameter(parameter));
      });
    }
  }

  for (const [family, config] of [
    ["gpt2, position table and transposed layers", TINY_GPT2],
    ["llama", TINY_LLAMA],
  ] as const) {
    it(`survive saving: ${family}`, () =>
      withTemporaryDirectory(async (directory) => {
        const [first, second] = [join(directory, "first"), join(directory, "second")];
        using made = await CausalLM.create(config, { seed: 3 });
        await made.save(first);
        using narrow = await CausalLM.load(first, { dtype: "bfloat16" });
        await narrow.save(second);
        using wide = await CausalLM.load(second);
        using again = await CausalLM.load(second, { dtype: "bfloat16" });
        const expected = await results(wide);
        assert.deepEqual(await results(narrow), expected);
        assert.deepEqual(await results(again), expected);
        using copy = await narrow.clone();
        assert.equal(copy.dtype, "bfloat16");
        assert.deepEqual(await results(copy), expected);
        const types = new Set(narrow.parameters().map(({ shape, dtype }) => `${shape.length} ${dtype}`));
        assert.deepEqual([...types].sort(), ["1 float32", "2 bfloat16", "2 float32"]);
        // In the file as in memory; but what an adapter is merged into takes float32.
        const saved = async (): Promise<[string, string[]]> => {
          const config = JSON.parse(await readFile(join(second, "config.json"), "utf8")) as { dtype: string };
          const { entries } = await readModelTensors(second);
          const kinds = [...entries.values()].map(({ name, shape, dtype }) => {
            const adapted = shape.length > 1 && !/wte|wpe|embed_tokens|lm_head/.test(name);
            return `${adapted ? "layer" : `${shape.length} dimensions`}: ${dtype}`;
          });
          return [config.dtype, [...new Set(kinds)].sort()];
        };
        const others = ["1 dimensions: F32", "2 dimensions: BF16"];
        assert.deepEqual(await saved(), ["bfloat16", [...others, "layer: BF16"]]);
        await narrow.save(second, { merge: "policy" });
        assert.deepEqual(await saved(), ["float32", [...others, "layer: F32"]]);
      }));
  }

  it("give the same bits with every instruction set", () => {
    for (const config of [MICRO_LLAMA, MICRO_GPT2, MICRO_GPT_NEOX]) {
      const batch = randomBatch([7, 15, 2], config.vocab);
      const run = (model: KernelsModel): unknown[] => {
        model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family] });
        randomiseAdapter(model);
        const pass = model.forward(batch, { adapter: "policy", grad: true });
        model.backward(pass.pass, randomUpstream(batch.tokens.length, false));
        const trained = model.parameters().filter(({ group }) => group === "adapter:policy");
        return [pass.logProb, pass.entropy, ...trained.map(({ name }) => model.gradient(name))];
      };
      for (const backend of cpuBackends())
        for (const storage of TYPES) {
          const options = { backend, type: "float32", threads: 2 } as const;
          const narrow = createModel(config, { ...options, storage });
          randomiseBase(narrow, storage);
          const wide = createModel(config, options);
          randomiseBase(wide, storage);
          assert.deepEqual(run(narrow), run(wide), `${config.family} ${backend} ${storage}`);
        }
    }
  });

  it("are read by products and lookups as the same numbers in float32", () => {
    const values = (length: number, step: number): Float32Array =>
      Float32Array.from({ length }, (_, i) => Math.sin(step * i + 1));
    // Rows below and above where packing the weight first pays; widths that no vector divides.
    for (const rows of [1, 5, 700])
      for (const backend of cpuBackends())
        for (const storage of TYPES)
          for (const transposed of [0, 1]) {
            const [inputs, outputs] = [37, 53];
            const bits = kernels.toBits(values(inputs * outputs, 0.7), storage);
            const wide = kernels.fromBits(bits, storage);
            const run = (op: string, args: KernelArguments, out: string, size: number): Float32Array[] =>
              [
                { weight: bits, weightType: storage },
                { weight: wide, weightType: "float32" },
              ].map((weight) => {
                const result = new Float32Array(size);
                const shape = { type: "float32", rows, inputs, outputs, xStride: inputs, transposed };
                kernels.run(backend, op, { ...shape, ...args, ...weight, [out]: result }, { threads: 2 });
                return result;
              });
            const label = `${backend} ${storage} ${rows} rows, transposed ${transposed}`;
            const x = values(rows * inputs, 0.3);
            const [y, expectedY] = run("linearForward", { x, yStride: outputs }, "y", rows * outputs);
            assert.deepEqual(y, expectedY, label);
            const strides = { dyStride: outputs, dxStride: inputs };
            const dy = values(rows * outputs, 0.9);
            const [dx, expectedDx] = run("linearBackward", { x, dy, ...strides }, "dx", rows * inputs);
            assert.deepEqual(dx, expectedDx, label);
            assert.ok(dx?.some((value) => value !== 0));
          }
  });

  it("take half the memory of plain float32 ones, and none for packed forms", async () => {
    const model = { ...TINY_LLAMA, hidden_size: 96, head_dim: 24, intermediate_size: 160, vocab_size: 960 };
    const held = async (
      dtype: "float32" | "bfloat16",
      trainable: "all" | "none",
    ): Promise<{ weights: number; packedWeights: number }> => {
      const { bytes } = await estimateMemory({
        model,
        dtype,
        trainable,
        heads: { value: {} },
        head: "value",
        maxTokens: 64,
      });
      return bytes;
    };
    const [wide, narrow] = [await held("float32", "all"), await held("bfloat16", "none")];
    assert.equal(wide.packedWeights, 0);
    assert.equal(narrow.packedWeights, 0);
    const share = narrow.weights / wide.weights;
    assert.ok(share > 0.5 && share < 0.53, `${narrow.weights} of ${wide.weights} bytes`);
  });

  it("are what the engine holds", async () => {
    const engine = { threads: 96 };
    using model = await CausalLM.create(TINY_LLAMA, { ...engine, dtype: "bfloat16" });
    const { bytes } = await estimateMemory({ model: TINY_LLAMA, dtype: "bfloat16" }, engine);
    assert.equal(model.memory().weights, bytes.weights);
    assert.equal(Engine.shared(engine).memory().peak.weights, bytes.weights);
  });

  it("are refused where they could not be kept", async () => {
    const unsupported = { code: "ERR_RLHF_UNSUPPORTED" };
    await assert.rejects(CausalLM.create(TINY_LLAMA, { dtype: "float16", trainable: "all" }), {
      ...unsupported,
      message: /weights that train are kept as float32 or "bfloat16", not as "float16"/,
    });
    const int8 = "int8" as "float32";
    await assert.rejects(CausalLM.create(TINY_LLAMA, { dtype: int8 }), {
      ...unsupported,
      message: /dtype "int8" is not supported; use one of float32, bfloat16, float16/,
    });
    using model = await CausalLM.create(TINY_LLAMA, { dtype: "float16" });
    model.addAdapter("policy", LORA);
    await assert.rejects(model.mergeAdapter("policy"), {
      ...unsupported,
      message: /load the model as float32/,
    });
    const name = "model.layers.0.self_attn.q_proj.weight";
    const values = new Float32Array(24 * 24).fill(70_000);
    await assert.rejects(model.writeParameter(name, values), {
      code: "ERR_RLHF_WEIGHTS",
      message: /q_proj\.weight" has values over 65504/,
    });
    using merged = await model.clone({ merge: "policy" });
    assert.equal(merged.dtype, "float32");
    assert.throws(
      () => createModel(MICRO_LLAMA, { backend: "ref", type: "float64", storage: "bfloat16" }),
      unsupported,
    );
  });

  it("score as float32 ones under a reward head", async () => {
    const sequences = randomSequences([4, 9, 17], TINY_LLAMA.vocab_size as number);
    const scores = async (dtype: "float32" | "bfloat16"): Promise<Float32Array> => {
      using model = await CausalLM.load(referenceModel("llama3-bf16"), { dtype });
      using reward = RewardModel.create(model, { head: { initStd: 0.5, seed: 2 } });
      return reward.score(sequences.map((tokens) => tokens.map((token) => token % model.vocabSize)));
    };
    assert.deepEqual(await scores("bfloat16"), await scores("float32"));
  });
});

/** The CPU backend once for each instruction set of this machine. */
function cpuBackends(): string[] {
  return kernels.backends().filter((name) => name.startsWith("cpu"));
}

/** Random weights that are numbers of the type. */
function randomiseBase(model: KernelsModel, storage: (typeof TYPES)[number]): void {
  for (const { name, shape } of model.parameters()) {
    const length = shape.reduce((product, size) => product * size, 1);
    const values = Float32Array.from({ length }, (_, i) => Math.sin(3 * i + name.length) * 0.4);
    const bits = kernels.toBits(values, storage);
    model.setParameter(name, Float64Array.from(kernels.fromBits(bits, storage)));
  }
}

function randomiseAdapter(model: KernelsModel): void {
  for (const { name, shape, group } of model.parameters())
    if (group === "adapter:policy") {
      const length = shape.reduce((product, size) => product * size, 1);
      model.setParameter(
        name,
        Float64Array.from({ length }, (_, i) => Math.cos(i) * 0.3),
      );
    }
}
