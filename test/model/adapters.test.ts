import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, packSequences, Random, RewardModel } from "../../lib/index.ts";
import { linearModuleNames, resolveAdapter } from "../../lib/model/adapters.ts";
import {
  ADAPTER,
  createModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomBatch,
  randomiseParameters,
  relativeDistance,
  TARGETS,
} from "../support/kernels-model.ts";
import { evaluate } from "../support/op-arguments.ts";
import {
  randomSequences,
  TINY_GPT_NEOX,
  TINY_GPT2,
  TINY_LLAMA,
  withTemporaryDirectory,
} from "../support/tiny.ts";

const layersOf = (config: typeof MICRO_LLAMA) =>
  createModel(config, { backend: "ref", type: "float32" }).linearLayers();
const LLAMA = layersOf(MICRO_LLAMA);
const GPT2 = layersOf(MICRO_GPT2);
const RANK = { r: 4, alpha: 8 };

/** Modules of the adapter that options describe, without the common part of their paths. */
function modules(options: object, layers = LLAMA): string[] {
  return [...resolveAdapter({ ...RANK, ...options }, layers).layers.keys()].map((module) =>
    module.replace(/^(model\.layers|transformer\.h)\./, ""),
  );
}

/** Gives every B random values, so that the adapter does something. */
async function randomise(model: CausalLM, adapter: string, seed = 7): Promise<void> {
  for (const { name, shape } of model.parameters()) {
    if (!name.startsWith(`${adapter}:`) || !name.endsWith("lora_B")) continue;
    const random = new Random(seed, name);
    const values = Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.2 * random.normal());
    await model.writeParameter(name, values);
  }
}

const BATCH = packSequences(randomSequences([9, 4, 13], 50).map((tokens) => ({ tokens })));

async function logProbs(model: CausalLM, options: object = {}): Promise<Float32Array> {
  using pass = await model.forward(BATCH, options);
  return await pass.logProb();
}

