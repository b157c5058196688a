import assert from "node:assert/strict";
import type { NativeGenerateOptions } from "../../lib/engine/native.ts";
import { cudaBackend, kernels } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  type KernelsModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomiseParameters,
  randomValues,
  sizeOf,
  TARGETS,
} from "../support/kernels-model.ts";

/* Decoding steps on a device that records commands: a CUDA graph there, a list of the same ops on the emulator. */

const PROMPTS = [
  Int32Array.of(1, 5, 3),
  Int32Array.of(7),
  Int32Array.of(2, 2, 9, 4, 11, 0, 6),
  Int32Array.of(12, 3),
  Int32Array.of(4, 4, 4),
];

type Options = Partial<NativeGenerateOptions>;
type Generated = { readonly tokens: number[][]; readonly launches: string[] };
type Config = typeof MICRO_LLAMA | typeof MICRO_GPT2;

function makeModel(backend: string, config: Config): KernelsModel {
  const model = createModel(config, { backend, type: "float32" });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family] });
  randomiseParameters(model);
  return model;
}

/** What a model generates, and which kernels and recordings ran. */
function generateWith(model: KernelsModel, prompts: readonly Int32Array[], options: Options): Generated {
  kernels.simtLaunches();
  const generations = model.generate([...prompts], { stopTokens: new Int32Array(), ...options });
  return { tokens: generations.map(({ tokens }) => [...tokens]), launches: kernels.simtLaunches() };
}

/** The same of a new model. */
function generate(
  backend: string,
  config: Config,
  prompts: readonly Int32Array[],
  options: Options,
): Generated {
  return generateWith(makeModel(backend, config), prompts, options);
}

const recordings = (launches: readonly string[]): number =>
  launches.filter((name) => name === "graph").length;

describe("recorded decoding steps", () => {
  it("run from the third step of as many sequences on, with the kernels of the others", () => {
    const options = { maxNewTokens: 8, temperature: 0 };
    const { launches } = generate("simt:apart", MICRO_LLAMA, PROMPTS.slice(0, 1), options);
    // Of eight tokens the prompt's pass gives the first.
    assert.equal(recordings(launches), 5);
    const steps = launches.join(" ").split(" graph ").slice(1);
    assert.equal(new Set(steps).size, 1);
    const plain = generate("simt", MICRO_LLAMA, PROMPTS.slice(0, 1), options).launches;
    assert.equal(recordings(plain), 0);
    assert.deepEqual(
      launches.filter((name) => name !== "graph"),
      plain,
    );
  });

  for (const [name, config, options] of [
    ["greedy", MICRO_LLAMA, { temperature: 0 }],
    ["sampled, with an adapter", MICRO_LLAMA, { temperature: 1, topP: 0.95, seed: 3, adapter: "policy" }],
    [
      "penalised, tokens that stop",
      MICRO_GPT2,
      { temperature: 1, repetitionPenalty: 1.3, minNewTokens: 4, stopTokens: Int32Array.of(1, 3, 5) },
    ],
  ] as const)
    it(`give the tokens that steps give which are not recorded: ${name}`, () => {
      // Sequences begin and end at different steps: steps of three, two and one in turn.
      const all = { maxNewTokens: 12, maxBatch: 3, ...options };
      const recorded = generate("simt:apart", config, PROMPTS, all);
      assert.ok(recordings(recorded.launches) > 4);
      assert.deepEqual(recorded.tokens, generate("simt", config, PROMPTS, all).tokens);
    });

  for (const adapter of [undefined, "policy"])
    it(`give on ${cudaBackend} the tokens of calls that end before any step is recorded${adapter ? ", with an adapter" : ""}`, () => {
      const options = { temperature: 0, ...(adapter !== undefined && { adapter }) };
      const recorded = generate(cudaBackend, MICRO_LLAMA, PROMPTS, { ...options, maxNewTokens: 12 });
      const prefixes = PROMPTS.map((prompt) => [...prompt]);
      for (let tokens = 0; tokens < 12; tokens += 3) {
        const prompts = prefixes.map((prefix) => Int32Array.from(prefix));
        const more = generate(cudaBackend, MICRO_LLAMA, prompts, { ...options, maxNewTokens: 3 });
        assert.equal(recordings(more.launches), 0);
        for (const [index, each] of more.tokens.entries()) prefixes[index]!.push(...each);
      }
      const given = prefixes.map((prefix, index) => prefix.slice(PROMPTS[index]!.length));
      assert.deepEqual(recorded.tokens, given);
    });

  it("give these tokens also where a sequence grows into another split of decodeAttention", () => {
    const config = { ...MICRO_LLAMA, maxPositions: 300 };
    const prompts = [PROMPTS[0]!, Int32Array.from({ length: 251 }, (_, index) => (7 * index * index) % 13)];
    const options = { maxNewTokens: 10, temperature: 0 };
    const recorded = generate("simt:apart", config, prompts, options);
    assert.equal(recordings(recorded.launches), 7);
    assert.ok(recorded.launches.some((name) => name.startsWith("joinSplitsKernel")));
    for (const backend of ["simt", "ref"])
      assert.deepEqual(recorded.tokens, generate(backend, config, prompts, options).tokens);
  });
});

/** Prompts as long as those, of other tokens. */
const OTHERS = PROMPTS.map((prompt) => prompt.map((token) => (token + 3) % 13));

/** Other numbers in the same places. */
function otherParameters(model: KernelsModel): void {
  for (const parameter of model.parameters())
    model.write(parameter.name, randomValues(sizeOf(parameter), `other ${parameter.name}`));
}

