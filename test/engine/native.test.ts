import assert from "node:assert/strict";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import {
  type ModelConfig,
  type NativeBatch,
  type NativeEngine,
  type NativeModel,
  native,
} from "../../lib/engine/native.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";

/*
 * The addon under misuse and through its objects' lives. TypeScript refuses most of the misuse, so these calls go round the types,
 * as JavaScript callers can: whatever they pass gives an error with a code and never ends the process.
 */

const CONFIG: ModelConfig = {
  family: "llama",
  layers: 2,
  hidden: 16,
  heads: 2,
  kvHeads: 1,
  headDim: 8,
  intermediate: 24,
  vocab: 31,
  maxPositions: 64,
  normEps: 1e-5,
  inverseFrequencies: [1, 0.1, 0.01, 0.001],
  rotaryScale: 1,
  windows: [],
  activation: "silu",
  tiedEmbeddings: true,
  attentionBias: false,
  attentionOutBias: false,
  mlpBias: false,
  headNorm: false,
  parallelResidual: false,
};

const BATCH: NativeBatch = {
  tokens: Int32Array.of(3, 1, 4, 1, 5, 9),
  offsets: Int32Array.of(0, 4, 6),
  predictions: Int32Array.of(1, 2, 3, 5),
};
const ROWS = BATCH.tokens.length;

const Q_PROJ = "model.layers.0.self_attn.q_proj";
const LORA = { layers: [{ module: Q_PROJ, rank: 2, scale: 2 }], dropout: 0, trainable: true, seed: 1 };
const FORWARD = { adapter: "", head: "", temperature: 1, grad: false, statistics: true };
const WITH_GRADIENTS = { ...FORWARD, grad: true };
const GENERATE = {
  maxNewTokens: 16,
  minNewTokens: 0,
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 7,
  firstStream: 0,
  stopTokens: new Int32Array(),
  maxBatch: 8,
  adapter: "",
};

/** A generation that takes so long that it can be stopped half-way. */
const LONG_CONTEXT = { ...CONFIG, hidden: 64, headDim: 32, maxPositions: 4096 };
const LONG_ANSWER = { ...GENERATE, maxNewTokens: 4000 };

async function makeModel(engine: NativeEngine, config: ModelConfig = CONFIG): Promise<NativeModel> {
  const model = await engine.createModel(config, true);
  await model.initialise(0.5, 1);
  return model;
}

async function logProbs(model: NativeModel): Promise<Float32Array> {
  const pass = await model.forward(BATCH, FORWARD);
  const array = pass.array("logProb");
  const values = await array.read();
  array.dispose();
  pass.dispose();
  return values;
}

/** The promise must reject, or the call throw, with this code. */
async function refuses(code: string, body: () => unknown, message?: RegExp): Promise<void> {
  await assert.rejects(
    async () => {
      await body();
    },
    (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message);
      if (message) assert.match(error.message, message);
      return true;
    },
  );
}

/** A value as whatever type the call asks for. */
function as<Type>(value: unknown): Type {
  return value as Type;
}

const ones = (length: number): Float32Array => new Float32Array(length).fill(1);

