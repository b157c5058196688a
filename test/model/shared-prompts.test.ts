import assert from "node:assert/strict";
import type { NativeBatch } from "../../lib/engine/native.ts";
import { answerValues, packAnswers, packSequences, previousTokens } from "../../lib/index.ts";
import { predictionsOf } from "../../lib/model/batch.ts";
import { type KernelType, kernels } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  HEAD,
  type KernelsModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  MICRO_MISTRAL,
  randomBatch,
  randomiseParameters,
  randomUpstream,
  relativeDistance,
  SHARED_PROMPTS,
  TARGETS,
  type Upstream,
} from "../support/kernels-model.ts";

const { lengths: LENGTHS, parents: PARENTS } = SHARED_PROMPTS;
const POLICY = { adapter: "policy", head: "value", temperature: 0.9 } as const;

/** The batch with a copy of the parent's tokens before those of every child; `rows` says where each token of the first went. */
function unshared(batch: NativeBatch): { batch: NativeBatch; rows: number[] } {
  const tokens: number[] = [];
  const offsets = [0];
  const rows: number[] = [];
  for (const [s, parent] of PARENTS.entries()) {
    if (parent >= 0) tokens.push(...batch.tokens.slice(batch.offsets[parent], batch.offsets[parent + 1]));
    for (let t = batch.offsets[s]!; t < batch.offsets[s + 1]!; t++) {
      rows.push(tokens.length);
      tokens.push(batch.tokens[t]!);
    }
    offsets.push(tokens.length);
  }
  return {
    batch: {
      tokens: Int32Array.from(tokens),
      offsets: Int32Array.from(offsets),
      predictions: batch.predictions.map((t) => rows[t]!),
    },
    rows,
  };
}

function build(config: typeof MICRO_LLAMA, backend: string, type: KernelType, threads = 1): KernelsModel {
  const model = createModel(config, { backend, type, threads, trainable: true });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family], dropout: 0.3 });
  model.addHead("value", { ...HEAD, inner: 5 });
  randomiseParameters(model);
  return model;
}

function gradientsOf(model: KernelsModel, batch: NativeBatch, upstream: Upstream): Map<string, Float64Array> {
  const { pass } = model.forward(batch, { ...POLICY, grad: true });
  model.backward(pass, upstream);
  return new Map(model.parameters().map(({ name }) => [name, model.gradient(name)!]));
}

describe("a prompt shared by several sequences", () => {
  const backends: [string, KernelType][] = [
    ["ref", "float64"],
    ...kernels
      .backends()
      .filter((name) => name.startsWith("cpu"))
      .map((name): [string, KernelType] => [name, "float32"]),
  ];
  for (const [backend, type] of backends)
    for (const config of [MICRO_GPT2, MICRO_LLAMA, MICRO_MISTRAL]) {
      const shared = randomBatch(LENGTHS, config.vocab, (token) => token % 5 === 3, PARENTS);
      const copies = unshared(shared);

      it(`${config.family} on ${backend}: the same bits as with a copy for each`, () => {
        const model = build(config, backend, type);
        const actual = model.forward(shared, POLICY);
        const expected = model.forward(copies.batch, POLICY);
        for (const field of ["logProb", "lse", "entropy", "value"] as const)
          assert.deepEqual(
            actual[field],
            Float64Array.from(copies.rows, (row) => expected[field]![row]!),
            field,
          );
      });

      it(`${config.family} on ${backend}: the same bits with dropout`, () => {
        const model = build(config, backend, type);
        const actual = model.forward(shared, { ...POLICY, dropoutSeed: 5 });
        const expected = model.forward(copies.batch, { ...POLICY, dropoutSeed: 5 });
        assert.notDeepEqual(actual.value, model.forward(shared, POLICY).value);
        for (const field of ["logProb", "value"] as const)
          assert.deepEqual(
            actual[field],
            Float64Array.from(copies.rows, (row) => expected[field]![row]!),
            field,
          );
      });

      it(`${config.family} on ${backend}: the same gradients, in the same bits on any number of threads`, () => {
        const upstream = randomUpstream(shared.tokens.length, true);
        const spread: Record<string, Float64Array> = {};
        for (const [name, values] of Object.entries(upstream)) {
          const array = new Float64Array(copies.batch.tokens.length);
          for (const [t, row] of copies.rows.entries()) array[row] = values[t]!;
          spread[name] = array;
        }
        const expected = gradientsOf(build(config, backend, type), copies.batch, spread);
        const actual = gradientsOf(build(config, backend, type), shared, upstream);
        for (const [name, gradient] of actual) {
          const distance = relativeDistance(gradient, expected.get(name)!);
          assert.ok(distance <= (type === "float64" ? 1e-13 : 1e-6), `${name}: ${distance}`);
        }
        assert.deepEqual(gradientsOf(build(config, backend, type, 2), shared, upstream), actual);
        const recomputing = build(config, backend, type);
        recomputing.setRecomputeLayers(true);
        assert.deepEqual(gradientsOf(recomputing, shared, upstream), actual, "layers recomputed");
      });
    }
});