describe("which layers an adapter has", () => {
  it("is named by lists, regular expressions and shorthands, as in peft", () => {
    assert.deepEqual(modules({ targetModules: ["q_proj", "model.layers.1.mlp.up_proj"] }), [
      "0.self_attn.q_proj",
      "1.self_attn.q_proj",
      "1.mlp.up_proj",
    ]);
    assert.deepEqual(modules({ targetModules: ".*\\.1\\..*(k|v)_proj" }), [
      "1.self_attn.k_proj",
      "1.self_attn.v_proj",
    ]);
    assert.deepEqual(modules({ targetModules: "(?P<all>.*)\\.gate_proj" }), [
      "0.mlp.gate_proj",
      "1.mlp.gate_proj",
    ]);
    assert.equal(modules({ targetModules: "all-linear" }).length, 14);
    assert.deepEqual(linearModuleNames(LLAMA), TARGETS["llama"]);
    assert.deepEqual(linearModuleNames(GPT2), TARGETS["gpt2"]);
    assert.deepEqual(modules({ targetModules: ["c_proj"], excludeModules: ["mlp.c_proj"] }, GPT2), [
      "0.attn.c_proj",
      "1.attn.c_proj",
    ]);
    assert.deepEqual(modules({ targetModules: "all-linear", excludeModules: ".*(self_attn|1\\.mlp).*" }), [
      "0.mlp.gate_proj",
      "0.mlp.up_proj",
      "0.mlp.down_proj",
    ]);
    assert.deepEqual(modules({ targetModules: ["o_proj"], layersToTransform: [1] }), ["1.self_attn.o_proj"]);
  });

  it("is the attention's projections by default, by names that mean no other layers", () => {
    assert.deepEqual(resolveAdapter(RANK, LLAMA).targetModules, ["q_proj", "k_proj", "v_proj", "o_proj"]);
    assert.deepEqual(resolveAdapter(RANK, GPT2).targetModules, ["c_attn", "attn.c_proj"]);
    assert.deepEqual(modules({}, GPT2), ["0.attn.c_attn", "0.attn.c_proj", "1.attn.c_attn", "1.attn.c_proj"]);
  });

  it("gives each its rank and scale: the first pattern that matches the end of its path", () => {
    const { layers } = resolveAdapter(
      {
        ...RANK,
        targetModules: ["q_proj", "down_proj"],
        rankPattern: { "0.self_attn.*": 2, q_proj: 16 },
        alphaPattern: { "^model.layers.1.mlp.down_proj": 3 },
      },
      LLAMA,
    );
    assert.deepEqual(
      [...layers.values()],
      [
        { rank: 2, scale: 4 },
        { rank: 4, scale: 2 },
        { rank: 16, scale: 0.5 },
        { rank: 4, scale: 0.75 },
      ],
    );
    const rslora = resolveAdapter({ ...RANK, useRslora: true, rankPattern: { q_proj: 16 } }, LLAMA).layers;
    assert.equal(rslora.get("model.layers.0.self_attn.q_proj")?.scale, 2);
    assert.equal(rslora.get("model.layers.0.self_attn.k_proj")?.scale, 4);
  });

  it("is refused where it names nothing, or is out of range", () => {
    const refused = (options: object, code: string, message: RegExp): void => {
      assert.throws(() => modules(options), { code, message });
    };
    refused({ targetModules: ["q_prj"] }, "ERR_RLHF_UNKNOWN_NAME", /"q_prj".*did you mean "q_proj"/);
    refused({ targetModules: ["lm_head"] }, "ERR_RLHF_UNKNOWN_NAME", /"lm_head"/);
    refused({ targetModules: "q_proj" }, "ERR_RLHF_UNKNOWN_NAME", /regular expression that must match whole/);
    refused({ targetModules: "(" }, "ERR_RLHF_ARGUMENT", /targetModules: "\(" is not a regular expression/);
    refused({ rankPattern: { c_attn: 3 } }, "ERR_RLHF_UNKNOWN_NAME", /rankPattern: "c_attn" matches no/);
    refused(
      { rankPattern: { q_proj: 1.5 } },
      "ERR_RLHF_ARGUMENT",
      /rankPattern\["q_proj"\] must be a positive integer/,
    );
    refused({ alphaPattern: { q_proj: Number.NaN } }, "ERR_RLHF_ARGUMENT", /alphaPattern\["q_proj"\]/);
    refused({ layersToTransform: [7] }, "ERR_RLHF_UNKNOWN_NAME", /no layer is left/);
    refused(
      { targetModules: ".*", layersToTransform: [0] },
      "ERR_RLHF_ARGUMENT",
      /needs targetModules as a list/,
    );
  });
});

