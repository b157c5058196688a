import assert from "node:assert/strict";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, type Pass, packSequences } from "../../lib/index.ts";
import { readSafetensors, readTensor, type TensorEntry } from "../../lib/model/safetensors.ts";
import {
  randomSequences,
  TINY_FAMILIES,
  TINY_GPT2,
  TINY_LLAMA,
  withTemporaryDirectory,
} from "../support/tiny.ts";

const sequences = randomSequences([5, 1, 9, 2], 50).map((tokens) => ({ tokens }));

async function logProbs(model: CausalLM, options = {}): Promise<Float32Array> {
  using pass = await model.forward(packSequences(sequences), options);
  return await pass.logProb();
}

/** Gives every LoRA B random values, so that the adapter does something. */
async function randomiseAdapter(model: CausalLM, name: string): Promise<void> {
  for (const parameter of model.parameters()) {
    if (parameter.group !== `adapter:${name}` || !parameter.name.endsWith("lora_B")) continue;
    const size = parameter.shape.reduce((product, count) => product * count, 1);
    await model.writeParameter(
      parameter.name,
      Float32Array.from({ length: size }, (_, i) => Math.sin(i * 1.7 + 0.3) * 0.2),
    );
  }
}

function closeTo(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  assert.equal(actual.length, expected.length);
  actual.forEach((value, i) => {
    const difference = Math.abs(value - (expected[i] as number));
    assert.ok(
      difference <= tolerance * Math.max(1, Math.abs(value)),
      `element ${i}: ${value} and ${expected[i]}`,
    );
  });
}

/** Writes tensors as a file of bfloat16, the upper halves of their float32 values; those without values are zero. */
async function writeBfloat16(
  path: string,
  tensors: readonly TensorEntry[],
  stored: ReadonlyMap<string, Float32Array>,
): Promise<void> {
  const header: Record<string, unknown> = {};
  const parts: Uint8Array[] = [];
  let end = 0;
  for (const entry of tensors) {
    const values = stored.get(entry.name) ?? new Float32Array(entry.count);
    const halves = Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16);
    parts.push(new Uint8Array(halves.buffer));
    header[entry.name] = { dtype: "BF16", shape: entry.shape, data_offsets: [end, end + halves.byteLength] };
    end += halves.byteLength;
  }
  const text = Buffer.from(JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(text.length));
  await writeFile(path, Buffer.concat([prefix, text, ...parts]));
}

