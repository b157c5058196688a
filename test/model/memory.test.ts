import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { MEMORY_USES, type MemoryBytes } from "../../lib/engine/memory.ts";
import {
  CausalLM,
  Engine,
  estimateMemory,
  type MemoryEstimate,
  type ModelWorkload,
  type PackedBatch,
  packSequences,
  type TransformerEngineOptions,
} from "../../lib/index.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import { randomSequences, TINY_GPT2, TINY_LLAMA, testDevice } from "../support/tiny.ts";

/** Engines are shared by number of threads: one that no other test uses has high-water marks that begin at zero. */
let threads = 17;

/** What the engine of these options has held at most, results of losses aside, as an estimate names it. */
function peakOf(options: TransformerEngineOptions): MemoryEstimate {
  const { peak, peakTotal: total } = Engine.shared(options).memory();
  return { bytes: { ...peak, arrays: 0 }, total };
}

const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };
const LENGTHS = [9, 30, 17];
const TOKENS = LENGTHS.reduce((sum, length) => sum + length, 0);
const PASS = { maxTokens: TOKENS, maxSequences: LENGTHS.length };

interface Training {
  readonly name: string;
  readonly config: HfConfig;
  readonly workload: Omit<ModelWorkload, "model">;
  readonly compute?: "bfloat16" | "bfloat16x3";
}

const TRAININGS: Training[] = [
  { name: "all weights", config: TINY_LLAMA, workload: { trainable: "all", ...PASS } },
  ...[TINY_LLAMA, TINY_GPT2].map((config) => ({
    name: `all weights, kept in bfloat16 alone: ${config.model_type}`,
    config,
    // A GPU keeps in 16 bits what it computes with.
    ...(testDevice !== "cpu" && { compute: "bfloat16" as const }),
    workload: { trainable: "all" as const, dtype: "bfloat16" as const, ...PASS },
  })),
  {
    name: "all weights, layers recomputed",
    config: TINY_GPT2,
    workload: { trainable: "all", recomputeLayers: true, ...PASS },
  },
  {
    name: "an adapter",
    config: TINY_LLAMA,
    workload: { adapters: { policy: LORA }, adapter: "policy", ...PASS },
  },
  {
    name: "an adapter, layers recomputed",
    config: TINY_LLAMA,
    workload: { adapters: { policy: LORA }, adapter: "policy", recomputeLayers: true, ...PASS },
  },
  ...[false, true].map((recomputeLayers) => ({
    name: `an adapter with dropout${recomputeLayers ? ", layers recomputed" : ""}`,
    config: TINY_LLAMA,
    workload: {
      adapters: { policy: { ...LORA, dropout: 0.1, rankPattern: { q_proj: 9 } } },
      adapter: "policy",
      dropout: true,
      recomputeLayers,
      ...PASS,
    },
  })),
  {
    name: "an adapter and a head after generation, as PPO does, two passes alive",
    config: TINY_GPT2,
    workload: {
      adapters: { policy: LORA },
      heads: { value: { kind: "mlp" } },
      adapter: "policy",
      head: "value",
      livePasses: 2,
      generation: { prompts: 5, promptTokens: 11, maxNewTokens: 6, maxBatch: 3 },
      ...PASS,
    },
  },
  {
    name: "nothing: several answers to a prompt",
    config: TINY_GPT2,
    workload: {
      generation: { prompts: 12, promptTokens: 40, maxNewTokens: 6, answersPerPrompt: 4 },
      ...PASS,
    },
  },
  {
    name: "an adapter that is compared with its base over the vocabulary",
    config: TINY_LLAMA,
    workload: { adapters: { policy: LORA }, adapter: "policy", divergence: true, ...PASS },
  },
  ...[TINY_LLAMA, { ...TINY_GPT2, vocab_size: 80_000 }].map((config) => ({
    name: `an adapter and a head with the losses inside, vocabulary of ${config.vocab_size}`,
    config,
    workload: {
      adapters: { policy: LORA },
      heads: { value: { kind: "mlp" as const } },
      ...{ adapter: "policy", head: "value", lossInside: true, ...PASS },
    },
  })),
  {
    name: "all weights with the loss inside",
    config: TINY_GPT2,
    workload: { trainable: "all", lossInside: true, ...PASS },
  },
  {
    name: "all weights with the loss inside, in bfloat16",
    config: TINY_LLAMA,
    workload: { trainable: "all", lossInside: true, ...PASS },
    compute: "bfloat16",
  },
  // A GPU has no such products.
  ...(testDevice === "cpu"
    ? [
        {
          name: "an adapter, in bfloat16x3",
          config: TINY_GPT2,
          workload: { adapters: { policy: LORA }, adapter: "policy", ...PASS },
          compute: "bfloat16x3" as const,
        },
      ]
    : []),
  { name: "nothing: log-probs alone", config: TINY_GPT2, workload: { ...PASS } },
];