describe("adapters side by side", () => {
  for (const config of [TINY_LLAMA, TINY_GPT2, TINY_GPT_NEOX]) {
    const family = String(config["model_type"]);
    const all = { r: 3, alpha: 6, targetModules: "all-linear" } as const;

    it(`are chosen pass by pass and do not touch each other: ${family}`, async () => {
      using model = await CausalLM.create(config, { device: "cpu" });
      const base = await logProbs(model);
      model.addAdapter("a", all);
      model.addAdapter("b", { r: 5, alpha: 5, useRslora: true, layersToTransform: [1] });
      await randomise(model, "a");
      const a = await logProbs(model, { adapter: "a" });
      await randomise(model, "b");
      const b = await logProbs(model, { adapter: "b" });
      assert.notDeepEqual(a, base);
      assert.notDeepEqual(b, a);
      assert.deepEqual(await logProbs(model, { adapter: "a" }), a);
      assert.deepEqual(await logProbs(model), base);
      model.removeAdapter("a");
      assert.deepEqual(await logProbs(model, { adapter: "b" }), b);
    });

    it(`are copied as they are now, frozen or to be trained: ${family}`, async () => {
      using model = await CausalLM.create(config, { device: "cpu" });
      model.addAdapter("policy", { ...all, rankPattern: { "0\\..*": 2 }, dropout: 0.1 });
      await randomise(model, "policy");
      const before = await logProbs(model, { adapter: "policy" });
      await model.copyAdapter("policy", "ref", { trainable: false });
      await model.copyAdapter("policy", "twin");
      await randomise(model, "policy", 8);
      assert.notDeepEqual(await logProbs(model, { adapter: "policy" }), before);
      for (const copy of ["ref", "twin"]) assert.deepEqual(await logProbs(model, { adapter: copy }), before);
      assert.deepEqual(
        [...model.adapters].map(([name, { trainable, dropout }]) => [name, trainable, dropout]),
        [
          ["policy", true, 0.1],
          ["ref", false, 0.1],
          ["twin", true, 0.1],
        ],
      );
      const frozen = model.parameters().find(({ group }) => group === "adapter:ref");
      assert.equal(frozen?.trainable, false);
      assert.throws(() => model.createOptimizer({ adapter: "ref" }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /frozen/,
      });
      using pass = await model.forward(BATCH, { adapter: "ref", grad: true });
      await pass.backward({ dLogProb: new Float32Array(BATCH.tokens.length).fill(1) });
      await assert.rejects(model.readGradient(frozen!.name), { code: "ERR_RLHF_ARGUMENT" });
      await assert.rejects(model.copyAdapter("policy", "ref"), { message: /already has/ });
      await assert.rejects(model.copyAdapter("nobody", "x"), { code: "ERR_RLHF_UNKNOWN_NAME" });
    });

    it(`merge for a while, and come back with the exact weights: ${family}`, async () => {
      using model = await CausalLM.create(config, { device: "cpu" });
      model.addAdapter("a", { ...all, useRslora: true });
      model.addAdapter("b", all);
      await randomise(model, "a");
      const weights = async (): Promise<Float32Array[]> =>
        Promise.all(
          model
            .parameters()
            .filter(({ group }) => group === "base")
            .map(({ name }) => model.readParameter(name)),
        );
      const [before, base, adapted] = [
        await weights(),
        await logProbs(model),
        await logProbs(model, { adapter: "a" }),
      ];
      const bytes = model.memory();
      await model.mergeAdapter("a", { reversible: true });
      const merged = await logProbs(model);
      for (const [t, value] of merged.entries())
        assert.ok(Math.abs(value - adapted[t]!) < 2e-4, `${value} ${adapted[t]}`);
      assert.notDeepEqual(await weights(), before);
      const refused = { code: "ERR_RLHF_ARGUMENT", message: /unmergeAdapter\("a"\) first/ };
      await assert.rejects(logProbs(model, { adapter: "a" }), refused);
      await assert.rejects(model.mergeAdapter("b"), refused);
      await assert.rejects(model.saveAdapter("a", "nowhere"), refused);
      assert.throws(() => model.addAdapter("a", all), { message: /already has/ });
      await assert.rejects(model.unmergeAdapter("b"), { code: "ERR_RLHF_UNKNOWN_NAME" });
      await model.unmergeAdapter("a");
      assert.deepEqual(await weights(), before);
      assert.deepEqual(await logProbs(model), base);
      assert.deepEqual(await logProbs(model, { adapter: "a" }), adapted);
      assert.deepEqual(model.memory(), bytes);
      assert.deepEqual([...model.adapters.keys()].sort(), ["a", "b"]);
    });
  }

  it("are not unmerged from weights that were written since, and not merged for a while into weights that train", async () => {
    using model = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
    model.addAdapter("a", { r: 2, alpha: 2 });
    await model.mergeAdapter("a", { reversible: true });
    const name = "model.norm.weight";
    await model.writeParameter(name, await model.readParameter(name));
    await assert.rejects(model.unmergeAdapter("a"), { code: "ERR_RLHF_ARGUMENT", message: /written after/ });
    using training = await CausalLM.create(TINY_LLAMA, { device: "cpu", trainable: "all" });
    training.addAdapter("a", { r: 2, alpha: 2 });
    await assert.rejects(training.mergeAdapter("a", { reversible: true }), { message: /frozen base/ });
    await training.mergeAdapter("a");
  });

  it("merge into all layers or, where memory runs out, into none", () => {
    // Every allocation fails in turn, until merging needs no more of them. Small arrays it takes from what reading left.
    for (const config of [MICRO_LLAMA, MICRO_GPT2]) {
      let failures = 0;
      for (let allowed = 0; ; allowed++) {
        const model = createModel(config, { backend: "ref", type: "float32" });
        randomiseParameters(model);
        model.addAdapter("a", { ...ADAPTER, targetModules: TARGETS[config.family] });
        randomiseParameters(model);
        const state = () => model.parameters().map(({ name }) => model.read(name));
        const before = state();
        model.failAllocationsAfter(allowed);
        try {
          model.mergeAdapter("a");
        } catch (error) {
          assert.equal((error as { code?: string }).code, "ERR_RLHF_MEMORY");
          model.failAllocationsAfter(-1);
          assert.deepEqual(state(), before);
          failures++;
          continue;
        }
        model.failAllocationsAfter(-1);
        break;
      }
      assert.ok(failures >= 1, `${failures} allocations`);
    }
  });

  it("are told that the device failed where that, and no want of memory, is why it gives none", () => {
    const model = createModel(MICRO_LLAMA, { backend: "ref", type: "float32" });
    model.addAdapter("a", { ...ADAPTER, targetModules: TARGETS[MICRO_LLAMA.family] });
    model.failAllocationsAfter(0, "cudaErrorIllegalAddress: an illegal memory access was encountered");
    try {
      assert.throws(() => model.mergeAdapter("a"), {
        code: "ERR_RLHF_INTERNAL",
        message:
          /^taking memory .*failed on .*: cudaErrorIllegalAddress: an illegal memory access was encountered$/,
      });
    } finally {
      model.failAllocationsAfter(-1);
    }
  });
});

