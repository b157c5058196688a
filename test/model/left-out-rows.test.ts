import assert from "node:assert/strict";
import type { NativeBatch } from "../../lib/engine/native.ts";
import { CausalLM, type ForwardOptions, packSequences } from "../../lib/index.ts";
import { lastTokens, previousTokens } from "../../lib/model/batch.ts";
import { type KernelType, kernels } from "../support/kernels.ts";
import {
  ADAPTER,
  createModel,
  HEAD,
  type KernelsModel,
  MICRO_GPT_NEOX,
  MICRO_GPT2,
  MICRO_LLAMA,
  MICRO_QWEN3,
  randomBatch,
  randomUpstream,
  randomValues,
  relativeDistance,
  SHARED_PROMPTS,
  sizeOf,
  TARGETS,
  type TestAdapterConfig,
} from "../support/kernels-model.ts";
import { randomSequences, TINY_FAMILIES } from "../support/tiny.ts";

// A pass of which all values are read computes all rows, so it says what those that leave rows out must give, bit for bit.

const { lengths: LENGTHS, parents: PARENTS } = SHARED_PROMPTS;
const PASS = { adapter: "policy", head: "value", temperature: 0.9 } as const;
const STATISTICS = ["logProb", "lse", "entropy", "kl"] as const;

function build(
  config: typeof MICRO_LLAMA,
  backend: string,
  type: KernelType,
  adapter: Partial<TestAdapterConfig> = {},
): KernelsModel {
  const model = createModel(config, { backend, type, threads: 2 });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS[config.family], dropout: 0.3, ...adapter });
  model.addHead("value", HEAD);
  model.addHead("deep", { ...HEAD, inner: 5 });
  for (const parameter of model.parameters())
    model.setParameter(parameter.name, randomValues(sizeOf(parameter), parameter.name));
  return model;
}

interface Wanted {
  readonly predictions: Int32Array;
  readonly valueRows?: Int32Array;
}

/** What is read of the batch, by what the rows are read for. */
function wantedOf({ predictions, tokens }: NativeBatch): Readonly<Record<string, Wanted>> {
  const none = new Int32Array(0);
  return {
    "half of the predictions, no value": {
      predictions: predictions.filter((_, p) => p % 2 === 0),
      valueRows: none,
    },
    "a prediction, and values elsewhere": {
      predictions: predictions.subarray(4, 5),
      valueRows: Int32Array.of(0, 11, tokens.length - 1),
    },
    "one value": { predictions: none, valueRows: Int32Array.of(9) },
    "a child's first token alone": { predictions: Int32Array.of(7), valueRows: none },
    nothing: { predictions: none, valueRows: none },
    "all values": { predictions: predictions.subarray(0, 2) },
  };
}

/** Where the values of a pass are 0 and those of the other, which has none, are not. */
function leftOut(values: Float64Array, all: Float64Array): number[] {
  return [...values.keys()].filter((row) => values[row] === 0 && all[row] !== 0);
}

const BACKENDS: [string, KernelType][] = [
  ["ref", "float64"],
  ...kernels
    .backends()
    .flatMap((name): [string, KernelType][] => [
      [name, "float32"],
      ...(/^(cpu|ref)/.test(name) ? [] : ([[name, "bfloat16"]] as [string, KernelType][])),
    ]),
];

/** The emulator, which is held to less. */
const isSlow = (backend: string): boolean => backend.startsWith("simt");