/** PPO's losses, which need more arrays than others. */
async function trainWithLossInside(
  model: CausalLM,
  batch: PackedBatch,
  options: { adapter?: string | undefined; head?: string | undefined },
): Promise<void> {
  const zeros = new Float32Array(TOKENS);
  const given = { oldLogProb: zeros, advantage: zeros, clipRange: 0.2, entropyCoefficient: 0.1, scale: 1 };
  const value = options.head && { value: { oldValue: zeros, returns: zeros, clipRange: 0.2, scale: 1 } };
  (await model.forwardBackward(batch, { kind: "ppo", ...given }, { ...options, ...value })).dispose();
}

/** The real thing: three rounds of what the workload describes. Returns how often memory had been taken after each. */
async function run({ config, workload }: Training, engine: TransformerEngineOptions): Promise<number[]> {
  const {
    trainable,
    dtype,
    recomputeLayers,
    adapters,
    heads,
    adapter,
    head,
    generation,
    livePasses = 1,
    dropout,
    divergence,
    lossInside,
  } = workload;
  using model = await CausalLM.create(config, { ...engine, trainable, dtype, recomputeLayers });
  for (const [name, options] of Object.entries(adapters ?? {})) model.addAdapter(name, options);
  for (const [name, options] of Object.entries(heads ?? {})) model.addHead(name, options);
  const trains = trainable === "all" || adapter !== undefined;
  using optimizer = trains ? model.createOptimizer({ adapter, heads: head ? [head] : [] }) : null;
  const batch = packSequences(randomSequences(LENGTHS, model.vocabSize).map((tokens) => ({ tokens })));
  const allocations: number[] = [];
  for (let round = 0; round < 3; round++) {
    allocations.push(Engine.shared(engine).memory().allocations);
    if (generation) {
      const { prompts, promptTokens, maxNewTokens, maxBatch, answersPerPrompt = 1 } = generation;
      const lengths = Array.from({ length: prompts / answersPerPrompt }, () => promptTokens);
      const different = randomSequences(lengths, model.vocabSize, round);
      const drawn = Array.from({ length: prompts }, (_, i) => different[i % different.length]!);
      await model.generate(drawn, { maxNewTokens, maxBatch, adapter, seed: round, stop: [0] });
    }
    if (lossInside) {
      await trainWithLossInside(model, batch, { adapter, head });
      await optimizer?.step({ learningRate: 1e-3, maxGradNorm: 1 });
      continue;
    }
    using reference = divergence ? await model.forward(batch, { keepDistribution: true }) : undefined;
    const settings = { adapter, head, grad: trains, dropoutSeed: dropout ? round : undefined, reference };
    const passes = await Promise.all(
      Array.from({ length: livePasses }, () => model.forward(batch, settings)),
    );
    for (const pass of passes) {
      const upstream = new Float32Array(TOKENS).fill(1);
      const more = { ...(head ? { dValue: upstream } : {}), ...(divergence ? { dKl: upstream } : {}) };
      if (trains) await pass.backward({ dLogProb: upstream, ...more });
      pass.dispose();
    }
    await optimizer?.step({ learningRate: 1e-3, maxGradNorm: 1 });
  }
  return [...allocations, Engine.shared(engine).memory().allocations];
}