describe("an adapter's dropout", () => {
  const config = { ...MICRO_LLAMA, layers: 2 };
  const batch = randomBatch([7, 4, 9], config.vocab);

  function build(dropout: number, backend = "cpu", threads = 1, alpha = ADAPTER.alpha) {
    const type = backend === "ref" ? "float64" : "float32";
    const model = createModel(config, { backend, type, threads });
    model.addAdapter("a", { ...ADAPTER, alpha, targetModules: TARGETS["llama"], dropout });
    randomiseParameters(model);
    return model;
  }
  const withSeed = (dropoutSeed?: number) => ({ adapter: "a", dropoutSeed });

  it("is on where a pass has a seed, and the same for the same seed", () => {
    const model = build(0.3);
    const plain = model.forward(batch, withSeed()).logProb;
    const first = model.forward(batch, withSeed(1)).logProb;
    assert.notDeepEqual(first, plain);
    assert.deepEqual(model.forward(batch, { ...withSeed(1), grad: true }).logProb, first);
    assert.notDeepEqual(model.forward(batch, withSeed(2)).logProb, first);
    assert.deepEqual(model.forward(batch, withSeed()).logProb, plain);
    assert.deepEqual(build(0).forward(batch, withSeed(1)).logProb, plain);
    assert.deepEqual(model.forward(batch, { dropoutSeed: 1 }).logProb, model.forward(batch, {}).logProb);
  });

  it("gives a token the same log-prob whatever it is batched with, and on any number of threads", () => {
    const whole = build(0.3).forward(batch, withSeed(5)).logProb!;
    assert.deepEqual(build(0.3, "cpu", 3).forward(batch, withSeed(5)).logProb, whole);
    for (let s = 0; s < 3; s++) {
      const [begin, end] = [batch.offsets[s]!, batch.offsets[s + 1]!];
      const alone = {
        tokens: batch.tokens.slice(begin, end),
        offsets: Int32Array.of(0, end - begin),
        predictions: Int32Array.from({ length: end - begin - 1 }, (_, t) => t + 1),
      };
      assert.deepEqual(build(0.3).forward(alone, withSeed(5)).logProb, whole.slice(begin, end));
    }
  });

  it("is the same for answers that share a prompt as for whole sequences", () => {
    const shared = randomBatch([6, 4, 3], config.vocab, () => false, [-1, 0, 0]);
    const [prompt, ...answers] = [...shared.offsets.subarray(1)].map((end, i) =>
      shared.tokens.slice(shared.offsets[i], end),
    );
    const together = build(0.3).forward(shared, withSeed(5)).logProb!;
    for (const [i, answer] of answers.entries()) {
      const tokens = Int32Array.of(...prompt!, ...answer);
      const predictions = Int32Array.from({ length: tokens.length - 1 }, (_, t) => t + 1);
      const whole = { tokens, offsets: Int32Array.of(0, tokens.length), predictions };
      const alone = build(0.3).forward(whole, withSeed(5)).logProb!;
      assert.deepEqual(
        together.slice(shared.offsets[i + 1], shared.offsets[i + 2]),
        alone.slice(prompt!.length),
      );
    }
  });

  it("drops as often as it should and keeps the mean: averaged over seeds it is the pass without", () => {
    // With a small scale the log-probs are nearly linear in what is dropped.
    const model = build(0.2, "ref", 1, 0.01);
    const read = (seed?: number): Float64Array => model.forward(batch, { ...withSeed(seed) }).logProb!;
    const plain = read();
    const seeds = 300;
    const mean = new Float64Array(plain.length);
    for (let seed = 0; seed < seeds; seed++) {
      const values = read(seed);
      for (let t = 0; t < mean.length; t++) mean[t]! += values[t]! / seeds;
    }
    const distance = relativeDistance(mean, plain);
    const single = relativeDistance(read(0), plain);
    assert.ok(distance < 0.25 * single, `mean of ${seeds}: ${distance}, one: ${single}`);
  });

  it("has a mask of its own in every layer and row", () => {
    const ones = (cols: number, layer: number, key: bigint): number[] => {
      const args = {
        rows: 1,
        cols,
        xStride: cols,
        yStride: cols,
        probability: 0.25,
        seed: 9,
        layer,
        accumulate: false,
      };
      const { y } = evaluate("dropout", {
        ...args,
        keys: BigInt64Array.of(key),
        x: new Float64Array(cols).fill(0.75),
        y: new Float64Array(cols),
      });
      return [...y!];
    };
    const mask = ones(4000, 3, 77n);
    const kept = mask.filter((value) => value === 1).length;
    assert.ok(mask.every((value) => value === 0 || value === 1));
    assert.ok(Math.abs(kept - 3000) < 5 * Math.sqrt(4000 * 0.25 * 0.75), `${kept} of 4000 kept`);
    for (const other of [ones(4000, 4, 77n), ones(4000, 3, 78n)]) {
      const both = mask.filter((value, i) => value === 1 && other[i] === 1).length;
      assert.ok(Math.abs(both - 2250) < 150, `${both} kept by both, 2250 expected of independent masks`);
    }
  });
});

