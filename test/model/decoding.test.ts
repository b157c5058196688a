import assert from "node:assert/strict";
import type { NativeGenerateOptions } from "../../lib/engine/native.ts";
import { cudaBackend } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  type KernelsModel,
  MICRO_GPT_NEOX,
  MICRO_GPT2,
  MICRO_LLAMA,
  MICRO_MISTRAL,
  MICRO_QWEN2,
  MICRO_QWEN3,
  randomiseParameters,
  TARGETS,
} from "../support/kernels-model.ts";

const GREEDY: Partial<NativeGenerateOptions> = {
  maxNewTokens: 8,
  temperature: 0,
  stopTokens: new Int32Array(),
};
const SAMPLED: Partial<NativeGenerateOptions> = { ...GREEDY, temperature: 1, topP: 0.95, seed: 3 };
const PROMPTS = [
  Int32Array.of(1, 5, 3),
  Int32Array.of(7),
  Int32Array.of(2, 2, 9, 4, 11, 0, 6),
  Int32Array.of(12, 3),
];

function micro(backend: string, config = MICRO_LLAMA): KernelsModel {
  const model = createModel(config, { backend, type: "float32" });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family] });
  randomiseParameters(model);
  return model;
}

/** The most probable next token by the training forward: the sequence is scored with every token of the vocabulary. */
function mostProbable(
  model: KernelsModel,
  prefix: readonly number[],
  vocab: number,
  adapter: string,
): number {
  const length = prefix.length + 1;
  const tokens = Array.from({ length: vocab }, (_, token) => [...prefix, token]).flat();
  const { logProb } = model.forward(
    {
      tokens: Int32Array.from(tokens),
      offsets: Int32Array.from({ length: vocab + 1 }, (_, i) => i * length),
      predictions: Int32Array.from({ length: vocab }, (_, i) => i * length + length - 1),
    },
    { adapter },
  );
  const scores = Array.from({ length: vocab }, (_, token) => logProb![token * length + length - 1]!);
  return scores.indexOf(Math.max(...scores));
}

const tokensOf = (generations: readonly { tokens: Int32Array }[]): number[][] =>
  generations.map((generation) => [...generation.tokens]);

