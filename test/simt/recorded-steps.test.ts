import assert from "node:assert/strict";
import type { NativeGenerateOptions } from "../../lib/engine/native.ts";
import { cudaBackend, kernels } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomiseParameters,
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

/** What a model generates on a backend, and which kernels and recordings ran. */
function generate(
  backend: string,
  config: typeof MICRO_LLAMA | typeof MICRO_GPT2,
  prompts: readonly Int32Array[],
  options: Partial<NativeGenerateOptions>,
): { tokens: number[][]; launches: string[] } {
  const model = createModel(config, { backend, type: "float32" });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family] });
  randomiseParameters(model);
  kernels.simtLaunches();
  const generations = model.generate([...prompts], { stopTokens: new Int32Array(), ...options });
  return { tokens: generations.map(({ tokens }) => [...tokens]), launches: kernels.simtLaunches() };
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
