import assert from "node:assert/strict";
import { CausalLM, Engine, type PackedBatch, packSequences } from "../../lib/index.ts";
import {
  ADAPTER,
  createModel,
  type KernelsModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomBatch,
  randomiseParameters,
  randomUpstream,
  randomValues,
  relativeDistance,
  sizeOf,
  TARGETS,
} from "../support/kernels-model.ts";
import { randomSequences, TINY_LLAMA } from "../support/tiny.ts";

const STEP = 1e-30;
const LENGTHS = [1, 7, 2, 5];
const ROWS = 15;

interface Case {
  readonly title: string;
  readonly klDirection: "reverse" | "forward";
  /** The reference is another model, of another width; else the policy without its adapter. */
  readonly other: boolean;
  readonly trainable: boolean;
  readonly temperature?: number;
  readonly parents?: readonly number[];
}

const CASES: readonly Case[] = [
  { title: "another model, all weights, reverse", klDirection: "reverse", other: true, trainable: true },
  {
    title: "another model, all weights, forward",
    klDirection: "forward",
    other: true,
    trainable: true,
    temperature: 0.7,
  },
  {
    title: "its own base, an adapter, reverse",
    klDirection: "reverse",
    other: false,
    trainable: false,
    temperature: 1.3,
  },
  {
    title: "its own base, an adapter, forward, answers that share prompts",
    klDirection: "forward",
    other: false,
    trainable: false,
    parents: [-1, -1, 1, 1],
  },
];

interface Pair {
  readonly policy: KernelsModel;
  readonly reference: KernelsModel;
  readonly adapter: string;
}

function build(
  test: Case,
  type: "float32" | "float64" | "complex128",
  backend = "ref",
  logitsBudget?: number,
): Pair {
  const components = type === "complex128" ? 2 : 1;
  const policy = createModel(MICRO_LLAMA, { backend, type, trainable: test.trainable });
  if (!test.other) policy.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS.llama });
  randomiseParameters(policy, components);
  if (logitsBudget !== undefined) policy.setLogitsBudget(logitsBudget);
  if (!test.other) return { policy, reference: policy, adapter: "policy" };
  const config = { ...MICRO_GPT2, vocab: MICRO_LLAMA.vocab };
  const reference = createModel(config, { backend, type, beside: policy });
  randomiseParameters(reference, components);
  return { policy, reference, adapter: "" };
}

const batchOf = (test: Case) =>
  randomBatch(LENGTHS, MICRO_LLAMA.vocab, (token) => token % 5 === 3, test.parents);

/** A pass with gradients and the divergence from a reference whose pass is gone by then. */
function forward(test: Case, { policy, reference, adapter }: Pair, grad: boolean) {
  const { klDirection, temperature = 1 } = test;
  const refPass = reference.forward(batchOf(test), { temperature, keepDistribution: true });
  const pass = policy.forward(batchOf(test), {
    adapter,
    temperature,
    grad,
    klDirection,
    reference: refPass.pass,
    referenceModel: reference,
  });
  reference.disposePass(refPass.pass);
  return pass;
}

function gradients(model: KernelsModel): Map<string, Float64Array> {
  const trained = model.parameters().filter(({ trainable }) => trainable);
  return new Map(trained.map(({ name }) => [name, model.gradient(name)!]));
}

/** d Σ dKl·kl by every element of every trainable parameter of the policy. */
function complexStepGradients(test: Case, dKl: Float64Array): Map<string, Float64Array> {
  const pair = build(test, "complex128");
  const { policy } = pair;
  const expected = new Map<string, Float64Array>();
  for (const parameter of policy.parameters().filter(({ trainable }) => trainable)) {
    const values = policy.read(parameter.name);
    const gradient = new Float64Array(sizeOf(parameter));
    for (let i = 0; i < gradient.length; i++) {
      values[2 * i + 1] = STEP;
      policy.write(parameter.name, values);
      values[2 * i + 1] = 0;
      const { kl, pass } = forward(test, pair, false);
      policy.disposePass(pass);
      gradient[i] = dKl.reduce((sum, weight, t) => sum + (weight * kl![2 * t + 1]!) / STEP, 0);
    }
    policy.write(parameter.name, values);
    expected.set(parameter.name, gradient);
  }
  return expected;
}