describe("the addon under misuse", () => {
  let engine: NativeEngine;
  let model: NativeModel;
  before(async () => {
    engine = new (native().Engine)({ threads: 2 });
    model = await makeModel(engine);
  });
  after(() => {
    model.dispose();
    engine.dispose();
  });

  const wrongArguments: Record<string, () => unknown> = {
    "a fractional number of threads": () => new (native().Engine)({ threads: 1.5 }),
    "a NaN number of threads": () => new (native().Engine)({ threads: Number.NaN }),
    "no threads": () => new (native().Engine)({ threads: 0 }),
    "a configuration that is a string": () => engine.createModel(as("llama"), true),
    "a trainable that is a number": () => engine.createModel(CONFIG, as(1)),
    "a configuration without a size": () => engine.createModel(as({ ...CONFIG, hidden: undefined }), true),
    "tokens in an array": () => model.forward(as({ ...BATCH, tokens: [1, 2] }), FORWARD),
    "tokens in a Uint32Array": () => model.forward(as({ ...BATCH, tokens: new Uint32Array(6) }), FORWARD),
    "no tokens": () => model.forward({ ...BATCH, tokens: new Int32Array() }, FORWARD),
    "offsets beyond the tokens": () => model.forward({ ...BATCH, offsets: Int32Array.of(0, 9, 6) }, FORWARD),
    "negative offsets": () => model.forward({ ...BATCH, offsets: Int32Array.of(0, -2, 6) }, FORWARD),
    "a prediction of a first token": () =>
      model.forward({ ...BATCH, predictions: Int32Array.of(4) }, FORWARD),
    "a NaN temperature": () => model.forward(BATCH, { ...FORWARD, temperature: Number.NaN }),
    "values in a Float64Array": () => model.writeParameter("model.norm.weight", as(new Float64Array(16))),
    "an adapter of NaN rank": () =>
      model.addAdapter("a", { ...LORA, layers: [{ module: Q_PROJ, rank: Number.NaN, scale: 1 }] }),
    "an adapter of negative rank": () =>
      model.addAdapter("a", { ...LORA, layers: [{ module: Q_PROJ, rank: -1, scale: 1 }] }),
    "an adapter on the same layer twice": () =>
      model.addAdapter("a", { ...LORA, layers: [...LORA.layers, ...LORA.layers] }),
    "an adapter that drops everything": () => model.addAdapter("a", { ...LORA, dropout: 1 }),
    "a dropout seed of a half": () => model.forward(BATCH, { ...FORWARD, dropoutSeed: 0.5 }),
    "a head with a negative inner width": () =>
      model.addHead("h", { inner: -1, activation: "tanh", bias: true, initStd: 0, seed: 0 }),
    "no live passes": () => model.setMaxLivePasses(0),
    "more live passes than integers go": () => model.setMaxLivePasses(2 ** 60),
    "a negative number of new tokens": () =>
      model.generate([Int32Array.of(1)], { ...GENERATE, maxNewTokens: -1 }).promise,
    "a prompt in an array": () => model.generate(as([[1, 2]]), GENERATE),
    "an onToken that is no function": () => model.generate([Int32Array.of(1)], GENERATE, as("print")),
    "an optimizer of an engine": () => new (native().Optimizer)(as(engine), ["base"], as({})),
    "an optimizer of a proxy": () => new (native().Optimizer)(new Proxy(model, {}), ["base"], as({})),
    "a pass made by hand": () => new (as<new () => unknown>(Reflect.get(native(), "Pass")))(),
    "a model made from another's constructor": () => Reflect.construct(model.constructor, [{}]),
    "an operation on something else than an engine": () =>
      native().whiten(as({}), { x: ones(2), mask: ones(2) }),
    "an array that is a plain object": () => native().whiten(engine, { x: {}, mask: ones(2) }),
  };
  for (const [what, body] of Object.entries(wrongArguments))
    it(`refuses ${what}`, () => refuses("ERR_RLHF_ARGUMENT", body));

  it("refuses getters and methods on objects of another class", async () => {
    const pass = await model.forward(BATCH, FORWARD);
    const array = pass.array("logProb");
    const { Engine } = native();
    const getters: readonly (readonly [object, string])[] = [
      [Engine.prototype, "info"],
      [Object.getPrototypeOf(pass), "rows"],
      [Object.getPrototypeOf(array), "length"],
    ];
    for (const [prototype, name] of getters) {
      const getter = Object.getOwnPropertyDescriptor(prototype, name)?.get as () => unknown;
      for (const other of [model, {}, Object.create(prototype), undefined])
        await refuses("ERR_RLHF_ARGUMENT", () => getter.call(other), /this must be of this package's class/);
    }
    assert.throws(() => Engine.prototype.createModel.call(as(model), CONFIG, true), TypeError);
    const forged = Object.setPrototypeOf(await model.forward(BATCH, FORWARD), Engine.prototype);
    await refuses("ERR_RLHF_ARGUMENT", () => forged.info);
    array.dispose();
    pass.dispose();
  });

  it("refuses offsets that are not the bounds of the arrays it was given", async () => {
    const { gae, klReward } = native();
    for (const offsets of [[0, 900_000_000], [-900_000_000, 4], [0, 3], [0, 3, 2, 4], [0], []]) {
      const args = { mask: ones(4), offsets: Int32Array.from(offsets) };
      await refuses("ERR_RLHF_ARGUMENT", () =>
        gae(engine, { ...args, reward: ones(4), value: ones(4), gamma: 1, lambda: 1 }),
      );
      await refuses("ERR_RLHF_ARGUMENT", () =>
        klReward(engine, {
          ...args,
          logProb: ones(4),
          refLogProb: ones(4),
          score: ones(1),
          klCoefficient: 1,
        }),
      );
    }
  });

  it("refuses arrays of other lengths, also beside an empty one", async () => {
    await refuses("ERR_RLHF_SHAPE", () => native().whiten(engine, { x: ones(3), mask: ones(4) }));
    const empty = ones(8).subarray(8);
    await refuses("ERR_RLHF_SHAPE", () => native().whiten(engine, { x: empty, mask: ones(1 << 20) }));
    await refuses("ERR_RLHF_ARGUMENT", () =>
      native().rewardLoss(engine, {
        value: ones(3),
        chosen: Int32Array.of(99),
        rejected: Int32Array.of(-4),
        scored: new Int32Array(0),
        scale: 1,
      }),
    );
    const pass = await model.forward(BATCH, WITH_GRADIENTS);
    await refuses("ERR_RLHF_SHAPE", () => pass.backward({ dLogProb: ones(ROWS - 1) }));
    await pass.backward({ dLogProb: ones(ROWS) });
    await refuses("ERR_RLHF_PASS_CONSUMED", () => pass.backward({ dLogProb: ones(ROWS) }));
    await model.zeroGradients("base");
    pass.dispose();
  });

  it("reads arrays at the call: they may be changed or taken away at once", async () => {
    const name = "model.embed_tokens.weight",
      size = CONFIG.vocab * CONFIG.hidden,
      bytes = 4 * size;
    const before = new Float32Array(size);
    await model.readParameter(name, before);
    const transferred = new Float32Array(size).fill(2);
    const first = model.writeParameter(name, transferred);
    structuredClone(transferred.buffer, { transfer: [transferred.buffer] });
    await first;
    const written = new Float32Array(size);
    await model.readParameter(name, written);
    assert.ok(written.every((value) => value === 2));

    const buffer = new (as<
      new (
        length: number,
        options: object,
      ) => ArrayBuffer & { resize(length: number): void }
    >(ArrayBuffer))(bytes, { maxByteLength: bytes });
    const shrunk = new Float32Array(buffer);
    shrunk.set(before);
    const second = model.writeParameter(name, shrunk);
    buffer.resize(0);
    await second;
    await model.readParameter(name, written);
    assert.deepEqual(written, before);

    await refuses("ERR_RLHF_SHAPE", () => model.writeParameter(name, transferred), /got 0/);
  });

  it("refuses sizes that no memory holds", async () => {
    const huge = { ...CONFIG, layers: 65536, hidden: 2 ** 24, intermediate: 2 ** 24 };
    await refuses("ERR_RLHF_MEMORY", () => engine.createModel(huge, false));
    const manyHeads = { ...huge, heads: 65536, kvHeads: 65536, headDim: 1024 };
    await refuses("ERR_RLHF_MEMORY", () => engine.createModel(manyHeads, false));
    await refuses("ERR_RLHF_UNSUPPORTED", () => engine.createModel({ ...manyHeads, headDim: 65536 }, false));
    await refuses("ERR_RLHF_CONFIG", () => engine.createModel({ ...CONFIG, hidden: 2 ** 40 }, false));
  });

  it("refuses configurations whose parts do not fit together", async () => {
    const neox = { ...CONFIG, family: "gpt_neox", kvHeads: 2, activation: "gelu" } as const;
    (await engine.createModel(neox, false)).dispose();
    const wrong: [Partial<ModelConfig>, RegExp][] = [
      [{ inverseFrequencies: [] }, /inverseFrequencies is a list of 0/],
      [{ inverseFrequencies: [1, 1, 1, 1, 1] }, /at most headDim \/ 2/],
      [{ inverseFrequencies: [1, Number.NaN] }, /inverseFrequencies is nan/],
      [{ inverseFrequencies: [-1] }, /inverseFrequencies is -1/],
      [{ rotaryScale: 0 }, /rotaryScale is 0/],
      [{ windows: [3] }, /windows is a list of 1, expected one per layer/],
      [{ windows: [3, -1] }, /windows is -1/],
      [{ parallelResidual: true }, /parallelResidual is true/],
      [{ family: "gpt2" }, /empty list for gpt2/],
      [{ ...neox, kvHeads: 1 }, /kvHeads is 1, expected equal to heads/],
      [{ ...neox, headNorm: true }, /headNorm is true/],
      [{ ...neox, headDim: 10 }, /headDim is 10/],
    ];
    for (const [change, message] of wrong)
      await refuses("ERR_RLHF_CONFIG", () => engine.createModel({ ...CONFIG, ...change }, false), message);
    for (const windows of ["3", [1.5, 2], [null, 1]])
      await refuses(
        "ERR_RLHF_ARGUMENT",
        () => engine.createModel({ ...CONFIG, windows: as(windows) }, false),
        /windows/,
      );
  });

  it("refuses parameters that are not in their file", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = join(directory, "weights");
      await writeFile(path, new Uint8Array(64));
      const source = { path, offset: 0, count: 16, dtype: "F32" };
      const load = (change: Partial<typeof source>) => () =>
        model.loadParameter("model.norm.weight", { ...source, ...change });
      await refuses("ERR_RLHF_ARGUMENT", load({ count: -1 }));
      await refuses("ERR_RLHF_ARGUMENT", load({ offset: -4 }));
      await refuses("ERR_RLHF_IO", load({ count: 2 ** 50 }), /truncated/);
      await refuses("ERR_RLHF_IO", load({ offset: 2 ** 50 }), /truncated/);
      await refuses("ERR_RLHF_IO", load({ path: directory }), /not a regular file/);
      await refuses("ERR_RLHF_IO", load({ path: join(directory, "absent") }));
      await refuses("ERR_RLHF_SHAPE", load({ count: 8 }));
      await refuses("ERR_RLHF_WEIGHTS", load({ dtype: "I8" }));
    });
  });

  it("refuses a clipping norm that is NaN and leaves the optimizer as it was", async () => {
    const optimizer = new (native().Optimizer)(model, ["base"], as({}));
    await refuses("ERR_RLHF_ARGUMENT", () =>
      optimizer.step({ learningRate: 0.1, maxGradNorm: Number.NaN, gradientScale: 1 }),
    );
    assert.equal(optimizer.stepCount(), 0);
    optimizer.dispose();
  });
});

