import assert from "node:assert/strict";
import {
  CausalLM,
  type ForwardBackwardOptions,
  groupPolicyLoss,
  type PackedBatch,
  packSequences,
  ppoPolicyLoss,
  ppoValueLoss,
  type TokenLoss,
  tokenNllLoss,
} from "../../lib/index.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import { lossBackward } from "../../lib/model/forward-backward.ts";
import { relativeDistance } from "../support/compare.ts";
import { randomSequences, TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";

/* A training pass with its loss inside is forward, the loss's function and backward, bit for bit. */

const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };

/** Numbers that depend on their place alone, from −1 to 1. */
function wave(count: number, step: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(1 + step * i));
}

function batchOf(lengths: readonly number[], vocab: number): PackedBatch {
  return packSequences(randomSequences(lengths, vocab).map((tokens) => ({ tokens, promptLength: 3 })));
}

/** Old log-probs around those of a model that knows nothing, so that some ratios are clipped and some are not. */
function lossesOf(batch: PackedBatch, vocab: number): Record<TokenLoss["kind"], TokenLoss> {
  const rows = batch.tokens.length;
  const oldLogProb = wave(rows, 0.7).map((value) => value - Math.log(vocab));
  const weight = Float32Array.from({ length: batch.sequences }, (_, s) => 0.01 * (s + 1));
  return {
    nll: { kind: "nll", weight: batch.mask, scale: 0.03 },
    ppo: {
      ...{ kind: "ppo", oldLogProb, advantage: wave(rows, 1.3), clipRange: 0.2, dualClip: 3 },
      ...{ entropyCoefficient: 0.05, scale: 0.03 },
    },
    group: {
      ...{ kind: "group", oldLogProb, advantage: wave(batch.sequences, 2.1), weight, weighKl: true },
      ...{ refLogProb: oldLogProb.map((value) => value + 0.1), klCoefficient: 0.2 },
    },
  };
}