describe("divergences of whole models", () => {
  const dKl = randomValues(ROWS, "dKl");

  for (const test of CASES) {
    it(`${test.title}: gradients equal the complex step, logits kept or not`, () => {
      const expected = complexStepGradients(test, dKl);
      for (const budget of [undefined, 0]) {
        const pair = build(test, "float64", "ref", budget);
        const { kl, pass } = forward(test, pair, true);
        const predicted = new Set(batchOf(test).predictions);
        for (const [t, value] of kl!.entries())
          assert.equal(value > 0, predicted.has(t), `kl[${t}] = ${value}`);
        pair.policy.backward(pass, { dKl });
        const actual = gradients(pair.policy);
        assert.deepEqual([...actual.keys()], [...expected.keys()]);
        for (const [name, gradient] of actual)
          assert.ok(relativeDistance(gradient, expected.get(name)!) <= 1e-10, name);
        assert.ok([...expected.values()].some((gradient) => gradient.some((each) => Math.abs(each) > 1e-3)));
      }
    });

    it(`${test.title}: on the CPU as on the oracle`, () => {
      const oracle = build(test, "float64");
      const cpu = build(test, "float32", "cpu");
      const [exact, fast] = [forward(test, oracle, true), forward(test, cpu, true)];
      assert.ok(relativeDistance(fast.kl!, exact.kl!) < 2e-6);
      oracle.policy.backward(exact.pass, { dKl });
      cpu.policy.backward(fast.pass, { dKl });
      for (const [name, gradient] of gradients(cpu.policy))
        assert.ok(relativeDistance(gradient, oracle.policy.gradient(name)!) < 3e-5, name);
    });
  }

  it("leave a pass's other statistics as they were, and add to their gradients", () => {
    for (const budget of [undefined, 0]) {
      const test = CASES[0]!;
      const rest = randomUpstream(ROWS, false);
      const together = build(test, "float64", "ref", budget);
      const whole = forward(test, together, true);
      const alone = together.policy.forward(batchOf(test), { temperature: 1 });
      for (const field of ["logProb", "lse", "entropy"] as const)
        assert.deepEqual(whole[field], alone[field], field);
      together.policy.backward(whole.pass, { ...rest, dKl });
      const apart = build(test, "float64");
      for (const upstream of [rest, { dKl }])
        apart.policy.backward(forward(test, apart, true).pass, upstream);
      for (const [name, gradient] of gradients(together.policy))
        assert.ok(relativeDistance(gradient, apart.policy.gradient(name)!) < 1e-12, name);
    }
  });

  it("have the same bits on any number of threads, and whatever else is in the batch", () => {
    const run = (threads: number, lengths: readonly number[]) => {
      const policy = createModel(MICRO_LLAMA, { backend: "cpu", type: "float32", threads });
      policy.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS.llama });
      randomiseParameters(policy);
      const all = randomBatch([7, 12, 3], MICRO_LLAMA.vocab);
      const end = lengths.reduce((sum, length) => sum + length, 0);
      const batch = {
        tokens: all.tokens.slice(0, end),
        offsets: all.offsets.slice(0, lengths.length + 1),
        predictions: all.predictions.filter((t) => t < end),
      };
      const { pass: reference } = policy.forward(batch, { keepDistribution: true });
      return policy.forward(batch, { adapter: "policy", reference }).kl!;
    };
    const whole = run(1, [7, 12, 3]);
    assert.ok(whole.some((value) => value > 0));
    assert.deepEqual(run(2, [7, 12, 3]), whole);
    assert.deepEqual(run(1, [7]), whole.slice(0, 7));
  });
});