describe("packing prompts and answers", () => {
  const prompts = [
    { prompt: [1, 2, 3], answers: [[4, 5], Int32Array.of(6)] },
    { prompt: Int32Array.of(7), answers: [[8, 9, 10]] },
  ];

  it("packs a prompt once, before its answers", () => {
    const batch = packAnswers(prompts);
    assert.deepEqual([...batch.tokens], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert.deepEqual([...batch.offsets], [0, 3, 5, 6, 7, 10]);
    assert.deepEqual([...batch.parents], [-1, 0, 0, -1, 3]);
    assert.deepEqual([...batch.answers], [1, 2, 4]);
    assert.deepEqual([...batch.mask], [0, 0, 0, 1, 1, 1, 0, 1, 1, 1]);
  });

  it("knows what predicts each token", () => {
    const batch = packAnswers(prompts);
    assert.deepEqual([...previousTokens(batch)], [-1, 0, 1, 2, 3, 2, -1, 6, 7, 8]);
    assert.deepEqual([...predictionsOf(batch, "all")], [1, 2, 3, 4, 5, 7, 8, 9]);
    assert.deepEqual([...predictionsOf(batch, "masked")], [3, 4, 5, 7, 8, 9]);
    assert.deepEqual([...previousTokens(packSequences([{ tokens: [1, 2] }, { tokens: [3] }]))], [-1, 0, -1]);
  });

  it("cuts per-token values into answers", () => {
    const batch = packAnswers(prompts);
    const values = Float32Array.from(batch.tokens);
    assert.deepEqual(
      answerValues(batch, values).map((answer) => [...answer]),
      [[4, 5], [6], [8, 9, 10]],
    );
    assert.throws(() => answerValues(batch, values.slice(1)), {
      code: "ERR_RLHF_SHAPE",
      message: /10 tokens, but 9/,
    });
  });

  it("masks what a child's loss mask and prompt length say", () => {
    const batch = packSequences([
      { tokens: [1, 2], lossMask: Uint8Array.of(1, 1) },
      { tokens: [3, 4], lossMask: Uint8Array.of(1, 0), parent: 0 },
      { tokens: [5, 6], promptLength: 1, parent: 0 },
      { tokens: [7, 8] },
    ]);
    assert.deepEqual([...batch.mask], [0, 1, 1, 0, 0, 1, 0, 1]);
    assert.deepEqual([...batch.parents!], [-1, 0, 0, -1]);
    assert.equal(packSequences([{ tokens: [1] }]).parents, undefined);
  });

  it("refuses parents that do not come first or have parents, and what is empty", () => {
    const refused = (parents: (number | undefined)[], message: RegExp): void => {
      const sequences = parents.map((parent) => ({ tokens: [1], ...(parent !== undefined && { parent }) }));
      assert.throws(() => packSequences(sequences), { code: "ERR_RLHF_ARGUMENT", message });
    };
    refused([undefined, 1], /parent of sequence 1 is 1, expected the index of an earlier sequence/);
    refused([1, undefined], /parent of sequence 0 is 1/);
    refused([undefined, -1], /parent of sequence 1 is -1/);
    refused([undefined, 0.5], /parent of sequence 1 is 0.5/);
    refused([undefined, 0, 1], /parent of sequence 2 is 1, expected a sequence without a parent/);
    const empty = (prompt: number[], answers: number[][], message: RegExp): void => {
      assert.throws(() => packAnswers([{ prompt, answers }]), { code: "ERR_RLHF_SHAPE", message });
    };
    empty([], [[1]], /prompt 0 is empty/);
    empty([1], [], /prompt 0 has no answers/);
    empty([1], [[1], []], /answer 1 of prompt 0 is empty/);
  });
});