describe("PEFT directories", () => {
  const options = {
    r: 3,
    alpha: 6,
    targetModules: "all-linear",
    excludeModules: ["o_proj"],
    layersToTransform: [1],
    rankPattern: { q_proj: 5 },
    alphaPattern: { up_proj: 1.5 },
    useRslora: true,
    dropout: 0.05,
  };

  it("keep all of an adapter's settings, there and back", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
      model.addAdapter("a", options);
      await randomise(model, "a");
      await model.saveAdapter("a", directory);
      await model.loadAdapter("b", directory, { trainable: false });
      assert.deepEqual(model.adapters.get("b"), { ...model.adapters.get("a"), trainable: false });
      assert.deepEqual(await logProbs(model, { adapter: "b" }), await logProbs(model, { adapter: "a" }));
    });
  });

  it("name the layers that a regular expression stands for, since in peft it matches other modules as well", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
      model.addAdapter("a", { r: 2, alpha: 2, targetModules: ".*\\.1\\.mlp.*" });
      await model.saveAdapter("a", directory);
      await model.loadAdapter("b", directory);
      const mlp = ["gate_proj", "up_proj", "down_proj"].map((name) => `model.layers.1.mlp.${name}`);
      assert.deepEqual(model.adapters.get("b")?.targetModules, mlp);
      assert.deepEqual(model.adapters.get("b")?.layers, model.adapters.get("a")?.layers);
    });
  });

  it("with what is not supported are refused by the field's name", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
      model.addAdapter("a", { r: 2, alpha: 2 });
      await model.saveAdapter("a", directory);
      const path = join(directory, "adapter_config.json");
      const plain = JSON.parse(await readFile(path, "utf8")) as object;
      const refused = async (change: object, code: string): Promise<void> => {
        await writeFile(path, JSON.stringify({ ...plain, ...change }));
        const [field] = Object.keys(change);
        await assert.rejects(model.loadAdapter("b", directory), (error: Error & { code?: string }) => {
          assert.equal(error.code, code, error.message);
          assert.ok(error.message.includes(`${path}: ${field} is `), error.message);
          return true;
        });
      };
      await refused({ use_dora: true }, "ERR_RLHF_UNSUPPORTED");
      await refused({ lora_bias: true }, "ERR_RLHF_UNSUPPORTED");
      await refused({ bias: "all" }, "ERR_RLHF_UNSUPPORTED");
      await refused({ trainable_token_indices: [1] }, "ERR_RLHF_UNSUPPORTED");
      await refused({ target_parameters: ["experts.w1"] }, "ERR_RLHF_UNSUPPORTED");
      await refused({ layer_replication: [[0, 1]] }, "ERR_RLHF_UNSUPPORTED");
      await refused({ a_feature_of_tomorrow: { on: 1 } }, "ERR_RLHF_UNSUPPORTED");
      await refused({ peft_type: "IA3" }, "ERR_RLHF_UNSUPPORTED");
      await refused({ init_lora_weights: "pissa" }, "ERR_RLHF_UNSUPPORTED");
      await refused({ modules_to_save: ["embed_tokens"] }, "ERR_RLHF_UNSUPPORTED");
      await refused({ r: 0 }, "ERR_RLHF_MODEL");
      await refused({ target_modules: 5 }, "ERR_RLHF_MODEL");
      await refused({ rank_pattern: { q_proj: "8" } }, "ERR_RLHF_MODEL");
      await writeFile(
        path,
        JSON.stringify({ ...plain, target_modules: ["q_proj", "not_here"], loftq_config: {} }),
      );
      await assert.rejects(model.loadAdapter("b", directory), {
        code: "ERR_RLHF_WEIGHTS",
        message: /k_proj/,
      });
      const fromOtherFamilies = {
        target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "c_attn"],
        rank_pattern: { c_attn: 9 },
      };
      await writeFile(path, JSON.stringify({ ...plain, ...fromOtherFamilies }));
      await model.loadAdapter("c", directory);
      model.addAdapter("like c", model.adapters.get("c")!);
      model.removeAdapter("c");
      model.removeAdapter("like c");
      assert.deepEqual([...model.adapters.keys()], ["a"]);
    });
  });

  it("of a reward model hold its head, and go onto a base that is lent", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create(TINY_LLAMA, { device: "cpu" });
      model.addAdapter("judge", { r: 2, alpha: 4 });
      await randomise(model, "judge");
      using reward = RewardModel.create(model, { adapter: "judge" });
      const weight = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i));
      await model.writeParameter("reward:weight", weight);
      const sequences = randomSequences([5, 9], 50);
      const expected = await reward.score(sequences);
      await reward.saveAdapter(directory);
      reward.dispose();
      await assert.rejects(model.loadAdapter("x", directory), {
        code: "ERR_RLHF_UNSUPPORTED",
        message: /RewardModel/,
      });
      const loaded = await RewardModel.load(directory, { backbone: model });
      assert.deepEqual(await loaded.score(sequences), expected);
      loaded.dispose();
      assert.deepEqual([...model.adapters.keys()], ["judge"]);
      assert.equal(model.heads.size, 0);
      await assert.rejects(RewardModel.load(directory), { code: "ERR_RLHF_MODEL", message: /backbone/ });
    });
  });
});