for (const [family, config] of Object.entries(TINY_FAMILIES)) {
  describe(`CausalLM: ${family}`, () => {
    let model: CausalLM;
    beforeEach(async () => {
      model = await CausalLM.create(config, { seed: 3, trainable: "all" });
    });
    afterEach(() => model.dispose());

    it("gives log-probabilities of a distribution: 0 at first tokens, negative elsewhere", async () => {
      const batch = packSequences(sequences);
      const values = await logProbs(model);
      const first = new Set(batch.offsets.slice(0, -1));
      values.forEach((value, i) => {
        assert.ok(first.has(i) ? value === 0 : value < 0, `token ${i}: ${value}`);
      });
    });

    it("saves and loads the same bits, heads included", async () => {
      await withTemporaryDirectory(async (directory) => {
        model.addHead("value", { kind: "mlp", innerSize: 7, initStd: 0.5, seed: 4 });
        await model.save(directory);
        using again = await CausalLM.load(directory);
        assert.deepEqual(await logProbs(again), await logProbs(model));
        assert.deepEqual(again.heads.get("value"), model.heads.get("value"));
        const values = async (m: CausalLM): Promise<Float32Array> => {
          using pass = await m.forward(packSequences(sequences), { head: "value" });
          return await pass.value();
        };
        const theirs = await values(again);
        assert.deepEqual(theirs, await values(model));
        assert.ok(theirs.some((value) => value !== 0));
      });
    });

    it("an adapter begins as the identity; merged it gives the same log-probabilities", async () => {
      const before = await logProbs(model);
      model.addAdapter("policy", { r: 3, alpha: 6, targetModules: "all-linear", seed: 1 });
      assert.deepEqual(await logProbs(model, { adapter: "policy" }), before);
      await randomiseAdapter(model, "policy");
      const adapted = await logProbs(model, { adapter: "policy" });
      assert.notDeepEqual(adapted, before);
      assert.deepEqual(await logProbs(model), before, "the base is not touched");
      await withTemporaryDirectory(async (directory) => {
        await model.save(join(directory, "merged"), { merge: "policy" });
        await model.saveAdapter("policy", join(directory, "adapter"));
        using merged = await CausalLM.load(join(directory, "merged"));
        closeTo(await logProbs(merged), adapted, 2e-5);
        model.removeAdapter("policy");
        await model.loadAdapter("again", join(directory, "adapter"));
        assert.deepEqual(await logProbs(model, { adapter: "again" }), adapted);
      });
      await model.mergeAdapter("again");
      closeTo(await logProbs(model), adapted, 2e-5);
    });

    it("loads an adapter stored as bfloat16, and refuses one that is not this model's", async () => {
      model.addAdapter("policy", { r: 3, alpha: 6, seed: 1 });
      await randomiseAdapter(model, "policy");
      await withTemporaryDirectory(async (directory) => {
        await model.saveAdapter("policy", directory);
        const path = join(directory, "adapter_model.safetensors");
        const { entries } = await readSafetensors(path);
        const stored = new Map<string, Float32Array>();
        for (const entry of entries.values()) stored.set(entry.name, await readTensor(entry));
        await writeBfloat16(path, [...entries.values()], stored);
        await model.loadAdapter("half", directory);
        for (const { name } of model.parameters().filter(({ group }) => group === "adapter:half")) {
          const full = await model.readParameter(name.replace("half:", "policy:"));
          closeTo(await model.readParameter(name), full, 2 ** -7);
          assert.notDeepEqual(await model.readParameter(name), full, "it was rounded");
        }
        const [first] = [...entries.values()] as [TensorEntry];
        const refused = { code: "ERR_RLHF_WEIGHTS" };
        await writeBfloat16(
          path,
          [{ ...first, shape: [...first.shape].reverse() }, ...[...entries.values()].slice(1)],
          stored,
        );
        await assert.rejects(model.loadAdapter("turned", directory), { ...refused, message: /has shape/ });
        const elsewhere = first.name.replace(/\d+/, "77");
        await writeBfloat16(path, [...entries.values(), { ...first, name: elsewhere }], stored);
        await assert.rejects(model.loadAdapter("deeper", directory), {
          ...refused,
          message: /belongs to no layer/,
        });
        assert.deepEqual([...model.adapters.keys()], ["policy", "half"]);
      });
    });

    it("backward adds to the gradients; the optimizer zeroes them and changes the weights", async () => {
      const batch = packSequences(sequences);
      const dLogProb = Float32Array.from(batch.tokens, (_, i) => Math.cos(i));
      const name = model.parameters()[0]?.name as string;
      const run = async (): Promise<Float32Array> => {
        const pass = await model.forward(batch, { grad: true });
        await pass.backward({ dLogProb });
        return model.readGradient(name);
      };
      const once = await run();
      const twice = await run();
      closeTo(
        twice,
        once.map((value) => 2 * value),
        1e-5,
      );
      using optimizer = model.createOptimizer();
      const weights = await model.readParameter(name);
      const { gradNorm, skipped } = await optimizer.step({ learningRate: 1e-2, maxGradNorm: 1 });
      assert.ok(gradNorm > 0 && !skipped);
      assert.notDeepEqual(await model.readParameter(name), weights);
      assert.ok((await model.readGradient(name)).every((value) => value === 0));
      assert.equal(optimizer.stepCount, 1);
    });

    it("a gradient that is not finite changes nothing", async () => {
      const batch = packSequences(sequences);
      const name = model.parameters()[0]?.name as string;
      const weights = await model.readParameter(name);
      const pass = await model.forward(batch, { grad: true });
      await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(Number.NaN) });
      using optimizer = model.createOptimizer();
      assert.equal((await optimizer.step({ learningRate: 1e-2 })).skipped, true);
      assert.deepEqual(await model.readParameter(name), weights);
      assert.equal(optimizer.stepCount, 0);
    });

    it("generates the same tokens whatever the batch size, and stops where told", async () => {
      const prompts = randomSequences([3, 7, 1, 4, 2], 50, 9);
      const options = { maxNewTokens: 12, seed: 5, stop: [] };
      const all = await model.generate(prompts, options);
      const few = await model.generate(prompts, { ...options, maxBatch: 2 });
      assert.deepEqual(
        few.map((generation) => [...generation.tokens]),
        all.map((generation) => [...generation.tokens]),
      );
      assert.ok(
        all.every((generation) => generation.tokens.length === 12 && generation.finishReason === "length"),
      );
      const stop = all[0]?.tokens[3] as number;
      const [stopped] = await model.generate(prompts.slice(0, 1), { ...options, stop: [stop] });
      assert.equal(stopped?.finishReason, "stop");
      assert.equal(stopped?.tokens.at(-1), stop);
      const [longer] = await model.generate(prompts.slice(0, 1), {
        ...options,
        stop: [stop],
        minNewTokens: 8,
      });
      assert.ok((longer?.tokens.length ?? 0) >= 8);
    });

    it("streams tokens, stops on a signal and hands on what a callback throws", async () => {
      const prompts = randomSequences([3], 50, 9);
      const seen: number[] = [];
      const [generation] = await model.generate(prompts, {
        maxNewTokens: 6,
        stop: [],
        onToken: (_, token) => seen.push(token),
      });
      assert.deepEqual(seen, [...(generation?.tokens ?? [])]);
      const controller = new AbortController();
      controller.abort();
      await assert.rejects(model.generate(prompts, { maxNewTokens: 6, signal: controller.signal }), {
        code: "ERR_RLHF_ABORTED",
      });
      const failing = model.generate(prompts, {
        maxNewTokens: 40,
        stop: [],
        onToken: () => {
          throw new TypeError("mine");
        },
      });
      await assert.rejects(failing, { name: "TypeError", message: "mine" });
    });
  });
}