describe("generation of a model", () => {
  for (const backend of ["ref", "cpu", cudaBackend]) {
    for (const config of [MICRO_LLAMA, MICRO_GPT2, MICRO_MISTRAL, MICRO_QWEN2, MICRO_QWEN3, MICRO_GPT_NEOX]) {
      it(`follows the training forward greedily: ${config.family} on ${backend}, with an adapter`, () => {
        const model = micro(backend, config);
        const generations = model.generate(PROMPTS, { ...GREEDY, adapter: "policy", maxBatch: 3 });
        for (const [p, prompt] of PROMPTS.entries()) {
          const prefix = [...prompt];
          assert.equal(generations[p]!.tokens.length, 8);
          for (const token of generations[p]!.tokens) {
            assert.equal(token, mostProbable(model, prefix, config.vocab, "policy"));
            prefix.push(token);
          }
        }
      });
    }

    it(`draws the same tokens whatever is decoded beside them (${backend})`, () => {
      const model = micro(backend);
      const together = tokensOf(model.generate(PROMPTS, { ...SAMPLED, maxBatch: 64 }));
      assert.deepEqual(tokensOf(model.generate(PROMPTS, { ...SAMPLED, maxBatch: 1 })), together);
      assert.deepEqual(tokensOf(model.generate(PROMPTS, { ...SAMPLED, maxBatch: 2 })), together);
      const last = model.generate(PROMPTS.slice(3), { ...SAMPLED, firstStream: 3 });
      assert.deepEqual(tokensOf(last), together.slice(3));
      assert.notDeepEqual(tokensOf(model.generate(PROMPTS, { ...SAMPLED, seed: 4 })), together);
    });
  }

  for (const backend of ["ref", "cpu", cudaBackend])
    it(`answers equal prompts as each by itself, whatever they share (${backend})`, () => {
      const model = micro(backend, { ...MICRO_LLAMA, maxPositions: 128 });
      const promptOf = (length: number) => Int32Array.from({ length }, (_, i) => (i * i + length) % 13);
      // Full pages alone, a page that is not full alone, both; in an order that mixes them.
      const lengths = [32, 5, 70, 32, 70, 5, 70, 33, 32, 5, 70];
      const prompts = lengths.map(promptOf);
      const settings = { ...SAMPLED, maxNewTokens: 40, stopTokens: Int32Array.of(4) };
      const alone = prompts.flatMap((prompt, i) =>
        tokensOf(model.generate([prompt], { ...settings, firstStream: i })),
      );
      assert.ok(new Set(alone.map((tokens) => tokens.join())).size === prompts.length);
      for (const maxBatch of [1, 2, 3, 64])
        assert.deepEqual(tokensOf(model.generate(prompts, { ...settings, maxBatch })), alone);
    });

  it("ends after a stop token, keeps it, and gives its place to a prompt that waits", () => {
    const model = micro("cpu");
    const free = tokensOf(model.generate(PROMPTS, GREEDY));
    const stop = free[0]![2]!;
    const stopped = model.generate(PROMPTS, { ...GREEDY, stopTokens: Int32Array.of(stop), maxBatch: 2 });
    for (const [p, generation] of stopped.entries()) {
      const end = free[p]!.indexOf(stop);
      assert.equal(generation.stopped, end >= 0);
      assert.deepEqual([...generation.tokens], end >= 0 ? free[p]!.slice(0, end + 1) : free[p]);
    }
  });

  it("draws no stop token before minNewTokens", () => {
    const model = micro("cpu");
    const stopTokens = Int32Array.from({ length: 6 }, (_, token) => 2 * token);
    const generations = model.generate(PROMPTS, { ...SAMPLED, stopTokens, minNewTokens: 4 });
    for (const generation of generations) {
      assert.ok(generation.tokens.length >= 5 || !generation.stopped);
      assert.ok(generation.tokens.subarray(0, 4).every((token) => !stopTokens.includes(token)));
    }
    assert.ok(generations.some((generation) => generation.stopped));
  });

  it("ends where the context is full", () => {
    const model = micro("cpu");
    const long = Int32Array.from({ length: MICRO_LLAMA.maxPositions - 2 }, (_, i) => i % 13);
    const generations = model.generate([long], GREEDY);
    assert.deepEqual(
      generations.map((generation) => [generation.tokens.length, generation.stopped]),
      [[2, false]],
    );
    for (const more of [0, 1]) {
      const full = Int32Array.from({ length: MICRO_LLAMA.maxPositions + more }, () => 1);
      assert.throws(() => model.generate([full], GREEDY), { code: "ERR_RLHF_CONTEXT_LENGTH" });
    }
  });

  it("repeats itself less with a repetition penalty", () => {
    const model = micro("cpu");
    const distinct = (repetitionPenalty: number): number[] =>
      model
        .generate(PROMPTS, { ...GREEDY, repetitionPenalty })
        .map((generation, p) => new Set([...PROMPTS[p]!, ...generation.tokens]).size);
    const [free, penalised] = [distinct(1), distinct(2)];
    assert.ok(penalised.every((count, p) => count >= free[p]!));
    assert.ok(penalised.some((count, p) => count > free[p]!));
  });

  it("refuses what makes no sense", () => {
    const model = micro("ref");
    const refused = (options: Partial<NativeGenerateOptions>, message: RegExp): void => {
      assert.throws(() => model.generate(PROMPTS, { ...GREEDY, ...options }), {
        code: "ERR_RLHF_ARGUMENT",
        message,
      });
    };
    refused({ topP: 0 }, /topP is 0, expected above 0/);
    refused({ temperature: -1 }, /temperature is -1/);
    refused({ repetitionPenalty: 0 }, /repetitionPenalty is 0/);
    refused({ maxBatch: 0 }, /maxBatch is 0/);
    assert.throws(() => model.generate([new Int32Array()], GREEDY), {
      code: "ERR_RLHF_ARGUMENT",
      message: /prompts\[0\] has no tokens/,
    });
    assert.throws(() => model.generate([Int32Array.of(1, 99)], GREEDY), {
      code: "ERR_RLHF_TOKEN_RANGE",
      message: /prompts\[0\]\[1\] is 99/,
    });
  });
});