describe("the lives of the addon's objects", () => {
  let engine: NativeEngine;
  let model: NativeModel;
  beforeEach(async () => {
    engine = new (native().Engine)({ threads: 2 });
    model = await makeModel(engine);
  });
  afterEach(() => {
    model.dispose();
    engine.dispose();
  });

  it("finishes running commands of disposed objects, and refuses new ones", async () => {
    const { promise } = model.generate([Int32Array.of(1)], GENERATE);
    const values = logProbs(model);
    const pass = model.forward(BATCH, WITH_GRADIENTS);
    const loss = native().whiten(engine, { x: ones(5), mask: ones(5) });
    model.dispose();
    model.dispose();
    engine.dispose();
    await refuses("ERR_RLHF_DISPOSED", () => model.parameters());
    await refuses("ERR_RLHF_DISPOSED", () => model.forward(BATCH, FORWARD));
    await refuses("ERR_RLHF_DISPOSED", () => engine.info);
    await refuses("ERR_RLHF_DISPOSED", () => native().whiten(engine, { x: ones(2), mask: ones(2) }));

    assert.equal((await promise)[0]?.tokens.length, GENERATE.maxNewTokens);
    assert.equal((await values).length, ROWS);
    const live = await pass;
    const array = live.array("logProb");
    const running = live.backward({ dLogProb: ones(ROWS) });
    live.dispose();
    await running;
    await refuses("ERR_RLHF_PASS_CONSUMED", () => array.read());
    assert.deepEqual(
      await ((await loss)["y"] as { read(): Promise<Float32Array> }).read(),
      new Float32Array(5),
    );
  });

  it("steps an optimizer on an engine that has run no pass", async () => {
    const optimizer = new (native().Optimizer)(model, ["base"], as({}));
    const result = await optimizer.step({ learningRate: 0.1, maxGradNorm: 1, gradientScale: 1 });
    assert.deepEqual(result, { gradNorm: 0, skipped: false, lossScale: 1 });
    assert.equal(optimizer.stepCount(), 1);
    optimizer.dispose();
  });

  it("keeps models on one engine apart, whatever their sizes", async () => {
    const alone = await logProbs(model);
    const wide = await makeModel(engine, { ...CONFIG, hidden: 96, intermediate: 130, vocab: 700 });
    const [first, other, second] = await Promise.all([logProbs(model), logProbs(wide), logProbs(model)]);
    assert.deepEqual(first, alone);
    assert.deepEqual(second, alone);
    assert.notDeepEqual(other, alone);
    wide.dispose();
    assert.deepEqual(await logProbs(model), alone);
  });

  it("holds no more memory after many passes than after the first ones", async () => {
    const passesOf = async (count: number): Promise<Record<string, number>> => {
      for (let i = 0; i < count; i++) {
        await logProbs(model);
        const pass = await model.forward(BATCH, WITH_GRADIENTS);
        if (i % 2 === 0) await pass.backward({ dLogProb: ones(ROWS) });
        pass.dispose();
      }
      return model.memory();
    };
    const few = await passesOf(4);
    assert.deepEqual(await passesOf(300), few);
  });

  it("gives a live pass back when its backward fails or it is disposed", async () => {
    model.setMaxLivePasses(1);
    for (let i = 0; i < 3; i++) {
      const pass = await model.forward(BATCH, WITH_GRADIENTS);
      await refuses("ERR_RLHF_PASS_LIVE", () => model.forward(BATCH, WITH_GRADIENTS));
      await refuses("ERR_RLHF_ARGUMENT", () => pass.backward({ dValue: ones(ROWS) }));
      pass.dispose();
    }
  });

  // Linux alone shows a process its own threads, as files; elsewhere it takes another program.
  if (process.platform === "linux")
    it("ends an engine's threads with it", async () => {
      const threads = (): number => readdirSync("/proc/self/task").length;
      const before = threads();
      for (let i = 0; i < 20; i++) {
        const other = new (native().Engine)({ threads: 3 });
        (await makeModel(other)).dispose();
        other.dispose();
      }
      const deadline = Date.now() + 5000;
      while (threads() > before && Date.now() < deadline) await new Promise((done) => setTimeout(done, 20));
      assert.ok(threads() <= before, `${threads()} threads, ${before} before`);
    });

  it("tells a model's parameters while commands run", async () => {
    const names = (): string[] => model.parameters().map((parameter) => parameter.name);
    const base = names();
    model.addAdapter("policy", LORA);
    assert.deepEqual(names().slice(base.length), [
      "policy:model.layers.0.self_attn.q_proj.lora_A",
      "policy:model.layers.0.self_attn.q_proj.lora_B",
    ]);
    const long = await makeModel(engine, LONG_CONTEXT);
    let finished = false;
    const running = long.generate([Int32Array.of(1)], LONG_ANSWER);
    const merged = model.mergeAdapter("policy", false).then(() => {
      finished = true;
    });
    assert.equal(names().length, base.length + 2);
    assert.equal(long.parameters().length, base.length);
    await new Promise((done) => setTimeout(done, 5));
    assert.equal(finished, false);
    running.cancel();
    await refuses("ERR_RLHF_ABORTED", () => running.promise);
    await merged;
    assert.deepEqual(names(), base);
    model.addAdapter("policy", LORA);
    const mergedAgain = model.mergeAdapter("policy", false);
    model.addAdapter("policy", LORA);
    await mergedAgain;
    assert.equal(names().length, base.length + 2);
    long.dispose();
  });

  it("cancels a generation before it starts and while it runs", async () => {
    const long = await makeModel(engine, LONG_CONTEXT);
    const running = long.generate([Int32Array.of(1)], LONG_ANSWER, () => running.cancel());
    const waiting = model.generate([Int32Array.of(1)], GENERATE);
    waiting.cancel();
    await refuses("ERR_RLHF_ABORTED", () => running.promise);
    await refuses("ERR_RLHF_ABORTED", () => waiting.promise);
    long.dispose();
    assert.equal((await logProbs(model)).length, ROWS);
  });

  /** A worker thread in the middle of long commands. */
  function startWorker(exits: boolean): Worker {
    const build = process.env["RLHF_BUILD_DIR"] ?? fileURLToPath(new URL("../../build", import.meta.url));
    return new Worker(fileURLToPath(new URL("terminated-worker.mjs", import.meta.url)), {
      workerData: {
        addon: resolve(build, "Release", "rlhf.node"),
        config: LONG_CONTEXT,
        generate: LONG_ANSWER,
        exits,
      },
    });
  }

  it("survives worker threads that exit inside a callback of a command", async () => {
    for (let i = 0; i < 3; i++) assert.deepEqual(await once(startWorker(true), "exit"), [7]);
    assert.equal((await logProbs(model)).length, ROWS);
  });

  it("survives worker threads that are terminated in the middle of commands", async () => {
    for (let i = 0; i < 5; i++) {
      const worker = startWorker(false);
      const [message] = await once(worker, "message");
      assert.equal(message, "running");
      await new Promise((done) => setTimeout(done, 17 * i));
      assert.equal(await worker.terminate(), 1);
    }
    assert.equal((await logProbs(model)).length, ROWS);
  });
});