describe("CausalLM: misuse", () => {
  let model: CausalLM;
  before(async () => {
    model = await CausalLM.create(TINY_LLAMA, { trainable: "all" });
  });
  after(() => model.dispose());

  it("refuses heads of no known kind, and prompts that are no list", async () => {
    const refused = { code: "ERR_RLHF_ARGUMENT" };
    assert.throws(() => model.addHead("h", { kind: "linaer" as "linear" }), { ...refused, message: /kind/ });
    assert.throws(() => model.addHead("h", { kind: "mlp", innerSize: 0 }), {
      ...refused,
      message: /innerSize/,
    });
    const prompts = "once" as unknown as Int32Array[];
    await assert.rejects(model.generate(prompts, { maxNewTokens: 1 }), { ...refused, message: /list/ });
  });

  it("refuses tokens outside the vocabulary and sequences longer than the context", async () => {
    await assert.rejects(model.forward(packSequences([{ tokens: [1, 61] }])), {
      code: "ERR_RLHF_TOKEN_RANGE",
    });
    await assert.rejects(model.forward(packSequences([{ tokens: Int32Array.of(1, -1) }])), {
      code: "ERR_RLHF_TOKEN_RANGE",
    });
    await assert.rejects(model.forward(packSequences([{ tokens: new Int32Array(65) }])), {
      code: "ERR_RLHF_CONTEXT_LENGTH",
    });
    await assert.rejects(model.generate([new Int32Array(64)], { maxNewTokens: 1 }), {
      code: "ERR_RLHF_CONTEXT_LENGTH",
    });
    await assert.rejects(model.generate([new Int32Array(0)], { maxNewTokens: 1 }), /./);
  });

  it("refuses empty batches and bad masks", () => {
    assert.throws(() => packSequences([]), { code: "ERR_RLHF_SHAPE" });
    assert.throws(() => packSequences([{ tokens: [] }]), { code: "ERR_RLHF_SHAPE" });
    assert.throws(() => packSequences([{ tokens: [1, 2], lossMask: new Uint8Array(3) }]), {
      code: "ERR_RLHF_SHAPE",
    });
    assert.throws(() => packSequences([{ tokens: [1.5] }]), { code: "ERR_RLHF_ARGUMENT" });
  });

  it("refuses unknown names", async () => {
    const batch = packSequences([{ tokens: [1, 2] }]);
    await assert.rejects(model.forward(batch, { adapter: "nobody" }), { code: "ERR_RLHF_UNKNOWN_NAME" });
    await assert.rejects(model.forward(batch, { head: "nobody" }), { code: "ERR_RLHF_UNKNOWN_NAME" });
    await assert.rejects(async () => model.readParameter("nothing"), { code: "ERR_RLHF_UNKNOWN_NAME" });
    assert.throws(() => model.addAdapter("x", { r: 2, alpha: 2, targetModules: ["q_prj"] }), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /q_proj/,
    });
    assert.throws(() => model.removeAdapter("nobody"), { code: "ERR_RLHF_UNKNOWN_NAME" });
  });

  it("refuses settings out of range", async () => {
    const prompts = [Int32Array.of(1)];
    for (const wrong of [
      { maxNewTokens: 0 },
      { maxNewTokens: 1.5 },
      { temperature: -1 },
      { topP: 0 },
      { minP: 2 },
    ])
      await assert.rejects(model.generate(prompts, { maxNewTokens: 3, ...wrong }), {
        code: "ERR_RLHF_ARGUMENT",
      });
    assert.throws(() => model.addAdapter("x", { r: 0, alpha: 1 }), /r|rank/);
    await assert.rejects(
      model.forward(packSequences([{ tokens: [1, 2] }]), { temperature: 0 }),
      /temperature/,
    );
  });

  it("a pass can be used once, and gradients must have one element per token", async () => {
    const batch = packSequences([{ tokens: [1, 2, 3] }]);
    const pass = await model.forward(batch, { grad: true });
    await assert.rejects(pass.backward({ dLogProb: new Float32Array(2) }), { code: "ERR_RLHF_SHAPE" });
    const array = pass.device.logProb;
    await pass.backward({ dLogProb: new Float32Array(3) });
    await assert.rejects(pass.backward({ dLogProb: new Float32Array(3) }), /consumed|disposed/);
    await assert.rejects(array.read(), /consumed|disposed/);
    const plain = await model.forward(batch);
    await assert.rejects(plain.backward({ dLogProb: new Float32Array(3) }), { code: "ERR_RLHF_ARGUMENT" });
  });

  it("too many live passes are an error, not a leak", async () => {
    const batch = packSequences([{ tokens: [1, 2, 3] }]);
    const live: Pass[] = [];
    await assert.rejects(
      async () => {
        for (let i = 0; i < 100; i++) live.push(await model.forward(batch, { grad: true }));
      },
      { code: "ERR_RLHF_PASS_LIVE" },
    );
    for (const pass of live) pass.dispose();
    (await model.forward(batch, { grad: true })).dispose();
  });

  it("a disposed model says so", async () => {
    const gone = await CausalLM.create(TINY_GPT2);
    const pending = gone.forward(packSequences([{ tokens: [1, 2] }]));
    gone.dispose();
    (await pending).dispose();
    await assert.rejects(gone.forward(packSequences([{ tokens: [1, 2] }])), { code: "ERR_RLHF_DISPOSED" });
  });

  it("a frozen model cannot be optimised whole", async () => {
    const frozen = await CausalLM.create(TINY_GPT2);
    assert.throws(() => frozen.createOptimizer(), { code: "ERR_RLHF_ARGUMENT" });
    frozen.dispose();
  });

  it("refuses directories that are malformed, with the file's name", async () => {
    await withTemporaryDirectory(async (directory) => {
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_MODEL", message: /config\.json/ });
      await writeFile(join(directory, "config.json"), "{");
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_MODEL", message: /not valid JSON/ });
      await model.save(directory);
      const config = JSON.parse(await readFile(join(directory, "config.json"), "utf8")) as object;
      await writeFile(join(directory, "config.json"), JSON.stringify({ ...config, hidden_size: 48 }));
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_WEIGHTS", message: /shape/ });
      await writeFile(join(directory, "config.json"), JSON.stringify({ ...config, num_hidden_layers: 3 }));
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_WEIGHTS", message: /missing/ });
      await writeFile(join(directory, "config.json"), JSON.stringify(config));
      await truncate(join(directory, "model.safetensors"), 3000);
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_WEIGHTS" });
    });
  });

  it("refuses weights that are not finite", async () => {
    await withTemporaryDirectory(async (directory) => {
      await model.save(directory);
      const path = join(directory, "model.safetensors");
      const bytes = await readFile(path);
      bytes.writeFloatLE(Number.NaN, bytes.length - 4);
      await writeFile(path, bytes);
      await assert.rejects(CausalLM.load(directory), { code: "ERR_RLHF_WEIGHTS", message: /not finite/ });
    });
  });
});