interface Trained {
  readonly arrays: Readonly<Record<string, Float32Array>>;
  readonly stats: object;
  readonly valueStats: object | null;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

async function gradientsOf(model: CausalLM): Promise<Map<string, Float32Array>> {
  const gradients = new Map<string, Float32Array>();
  for (const { name, trainable } of model.parameters())
    if (trainable) gradients.set(name, await model.readGradient(name));
  await model.zeroGradients();
  return gradients;
}

async function inside(
  model: CausalLM,
  batch: PackedBatch,
  loss: TokenLoss,
  options: ForwardBackwardOptions,
): Promise<Trained> {
  using pass = await model.forwardBackward(batch, loss, options);
  const { stats, valueStats } = pass;
  const arrays = { logProb: await pass.logProb(), lse: await pass.lse(), entropy: await pass.entropy() };
  const values: Record<string, Float32Array> =
    options.head === undefined ? {} : { value: await pass.value() };
  return { arrays: { ...arrays, ...values }, stats, valueStats, gradients: await gradientsOf(model) };
}

function withoutKind<Loss extends TokenLoss>({ kind: _, ...args }: Loss): Omit<Loss, "kind"> {
  return args;
}

async function inTurn(
  model: CausalLM,
  batch: PackedBatch,
  loss: TokenLoss,
  { value: valueLoss, ...options }: ForwardBackwardOptions,
): Promise<Trained> {
  using pass = await model.forward(batch, { ...options, grad: true });
  const { engine } = model;
  const { logProb, entropy } = pass.device; // disposed of with the pass
  const { mask, offsets } = batch;
  const outputs =
    loss.kind === "nll"
      ? await tokenNllLoss(engine, { ...withoutKind(loss), logProb })
      : loss.kind === "ppo"
        ? await ppoPolicyLoss(engine, { mask, ...withoutKind(loss), logProb, entropy })
        : await groupPolicyLoss(engine, { mask, ...withoutKind(loss), offsets, logProb });
  const arrays = { logProb: await pass.logProb(), lse: await pass.lse(), entropy: await pass.entropy() };
  const values: Record<string, Float32Array> =
    options.head === undefined ? {} : { value: await pass.value() };
  const ofValues =
    valueLoss && (await ppoValueLoss(engine, { mask, ...valueLoss, value: pass.device.value }));
  using dLogProb = outputs.dLogProb;
  using dEntropy = ("dEntropy" in outputs && outputs.dEntropy) || null;
  using dValue = ofValues?.dValue ?? null;
  await pass.backward({ dLogProb, ...(dEntropy && { dEntropy }), ...(dValue && { dValue }) });
  return {
    arrays: { ...arrays, ...values },
    stats: outputs.stats,
    valueStats: ofValues?.stats ?? null,
    gradients: await gradientsOf(model),
  };
}

interface Setup {
  readonly name: string;
  readonly config: HfConfig;
  readonly trainable?: "all" | "none";
  readonly recomputeLayers?: boolean;
  readonly dropout?: number;
  readonly compute?: "float32" | "bfloat16";
  readonly options: ForwardBackwardOptions;
  readonly withValue?: boolean;
}

const SETUPS: readonly Setup[] = [
  { name: "all weights", config: TINY_LLAMA, trainable: "all", options: {} },
  { name: "all weights, tied head", config: TINY_GPT2, trainable: "all", options: { temperature: 0.7 } },
  {
    name: "all weights and values",
    config: TINY_LLAMA,
    trainable: "all",
    options: { head: "value" },
    withValue: true,
  },
  { name: "an adapter", config: TINY_GPT2, options: { adapter: "policy", predict: "masked" } },
  {
    ...{ name: "an adapter and values, an MLP far wider than attention", withValue: true },
    config: { ...TINY_LLAMA, intermediate_size: 200 },
    options: { adapter: "policy", head: "value", predict: "masked" },
  },
  {
    ...{ name: "an adapter with dropout and values, layers recomputed", config: TINY_LLAMA, dropout: 0.3 },
    ...{ recomputeLayers: true, withValue: true },
    options: { adapter: "policy", head: "value", dropoutSeed: 5, predict: "masked" },
  },
  {
    ...{ name: "an adapter in bfloat16", config: TINY_LLAMA, compute: "bfloat16" },
    options: { adapter: "policy", predict: "masked" },
  },
  { name: "all weights in bfloat16", config: TINY_LLAMA, trainable: "all", compute: "bfloat16", options: {} },
  {
    name: "values alone",
    config: TINY_LLAMA,
    options: { head: "value", predict: "masked" },
    withValue: true,
  },
];

async function modelOf({ config, trainable, recomputeLayers, dropout, compute }: Setup, threads = 2) {
  const engine = { threads, ...(compute && { compute }) };
  const model = await CausalLM.create(config, {
    ...{ ...engine, seed: 3 },
    ...(trainable && { trainable }),
    ...(recomputeLayers && { recomputeLayers }),
  });
  model.addAdapter("policy", { ...LORA, ...(dropout && { dropout }) });
  for (const { name, shape } of model.parameters())
    if (name.endsWith("lora_B"))
      await model.writeParameter(
        name,
        wave(
          shape.reduce((a, b) => a * b),
          0.37,
        ),
      );
  model.addHead("value", { kind: "mlp" });
  return model;
}

/** The options, with a value loss where the setup has one. */
function optionsOf({ options, withValue }: Setup, { tokens }: PackedBatch): ForwardBackwardOptions {
  const [oldValue, returns] = [wave(tokens.length, 0.3), wave(tokens.length, 0.9)];
  return withValue ? { ...options, value: { oldValue, returns, clipRange: 0.2, scale: 0.02 } } : options;
}

describe("CausalLM.forwardBackward", () => {
  for (const setup of SETUPS)
    for (const kind of ["nll", "ppo", "group"] as const)
      it(`is forward, loss and backward, bit for bit: ${setup.name}, ${kind}`, async () => {
        using model = await modelOf(setup);
        const batch = batchOf([9, 4, 30, 17], model.vocabSize);
        const loss = lossesOf(batch, model.vocabSize)[kind];
        const options = optionsOf(setup, batch);
        const fused = await inside(model, batch, loss, options);
        assert.deepEqual(fused, await inTurn(model, batch, loss, options));
        const moved = [...fused.gradients].filter(([, gradient]) => gradient.some((value) => value !== 0));
        assert.ok(moved.length > 0);
        if (setup.name !== "values alone") assert.ok(moved.some(([name]) => !name.startsWith("value")));
      });

  it("takes batches with shared prompts", async () => {
    using model = await modelOf(SETUPS[3]!);
    const [prompt, ...answers] = randomSequences([7, 5, 9, 1], model.vocabSize);
    const batch = packSequences([
      { tokens: prompt!, promptLength: 7 },
      ...answers.map((tokens) => ({ tokens, parent: 0 })),
    ]);
    const loss = lossesOf(batch, model.vocabSize).group;
    const options = { adapter: "policy" };
    assert.deepEqual(await inside(model, batch, loss, options), await inTurn(model, batch, loss, options));
  });

  it("goes through many predictions block by block: only the head's own gradient is summed in another order", async () => {
    const setup = SETUPS[0]!;
    using model = await modelOf(setup);
    const batch = batchOf(new Array<number>(30).fill(50), model.vocabSize);
    const loss = lossesOf(batch, model.vocabSize).ppo;
    const fused = await inside(model, batch, loss, {});
    const separate = await inTurn(model, batch, loss, {});
    assert.ok(relativeDistance(...both(fused, separate, "lm_head.weight")) < 1e-6);
    for (const each of [fused, separate]) (each.gradients as Map<string, unknown>).delete("lm_head.weight");
    assert.deepEqual(fused, separate);
  });

  it("takes many predictions in bfloat16 as the three do", async () => {
    using model = await modelOf(SETUPS.find(({ name }) => name === "all weights in bfloat16")!);
    const batch = batchOf(new Array<number>(40).fill(50), model.vocabSize);
    const loss = lossesOf(batch, model.vocabSize).ppo;
    assert.deepEqual(await inside(model, batch, loss, {}), await inTurn(model, batch, loss, {}));
  });

  it("gives the same bits on one thread and on two", async () => {
    const results = await Promise.all(
      [1, 2].map(async (threads) => {
        const setup = SETUPS[2]!;
        using model = await modelOf(setup, threads);
        const batch = batchOf(new Array<number>(30).fill(50), model.vocabSize);
        return await inside(model, batch, lossesOf(batch, model.vocabSize).ppo, optionsOf(setup, batch));
      }),
    );
    assert.deepEqual(results[0], results[1]);
  });

  it("gives a token the log-prob that it has alone and in forward", async () => {
    using model = await modelOf(SETUPS[3]!);
    const sequences = randomSequences([12, 40, 7], model.vocabSize);
    const options = { adapter: "policy" };
    const logProbs = async (rows: readonly Int32Array[]): Promise<Float32Array> => {
      const batch = packSequences(rows.map((tokens) => ({ tokens })));
      using pass = await model.forwardBackward(batch, lossesOf(batch, model.vocabSize).nll, options);
      return pass.logProb();
    };
    const together = await logProbs(sequences);
    const alone = await Promise.all(sequences.map((tokens) => logProbs([tokens])));
    assert.deepEqual(together, Float32Array.from(alone.flatMap((each) => [...each])));
    using pass = await model.forward(packSequences(sequences.map((tokens) => ({ tokens }))), options);
    assert.deepEqual(await pass.logProb(), together);
  });

  it("refuses what it cannot take, with the cure", async () => {
    using model = await modelOf(SETUPS[3]!);
    const batch = batchOf([9, 5], model.vocabSize);
    const losses = lossesOf(batch, model.vocabSize);
    const rejects = (loss: unknown, options: object, code: string, message: RegExp): Promise<void> =>
      assert.rejects(model.forwardBackward(batch, loss as TokenLoss, options), { code, message });
    const argument = "ERR_RLHF_ARGUMENT";
    await rejects({ kind: "dpo" }, {}, argument, /kind must be nll, ppo, group, got dpo/);
    await rejects(undefined, {}, argument, /kind must be nll/);
    await rejects({ kind: "nll", scale: 1 }, {}, argument, /weight is missing/);
    await rejects(
      { ...losses.ppo, oldLogProb: new Float32Array(3) },
      {},
      "ERR_RLHF_SHAPE",
      /oldLogProb has 3/,
    );
    await rejects({ ...losses.group, refLogProb: undefined }, {}, argument, /refLogProb is missing/);
    await rejects({ ...losses.group, level: "sequence-sum" }, {}, argument, /unknown option "level"/);
    await rejects(
      { ...losses.ppo, dualClip: 1.1 },
      {},
      argument,
      /dualClip is 1\.1, expected 0 \(none\) or > 1/,
    );
    await rejects(losses.nll, { grad: true }, argument, /unknown option "grad"/);
    await rejects(losses.nll, { adapter: "other" }, "ERR_RLHF_UNKNOWN_NAME", /other/);
    const value = { oldValue: wave(14, 1), returns: wave(14, 1), clipRange: 0, scale: 1 };
    await rejects(losses.nll, { value }, argument, /no head: name one/);
    await rejects(
      losses.nll,
      { head: "value", value: { ...value, returns: undefined } },
      argument,
      /returns is missing/,
    );
  });

  it("returns a pass whose arrays can be read and that has nothing left for backward", async () => {
    using model = await modelOf(SETUPS[3]!);
    const batch = batchOf([9, 5], model.vocabSize);
    const loss = lossesOf(batch, model.vocabSize).nll;
    using pass = await model.forwardBackward(batch, loss, { adapter: "policy" });
    assert.equal((await pass.device.logProb.read()).length, 14);
    await assert.rejects(pass.backward({ dLogProb: new Float32Array(14) }), { code: "ERR_RLHF_ARGUMENT" });
    // Passes like it never count as waiting for backward.
    const more = [];
    for (let i = 0; i < 6; i++) more.push(await model.forwardBackward(batch, loss, { adapter: "policy" }));
    for (const each of more) each.dispose();
  });
});

describe("a pass whose losses come later", () => {
  for (const setup of SETUPS)
    for (const keepLogits of [false, true])
      it(`has the bits of forwardBackward: ${setup.name}${keepLogits ? ", logits kept" : ""}`, async () => {
        using model = await modelOf(setup);
        const batch = batchOf([9, 4, 30, 17], model.vocabSize);
        const loss = lossesOf(batch, model.vocabSize).ppo;
        const { value, ...options } = optionsOf(setup, batch);
        const { arrays, ...expected } = await inside(model, batch, loss, {
          ...options,
          ...(value && { value }),
        });
        using pass = await model.forward(batch, { ...options, grad: true, keepLogits });
        const measured = {
          ...{ logProb: await pass.logProb(), lse: await pass.lse(), entropy: await pass.entropy() },
          ...(options.head === undefined ? {} : { value: await pass.value() }),
        };
        // What runs between takes the model's workspace.
        (await model.forward(batchOf([40, 3], model.vocabSize))).dispose();
        const sums = await lossBackward(pass, batch, loss, value);
        assert.deepEqual(measured, arrays);
        assert.deepEqual({ ...sums, gradients: await gradientsOf(model) }, expected);
      });

  it("is consumed by them, and refused without activations or the head of a value loss", async () => {
    using model = await modelOf(SETUPS[3]!);
    const batch = batchOf([9, 5], model.vocabSize);
    const { nll } = lossesOf(batch, model.vocabSize);
    const options = { adapter: "policy", grad: true } as const;
    const value = { oldValue: wave(14, 1), returns: wave(14, 1), clipRange: 0, scale: 1 };
    const argument = "ERR_RLHF_ARGUMENT";
    using frozen = await model.forward(batch, { adapter: "policy" });
    await assert.rejects(lossBackward(frozen, batch, nll), { code: argument, message: /grad: true/ });
    using headless = await model.forward(batch, options);
    await assert.rejects(lossBackward(headless, batch, nll, value), { code: argument, message: /no head/ });
    using first = await model.forward(batch, options);
    const again = lossBackward(first, batch, nll).then(() =>
      first.backward({ dLogProb: new Float32Array(14) }),
    );
    await assert.rejects(again, { code: "ERR_RLHF_DISPOSED" });
    // None of them waits for backward any more.
    const more = [];
    for (let i = 0; i < 4; i++) more.push(await model.forward(batch, options));
    for (const each of more) each.dispose();
  });
});

/** One gradient of two runs. */
function both(left: Trained, right: Trained, name: string): [Float64Array, Float64Array] {
  return [Float64Array.from(left.gradients.get(name)!), Float64Array.from(right.gradients.get(name)!)];
}