describe("rows that nobody reads are left out of the last block", () => {
  for (const [backend, type] of BACKENDS)
    for (const config of [MICRO_GPT2, MICRO_LLAMA, MICRO_QWEN3, MICRO_GPT_NEOX])
      it(`${config.family} on ${backend} in ${type}: those that are read keep their bits, with their statistics, values and divergences`, () => {
        const model = build(config, backend, type);
        const batch = randomBatch(LENGTHS, config.vocab, (token) => token % 5 === 3, PARENTS);
        for (const head of isSlow(backend) ? ["deep"] : ["value", "deep"])
          for (const [what, wanted] of Object.entries(wantedOf(batch))) {
            const some = { ...batch, ...wanted };
            const kept = model.forward(some, { keepDistribution: true, temperature: PASS.temperature });
            const options = { ...PASS, head, reference: kept.pass };
            const few = model.forward(some, options);
            const training = model.forward(some, { ...options, grad: true });
            const all = model.forward({ ...some, valueRows: undefined }, options);
            for (const pass of [few, training])
              for (const field of STATISTICS) assert.deepEqual(pass[field], all[field], `${what}: ${field}`);
            for (const row of wanted.valueRows ?? batch.tokens.keys())
              for (const { value } of [few, training])
                assert.equal(value![row], all.value![row], `${what}: value of row ${row}`);
            const read = new Set(wanted.valueRows ?? batch.tokens.keys());
            for (const token of wanted.predictions) read.add(sourceOf(batch, token));
            const expected = [...batch.tokens.keys()].filter((row) => !read.has(row));
            assert.deepEqual(leftOut(few.value!, all.value!), expected, what);
            // Where the head may train, it made these values of zeros.
            const unread = new Set(expected.map((row) => training.value![row]));
            assert.equal(
              unread.size,
              config.parallelResidual ? expected.length : Math.min(1, expected.length),
            );
            for (const { pass } of [kept, few, training, all]) model.disposePass(pass);
          }
      });

  it("but where dropout is on, whose masks go by row, and where few would be", () => {
    const model = build(MICRO_LLAMA, "ref", "float64");
    const batch = { ...randomBatch(LENGTHS, MICRO_LLAMA.vocab), valueRows: Int32Array.of(9) };
    const all = model.forward(batch, { ...PASS, grad: true, dropoutSeed: 4 });
    const unread = { ...batch, predictions: batch.predictions.subarray(0, 3) };
    assert.deepEqual(model.forward(unread, { ...PASS, dropoutSeed: 4 }).value, all.value);
    const allButOne = { ...batch, valueRows: Int32Array.from(batch.tokens.keys()).subarray(1) };
    assert.equal(leftOut(model.forward(allButOne, PASS).value!, all.value!).length, 0);
  });

  for (const head of ["value", "deep"])
    it(`a frozen model's head trains on some rows as on all: ${head}`, () => {
      const batch = randomBatch(LENGTHS, MICRO_LLAMA.vocab, () => true);
      const wanted = Int32Array.of(2, 3, 17);
      const dValue = new Float64Array(batch.tokens.length);
      for (const row of wanted) dValue[row] = Math.cos(row);
      const gradients = (valueRows: Int32Array | undefined, rowsAreLeftOut: boolean): Float64Array[] => {
        const model = build(MICRO_LLAMA, "cpu:scalar", "float32");
        const passed = { ...batch, ...(valueRows && { valueRows }) };
        const { pass, value } = model.forward(passed, { head, grad: true });
        assert.equal(value![5] === value![6], rowsAreLeftOut);
        model.backward(pass, { dValue });
        const own = model.parameters().filter(({ group }) => group === `head:${head}`);
        return own.map(({ name }) => model.gradient(name)!);
      };
      const expected = gradients(undefined, false);
      assert.ok(expected.every((gradient) => gradient.some((value) => value !== 0)));
      assert.deepEqual(gradients(wanted, true), expected);
    });

  const last = { layersToTransform: [1] };
  const adapters: Readonly<Record<string, Partial<TestAdapterConfig>>> = {
    "all layers": {},
    attention: { targetModules: ["q_proj", "v_proj"] },
    "the last block alone": last,
    "the last block's way out of attention": { ...last, targetModules: ["o_proj"] },
    "the last block's way into the MLP": { ...last, targetModules: ["up_proj"] },
    "the last block's end": { ...last, targetModules: ["down_proj"] },
  };
  const adaptersOf = (config: typeof MICRO_LLAMA, backend: string) =>
    Object.entries(adapters).slice(0, config === MICRO_LLAMA && !isSlow(backend) ? undefined : 1);
  for (const [backend, type] of BACKENDS)
    for (const config of [MICRO_GPT2, MICRO_LLAMA, MICRO_QWEN3, MICRO_GPT_NEOX])
      for (const [name, adapter] of adaptersOf(config, backend))
        it(`${config.family} on ${backend} in ${type}, an adapter on ${name}: gradients are those of all rows`, () => {
          const batch = randomBatch(LENGTHS, config.vocab, (token) => token % 5 === 3, PARENTS);
          for (const [what, wanted] of Object.entries(wantedOf(batch)).slice(
            0,
            isSlow(backend) ? 2 : undefined,
          )) {
            const gradientsOf = (valueRows: Int32Array | undefined): Map<string, Float64Array> => {
              const model = build(config, backend, type, adapter);
              const upstream = randomUpstream(batch.tokens.length, true);
              const read = new Set(wanted.valueRows ?? batch.tokens.keys());
              const dValue = upstream.dValue!.map((each, row) => (read.has(row) ? each : 0));
              const some = { ...batch, predictions: wanted.predictions, ...(valueRows && { valueRows }) };
              const { pass } = model.forward(some, { ...PASS, grad: true });
              model.backward(pass, { ...upstream, dValue });
              const own = model.parameters().filter(({ trainable }) => trainable);
              return new Map(own.map((parameter) => [parameter.name, model.gradient(parameter.name)!]));
            };
            const [some, all] = [gradientsOf(wanted.valueRows), gradientsOf(undefined)];
            for (const [parameter, gradient] of some) {
              const distance = relativeDistance(gradient, all.get(parameter)!);
              assert.ok(distance <= largestDistance(backend, type), `${what}: ${parameter} ${distance}`);
            }
          }
        });

  it("refuses value rows that do not rise or lie outside the batch", () => {
    const model = build(MICRO_LLAMA, "ref", "float64");
    const batch = randomBatch(LENGTHS, MICRO_LLAMA.vocab);
    for (const rows of [[3, 3], [-1], [batch.tokens.length]])
      assert.throws(
        () => model.forward({ ...batch, valueRows: Int32Array.from(rows) }, PASS),
        /valueRows must rise/,
      );
  });
});