describe("the memory estimate", () => {
  for (const training of TRAININGS) {
    it(`equals what the engine holds at most, use by use, and later steps take none: training ${training.name}`, async () => {
      const { compute } = training;
      const engine = { device: testDevice, threads: 16, ...(compute && { compute }) }; // one that no other test holds
      Engine.shared(engine).dispose(); // the next one's high-water marks begin at zero
      const estimate = await estimateMemory({ model: training.config, ...training.workload }, engine);
      const allocations = await run(training, engine);
      assert.equal(allocations[3], allocations[2], "the third round takes no memory");
      assert.deepEqual(estimate, peakOf(engine));
      for (const use of MEMORY_USES) if (use !== "arrays") assert.ok(estimate.bytes[use] >= 0);
      assert.equal(estimate.bytes.optimizer > 0, training.name.startsWith("nothing") === false);
    });
  }

  it("takes no memory", async () => {
    const own = { device: testDevice, threads: threads++ };
    const held = (): MemoryBytes => Engine.shared(own).memory().held;
    const before = held();
    // Two hundred times what any machine of today has.
    const huge = { ...TINY_LLAMA, hidden_size: 65_536, intermediate_size: 262_144, num_hidden_layers: 2_000 };
    const workload: ModelWorkload = {
      model: { ...huge, head_dim: 128, num_attention_heads: 512, num_key_value_heads: 64 },
      ...{ trainable: "all", maxTokens: 4096, maxSequences: 64 },
    };
    const { total } = await estimateMemory(workload, own);
    assert.ok(total > 2 ** 50, `${total}`);
    assert.deepEqual(held(), before);
  });

  it("adds up what several models on one engine need, scratch memory once", async () => {
    const policy = { model: TINY_LLAMA, trainable: "all" as const, ...PASS };
    const reference = { model: TINY_LLAMA, backward: false, ...PASS };
    const [both, first, second] = await Promise.all([
      estimateMemory([policy, reference]),
      estimateMemory(policy),
      estimateMemory(reference),
    ]);
    for (const use of MEMORY_USES) {
      const sum = first.bytes[use] + second.bytes[use];
      assert.equal(both.bytes[use], use === "scratch" ? first.bytes[use] : sum, use);
    }
  });

  it("is of a loaded model, its adapters and heads included", async () => {
    const shape = { adapters: { policy: LORA }, heads: { value: { kind: "mlp" as const } } };
    using model = await CausalLM.create(TINY_GPT2);
    model.addAdapter("policy", LORA);
    model.addHead("value", { kind: "mlp" });
    const passes = { adapter: "policy", head: "value", ...PASS };
    const described = await estimateMemory({ model: TINY_GPT2, ...shape, ...passes });
    assert.deepEqual(await estimateMemory({ model, ...passes }), described);
    const bare = await estimateMemory({ model, bare: true, trainable: "all", ...PASS });
    assert.deepEqual(bare, await estimateMemory({ model: TINY_GPT2, trainable: "all", ...PASS }));
  });

  it("grows by the process as much as it says", async () => {
    const script = fileURLToPath(new URL("../support/measure-memory.ts", import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [
      "--expose-gc",
      "--import",
      "tsx",
      script,
    ]);
    const { estimate, grown } = JSON.parse(stdout) as { estimate: number; grown: number };
    assert.ok(
      Math.abs(grown - estimate) <= 0.1 * estimate,
      `the estimate is ${estimate} bytes, the process grew by ${grown}`,
    );
  });
});

describe("models that nobody disposed", () => {
  it("are collected when nobody uses them any more, as large objects are", async () => {
    let collected = 0;
    const registry = new FinalizationRegistry<null>(() => {
      collected++;
    });
    // 32 MiB of weights each, and next to nothing on JavaScript's heap.
    const config = { ...TINY_LLAMA, vocab_size: 65_536, hidden_size: 128, tie_word_embeddings: true };
    for (let count = 0; count < 8; count++) {
      registry.register(await CausalLM.create(config, { device: "cpu" }), null);
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.ok(collected >= 2, `${collected} of 8 models are gone`);
  });
});

describe("the memory budget", () => {
  it("refuses what goes over it before it is taken, and says what is held", async () => {
    const engine = { threads: threads++ };
    const needed = await estimateMemory({ model: TINY_LLAMA, trainable: "all", ...PASS }, engine);
    await assert.rejects(CausalLM.create(TINY_LLAMA, { ...engine, memoryBudget: 1000 }), {
      code: "ERR_RLHF_MEMORY",
      message: /the parameters of base: .* are over the memory budget of 0\.0 MiB/,
    });
    using model = await CausalLM.create(TINY_LLAMA, {
      ...engine,
      trainable: "all",
      memoryBudget: needed.total,
    });
    const batch = packSequences([{ tokens: new Int32Array(TOKENS).fill(1) }]);
    Engine.shared({ ...engine, memoryBudget: needed.bytes.weights + 1000 });
    await assert.rejects(model.forward(batch, { grad: true }), {
      code: "ERR_RLHF_MEMORY",
      message: /Held now \(MiB\): weights .* microBatchTokens/,
    });
    Engine.shared({ ...engine, memoryBudget: needed.total });
    using pass = await model.forward(batch, { grad: true });
    assert.equal(pass.rows, TOKENS);
  });

  it("bounds how many sequences are decoded at a time, and nothing of what they say", async () => {
    const generation = { prompts: 8, promptTokens: 20, maxNewTokens: 40 };
    const prompts = randomSequences(new Array<number>(8).fill(20), 61);
    /** What is said, and the cache for it, with all memory that an estimate asks for but a share of the cache. */
    const run = async (missing: number) => {
      const engine = { threads: threads++ };
      const { total, bytes } = await estimateMemory({ model: TINY_LLAMA, generation }, engine);
      const memoryBudget = Math.ceil(total - missing * bytes.cache);
      using model = await CausalLM.create(TINY_LLAMA, { ...engine, memoryBudget });
      const answers = await model.generate(prompts, { maxNewTokens: 40, stop: [], seed: 1 });
      return { answers, cache: Engine.shared(engine).memory().held.cache };
    };
    const [free, half] = [await run(0), await run(0.5)];
    assert.deepEqual(half.answers, free.answers);
    assert.ok(half.cache < 0.55 * free.cache, `${half.cache} of ${free.cache}`);
    await assert.rejects(run(0.95), {
      code: "ERR_RLHF_MEMORY",
      message: /the key\/value cache \(smaller with a lower maxBatch or maxNewTokens\)/,
    });
  });

  it("is a number of bytes or text", () => {
    const engine = { threads: threads++ };
    const budgetOf = (memoryBudget: string | number): number =>
      Engine.shared({ ...engine, memoryBudget }).memory().budget;
    assert.equal(budgetOf(123456), 123456);
    assert.equal(budgetOf("12GiB"), 12 * 2 ** 30);
    assert.equal(budgetOf("1.5 mb"), 1_500_000);
    for (const wrong of ["", "many", "-1", "12 GiBit", 0, -5, Number.NaN])
      assert.throws(() => budgetOf(wrong), { code: "ERR_RLHF_ARGUMENT" }, String(wrong));
  });

  it("is by default the machine's, on a GPU what it has free but for a thirty-second", () => {
    const { budget } = Engine.shared({ threads: threads++, device: testDevice }).memory();
    const emulated = process.env["RLHF_SIMT_MEMORY"];
    if (emulated) assert.equal(budget, (Number(emulated) / 32) * 31);
    else assert.ok(budget > 2 ** 28 && budget <= 2 ** 50, `${budget}`);
  });
});