/** A model on the emulated device, and the same one where nothing is recorded, which tells what the first shall say. */
class Pair {
  static readonly #config = { ...MICRO_LLAMA, maxPositions: 100 };
  readonly recorded = makeModel("simt:apart", Pair.#config);
  readonly plain = makeModel("simt", Pair.#config);

  /** Changes both. */
  change(how: (model: KernelsModel) => void): void {
    how(this.recorded);
    how(this.plain);
  }

  /** Generates with both, and gives how many steps ran from a recording and how many by themselves. */
  steps(prompts: readonly Int32Array[], options: Options): { recorded: number; others: number } {
    const { tokens, launches } = generateWith(this.recorded, prompts, options);
    const plain = generateWith(this.plain, prompts, options);
    assert.deepEqual(tokens, plain.tokens);
    const recorded = recordings(launches);
    return { recorded, others: launches.filter((name) => name.startsWith("sample")).length - recorded };
  }
}

describe("recordings of an earlier call", () => {
  const options = { maxNewTokens: 8, temperature: 1, seed: 4 };

  it("run from the first step on, whatever prompts and weights hold", () => {
    const pair = new Pair();
    const first = pair.steps(PROMPTS, options);
    assert.deepEqual(first.recorded, 5);
    assert.equal(pair.steps(OTHERS, options).recorded, 7);
    // Shorter prompts and answers have room where longer ones had it.
    assert.equal(
      pair.steps(
        PROMPTS.map((prompt) => prompt.slice(0, 1)),
        { ...options, maxNewTokens: 5 },
      ).recorded,
      4,
    );
    pair.change((model) => otherParameters(model));
    assert.equal(pair.steps(PROMPTS, { ...options, firstStream: 40 }).recorded, 7);
  });

  it("are made anew where settings, the adapter or the number of sequences are others", () => {
    const pair = new Pair();
    for (const other of [
      {},
      { temperature: 0.5 },
      { topK: 3 },
      { seed: 5 },
      { adapter: "policy" },
      { minNewTokens: 8, stopTokens: Int32Array.of(9) },
    ])
      assert.equal(
        pair.steps(PROMPTS.slice(0, 2), { ...options, ...other }).recorded,
        5,
        JSON.stringify(other),
      );
    assert.equal(pair.steps(PROMPTS.slice(1, 2), options).recorded, 5);
    assert.equal(pair.steps(PROMPTS.slice(1, 2), options).recorded, 7);
  });

  it("are made anew where arrays have moved", () => {
    const pair = new Pair();
    const adapted = { ...options, adapter: "policy" };
    assert.equal(pair.steps(PROMPTS, adapted).recorded, 5);
    pair.change((model) => {
      model.removeAdapter("policy");
      model.addAdapter("other", { ...ADAPTER, targetModules: TARGETS[MICRO_LLAMA.family] });
      model.addAdapter("policy", { ...ADAPTER, rank: 3, targetModules: TARGETS[MICRO_LLAMA.family] });
      otherParameters(model);
    });
    assert.equal(pair.steps(PROMPTS, adapted).recorded, 5);
    // A pass of more tokens takes other memory for work, and the cache's may be lent to it.
    pair.change((model) => {
      const tokens = Int32Array.from({ length: 60 }, (_, index) => index % 13);
      const batch = { tokens, offsets: Int32Array.of(0, 30, 60), predictions: Int32Array.of(5, 40) };
      model.disposePass(model.forward(batch, { adapter: "policy", grad: true }).pass);
    });
    assert.equal(pair.steps(PROMPTS, adapted).recorded, 5);
    assert.equal(pair.steps(PROMPTS, adapted).recorded, 7);
  });

  it(`give on ${cudaBackend} what a model generates whose first call it is`, () => {
    const model = makeModel(cudaBackend, MICRO_LLAMA);
    for (const other of [{}, { adapter: "policy" }, {}])
      for (const prompts of [PROMPTS.slice(0, 2), OTHERS.slice(0, 2)]) {
        const given = { ...options, ...other };
        const expected = generate(cudaBackend, MICRO_LLAMA, prompts, given).tokens;
        assert.deepEqual(generateWith(model, prompts, given).tokens, expected, JSON.stringify(other));
      }
  });

  it("serve although prompts of other lengths would lay the cache out otherwise", () => {
    const pair = new Pair();
    const long = [Int32Array.from({ length: 40 }, (_, index) => index % 13), ...PROMPTS.slice(1)];
    assert.equal(pair.steps(long, options).recorded, 5);
    assert.equal(pair.steps([PROMPTS[0]!, long[0]!, ...OTHERS.slice(2)], options).recorded, 7);
  });
});

describe("a recording that fails", () => {
  const options = { maxNewTokens: 8, temperature: 0 };

  for (const [reason, code, message] of [
    ["", "ERR_RLHF_MEMORY", /recording commands failed on simt:apart .*: give a smaller memoryBudget/],
    [
      "unspecified launch failure",
      "ERR_RLHF_INTERNAL",
      /recording commands failed .*: unspecified launch failure$/,
    ],
  ] as const)
    it(`is ${code}, and generation goes on when the device does`, () => {
      const model = makeModel("simt:apart", MICRO_LLAMA);
      generateWith(model, PROMPTS, { ...options, maxNewTokens: 3 });
      model.failAllocationsAfter(0, reason);
      try {
        assert.throws(() => generateWith(model, PROMPTS, options), { code, message });
      } finally {
        model.failAllocationsAfter(-1);
      }
      const { tokens, launches } = generateWith(model, PROMPTS, options);
      assert.equal(recordings(launches), 5);
      assert.deepEqual(tokens, generate("simt", MICRO_LLAMA, PROMPTS, options).tokens);
    });
});