describe("a reference pass", () => {
  const batchFor = (seed: number): PackedBatch =>
    packSequences(randomSequences([9, 5], 61, seed).map((tokens) => ({ tokens, promptLength: 3 })));
  const batch = batchFor(1);

  it("of the model itself is at distance 0, of another one above 0 in both directions", async () => {
    using model = await CausalLM.create(TINY_LLAMA, { seed: 1 });
    using other = await CausalLM.create(TINY_LLAMA, { seed: 2 });
    using own = await model.forward(batch, { keepDistribution: true });
    using distant = await other.forward(batch, { keepDistribution: true });
    using same = await model.forward(batch, { reference: own });
    assert.deepEqual(await same.kl(), new Float32Array(14));
    using reverse = await model.forward(batch, { reference: distant });
    using forwards = await model.forward(batch, { reference: distant, klDirection: "forward" });
    using swapped = await other.forward(batch, { reference: own });
    const [there, back] = [await reverse.kl(), await forwards.kl()];
    for (const [t, kl] of there.entries()) assert.equal(kl > 0, t !== 0 && t !== 9);
    // KL(π_ref‖π) is the other model's reverse divergence.
    const opposite = await swapped.kl();
    for (const [t, kl] of back.entries()) assert.ok(Math.abs(kl - opposite[t]!) <= 2e-6 * (1 + kl));
    assert.notDeepEqual(there, back);
  });

  it("is what k1 estimates: over samples of the policy its mean comes to the divergence", async () => {
    using model = await CausalLM.create({ ...TINY_LLAMA, initializer_range: 0.1 }, { seed: 3 });
    using other = await CausalLM.create({ ...TINY_LLAMA, initializer_range: 0.1 }, { seed: 4 });
    const prompt = Int32Array.of(5, 9, 31);
    const samples = 4000;
    const answers = await model.generate(
      Array.from({ length: samples }, () => prompt),
      { maxNewTokens: 1, seed: 8, stop: [] },
    );
    const sampled = packSequences(
      answers.map(({ tokens }) => ({ tokens: Int32Array.of(...prompt, ...tokens), promptLength: 3 })),
    );
    using reference = await other.forward(sampled, { keepDistribution: true, predict: "masked" });
    using pass = await model.forward(sampled, { reference, predict: "masked" });
    const [kl, logProb, refLogProb] = [await pass.kl(), await pass.logProb(), await reference.logProb()];
    const exact = kl[3]!;
    const k1 = Array.from(answers, (_, i) => logProb[4 * i + 3]! - refLogProb[4 * i + 3]!);
    const mean = k1.reduce((sum, each) => sum + each, 0) / samples;
    const variance = k1.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (samples - 1);
    const error = Math.sqrt(variance / samples);
    assert.ok(exact > 10 * error, `${exact} ± ${error} tells nothing`);
    assert.ok(Math.abs(mean - exact) < 4 * error, `k1's mean is ${mean} ± ${error}, the divergence ${exact}`);
  });

  it("may be gone before backward, whose gradient falls on the policy alone", async () => {
    using model = await CausalLM.create(TINY_LLAMA, { seed: 1, trainable: "all" });
    using other = await CausalLM.create(TINY_LLAMA, { seed: 2, trainable: "all" });
    const reference = await other.forward(batch, { keepDistribution: true });
    const pass = await model.forward(batch, { reference, grad: true });
    reference.dispose();
    using between = await other.forward(batchFor(3), {});
    await between.logProb();
    await pass.backward({ dKl: new Float32Array(14).fill(1) });
    const norm = async (each: CausalLM) =>
      Math.hypot(...(await each.readGradient("model.layers.0.mlp.up_proj.weight")));
    assert.ok((await norm(model)) > 1e-3);
    assert.equal(await norm(other), 0);
  });

  it("outlives its model, where another pass refers to it", async () => {
    const gradient = async (disposeEarly: boolean): Promise<Float32Array> => {
      using model = await CausalLM.create(TINY_LLAMA, { seed: 1, trainable: "all" });
      const other = await CausalLM.create(TINY_LLAMA, { seed: 2 });
      const reference = await other.forward(batch, { keepDistribution: true });
      const pass = await model.forward(batch, { reference, grad: true });
      const dispose = (): void => {
        reference.dispose();
        other.dispose();
      };
      if (disposeEarly) dispose();
      await pass.backward({ dKl: new Float32Array(14).fill(1) });
      if (!disposeEarly) dispose();
      return model.readGradient("model.embed_tokens.weight");
    };
    assert.deepEqual(await gradient(true), await gradient(false));
  });

  it("that memory runs out for leaves the model as it was", () => {
    for (const trained of [false, true]) {
      const build = () => {
        const model = createModel(MICRO_LLAMA, { backend: "cpu", type: "float32", trainable: trained });
        randomiseParameters(model);
        return model;
      };
      const run = (model: KernelsModel) => {
        const first = model.forward(randomBatch(LENGTHS, MICRO_LLAMA.vocab), { keepDistribution: true });
        const kl = { reference: first.pass, grad: trained };
        const second = model.forward(randomBatch(LENGTHS, MICRO_LLAMA.vocab), kl);
        return [first.logProb, second.logProb, second.kl];
      };
      const expected = run(build());
      let failures = 0;
      for (let allowed = 0; failures === allowed; allowed++) {
        const model = build();
        model.failAllocationsAfter(allowed);
        try {
          run(model);
        } catch (error) {
          assert.equal((error as { code?: string }).code, "ERR_RLHF_MEMORY");
          failures++;
        } finally {
          model.failAllocationsAfter(-1);
        }
        assert.deepEqual(run(model), expected);
      }
      assert.ok(failures > 3, `${failures} allocations could fail`);
    }
  });

  it("counts its hidden states while it lives, and gives them back", async () => {
    using model = await CausalLM.create(TINY_LLAMA, { seed: 1 });
    using warm = await model.forward(batch, {});
    const before = model.memory().activations;
    const reference = await model.forward(batch, { keepDistribution: true });
    const held = model.memory().activations;
    assert.ok(held - before >= 14 * 24 * 4, `${held - before} bytes`);
    reference.dispose();
    await warm.logProb();
    using again = await model.forward(batch, { keepDistribution: true });
    assert.ok((await again.logProb()).length === 14);
    assert.equal(model.memory().activations, held, "the block is used again");
  });

  const rejects = async (
    message: RegExp,
    reference: (model: CausalLM, other: CausalLM) => Promise<object>,
    options: object = {},
  ) => {
    using model = await CausalLM.create(TINY_LLAMA, { seed: 1 });
    using other = await CausalLM.create({ ...TINY_LLAMA, vocab_size: 67 }, { seed: 2 });
    const pass = (await reference(model, other)) as never;
    await assert.rejects(model.forward(batch, { reference: pass, ...options }), {
      code: "ERR_RLHF_ARGUMENT",
      message,
    });
  };

  it("that does not fit is refused with what to change", async () => {
    const kept = { keepDistribution: true };
    await rejects(/made without keepDistribution/, (model) => model.forward(batch, {}));
    await rejects(/another batch/, (model) => model.forward(batchFor(2), kept));
    await rejects(/predicts other tokens/, (model) => model.forward(batch, { ...kept, predict: "masked" }));
    await rejects(/temperature 0\.5, this pass 1/, (model) =>
      model.forward(batch, { ...kept, temperature: 0.5 }),
    );
    await rejects(/vocabulary of 67 tokens, this model one of 61/, (_, other) => other.forward(batch, kept));
    await rejects(/statistics: false/, (model) => model.forward(batch, kept), { statistics: false });
    await rejects(
      /klDirection must be "reverse" or "forward", got "both"/,
      (model) => model.forward(batch, kept),
      {
        klDirection: "both",
      },
    );
    const threads = Engine.shared().info.threads + 1;
    using far = await CausalLM.create(TINY_LLAMA, { seed: 1, threads });
    await rejects(/another engine/, () => far.forward(batch, kept));
  });

  it("and gradients without one are refused", async () => {
    using model = await CausalLM.create(TINY_LLAMA, { seed: 1, trainable: "all" });
    using pass = await model.forward(batch, { grad: true });
    await assert.rejects(pass.kl(), { code: "ERR_RLHF_ARGUMENT", message: /name a reference pass/ });
    await assert.rejects(pass.backward({ dKl: new Float32Array(14) }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /dKl was given, but the pass was made without a reference/,
    });
    using reference = await model.forward(batch, { keepDistribution: true });
    using compared = await model.forward(batch, { reference, grad: true });
    await assert.rejects(compared.backward({ dKl: new Float32Array(13) }), {
      code: "ERR_RLHF_SHAPE",
      message: /dKl/,
    });
    reference.dispose();
    await assert.rejects(model.forward(batch, { reference }), { code: "ERR_RLHF_DISPOSED" });
    await assert.rejects(model.forward(batch, { keepDistribution: true, statistics: false }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /statistics: false/,
    });
  });
});