/**
 * The CPU and the reference sum one row after another, so that rows of zeros leave no trace; a GPU sums some at a time, and in bfloat16 the
 * numbers that it sums are rounded before.
 */
function largestDistance(backend: string, type: KernelType): number {
  if (/^(cpu|ref)/.test(backend)) return 0;
  return type === "float32" ? 1e-6 : 1e-2;
}

/** The row that a token is predicted from. */
function sourceOf(batch: NativeBatch, token: number): number {
  return previousTokens({ ...batch, mask: new Float32Array(0), sequences: batch.offsets.length - 1 })[token]!;
}

describe("the passes' option `values`", () => {
  const sequences = randomSequences([12, 30, 7], 50);
  const batch = packSequences(sequences.map((tokens) => ({ tokens, promptLength: tokens.length - 4 })));
  const lasts = [...lastTokens(batch)];
  const masked = [...batch.tokens.keys()].filter((t) => batch.mask[t + 1] === 1 || lasts.includes(t));

  for (const compute of ["float32", "bfloat16"] as const)
    for (const [family, config] of Object.entries(TINY_FAMILIES))
      it(`${family} in ${compute}: "masked" and "last" values, and masked log-probs, have the bits of "all"`, async () => {
        using model = await CausalLM.create(config, { device: "cpu", compute });
        model.addHead("value", { kind: "mlp" });
        const run = async (options: ForwardOptions) => {
          using pass = await model.forward(batch, { head: "value", predict: "masked", ...options });
          return { logProb: await pass.logProb(), value: await pass.value() };
        };
        const all = await run({});
        for (const [values, rows] of [
          ["masked", masked],
          ["last", [...lasts, ...masked]],
        ] as const) {
          const some = await run({ values });
          assert.deepEqual(some.logProb, all.logProb);
          const expected = all.value.map((value, row) => ((rows as number[]).includes(row) ? value : 0));
          assert.deepEqual(some.value, expected, values);
        }
        using scores = await model.forward(batch, { head: "value", statistics: false, values: "last" });
        const expected = all.value.map((value, row) => (lasts.includes(row) ? value : 0));
        assert.deepEqual(await scores.value(), expected);
      });
});
