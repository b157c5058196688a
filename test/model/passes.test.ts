import assert from "node:assert/strict";
import {
  ADAPTER,
  createModel,
  HEAD,
  type KernelsModel,
  MICRO_GPT2,
  MICRO_LLAMA,
  randomBatch,
  randomiseParameters,
  randomUpstream,
  relativeDistance,
  TARGETS,
} from "../support/kernels-model.ts";

function microLlama(
  backend = "ref",
  type: "float32" | "float64" = "float64",
  trainable = false,
): KernelsModel {
  const model = createModel(MICRO_LLAMA, { backend, type, trainable });
  model.addAdapter("policy", { ...ADAPTER, targetModules: TARGETS.llama });
  model.addHead("value", { ...HEAD, inner: 5 });
  randomiseParameters(model);
  return model;
}

const POLICY = { adapter: "policy", head: "value" } as const;

describe("forward passes of a model", () => {
  it("give the same bits with and without gradients", () => {
    for (const backend of ["ref", "cpu"]) {
      const model = microLlama(backend, "float32");
      const batch = randomBatch([4, 9, 1], MICRO_LLAMA.vocab);
      const kept = model.forward(batch, { ...POLICY, grad: true });
      const lean = model.forward(batch, { ...POLICY, grad: false });
      for (const field of ["logProb", "lse", "entropy", "value"] as const)
        assert.deepEqual(lean[field], kept[field], `${field} on ${backend}`);
    }
  });

  it("leave statistics of what is not predicted at 0", () => {
    const model = microLlama();
    const batch = randomBatch([6, 3, 4], MICRO_LLAMA.vocab, (token) => token === 2);
    const { logProb, lse, entropy } = model.forward(batch, POLICY);
    const predicted = new Set(batch.predictions);
    for (const [t, value] of logProb!.entries()) {
      assert.equal(value !== 0, predicted.has(t));
      if (predicted.has(t)) continue;
      assert.equal(lse![t], 0);
      assert.equal(entropy![t], 0);
    }
  });

  it("skip the language-model head when no statistics are wanted", () => {
    const model = microLlama();
    const batch = randomBatch([6, 3], MICRO_LLAMA.vocab);
    const lean = model.forward(batch, { ...POLICY, statistics: false });
    assert.deepEqual([lean.logProb, lean.lse, lean.entropy], [null, null, null]);
    assert.deepEqual(lean.value, model.forward(batch, POLICY).value);
  });

  it("treat every sequence as if it were alone", () => {
    const model = microLlama("cpu", "float32");
    const batch = randomBatch([5, 11, 2], MICRO_LLAMA.vocab);
    const together = model.forward(batch, POLICY);
    for (let s = 0; s < 3; s++) {
      const [start, end] = [batch.offsets[s]!, batch.offsets[s + 1]!];
      const alone = model.forward(
        {
          tokens: batch.tokens.slice(start, end),
          offsets: Int32Array.of(0, end - start),
          predictions: Int32Array.from({ length: end - start - 1 }, (_, i) => i + 1),
        },
        POLICY,
      );
      for (const field of ["logProb", "lse", "entropy", "value"] as const)
        assert.deepEqual(alone[field], together[field]!.slice(start, end), `${field} of sequence ${s}`);
    }
  });

  it("with a fresh adapter equal those of the base", () => {
    const model = microLlama();
    model.addAdapter("fresh", { ...ADAPTER, targetModules: TARGETS.llama });
    const batch = randomBatch([7], MICRO_LLAMA.vocab);
    assert.deepEqual(model.forward(batch, { adapter: "fresh" }).logProb, model.forward(batch, {}).logProb);
    assert.notDeepEqual(
      model.forward(batch, { adapter: "policy" }).logProb,
      model.forward(batch, {}).logProb,
    );
  });

  it("see a merged adapter's weights, in the packed forms as well", () => {
    for (const [config, targets] of [
      [MICRO_LLAMA, TARGETS.llama],
      [MICRO_GPT2, TARGETS.gpt2],
    ] as const) {
      const model = createModel(config, { backend: "cpu", type: "float32" });
      model.addAdapter("policy", { ...ADAPTER, targetModules: targets });
      randomiseParameters(model);
      const batch = randomBatch([7, 4], config.vocab);
      const adapted = model.forward(batch, { adapter: "policy" }).logProb!;
      model.mergeAdapter("policy");
      const merged = model.forward(batch, {}).logProb!;
      assert.ok(relativeDistance(adapted, merged) < 1e-5);
      assert.ok(model.parameters().every((parameter) => parameter.group === "base"));
    }
  });

  it("see parameters that were written after the first pass", () => {
    const model = createModel(MICRO_LLAMA, { backend: "cpu", type: "float32" });
    randomiseParameters(model);
    const batch = randomBatch([7], MICRO_LLAMA.vocab);
    const before = model.forward(batch, {}).logProb!;
    const name = "model.layers.1.self_attn.v_proj.weight";
    model.write(
      name,
      model.read(name).map((value) => -value),
    );
    const fresh = createModel(MICRO_LLAMA, { backend: "cpu", type: "float32" });
    for (const parameter of model.parameters()) fresh.write(parameter.name, model.read(parameter.name));
    const after = model.forward(batch, {}).logProb!;
    assert.deepEqual(after, fresh.forward(batch, {}).logProb);
    assert.notDeepEqual(after, before);
  });

  it("stop allocating once the largest pass has been seen", () => {
    const model = microLlama("cpu", "float32", true);
    const step = (length: number): void => {
      const batch = randomBatch([length, 5], MICRO_LLAMA.vocab);
      const pass = model.forward(batch, { ...POLICY, grad: true });
      model.backward(pass.pass, randomUpstream(length + 5, true));
      model.disposePass(pass.pass);
    };
    step(20);
    const warm = model.memory();
    assert.ok(warm["activations"]! > 0 && warm["gradients"]! > 0);
    for (const length of [3, 19, 20, 8]) step(length);
    assert.deepEqual(model.memory(), warm);
  });

  it("do not hold activations without gradients", () => {
    const model = microLlama();
    model.setMaxLivePasses(1);
    const batch = randomBatch([4], MICRO_LLAMA.vocab);
    for (let i = 0; i < 5; i++) model.forward(batch, POLICY);
    const pass = model.forward(batch, { ...POLICY, grad: true });
    assert.throws(() => model.forward(batch, { ...POLICY, grad: true }), { code: "ERR_RLHF_PASS_LIVE" });
    model.backward(pass.pass, {});
    const second = model.forward(batch, { ...POLICY, grad: true });
    assert.throws(() => model.backward(pass.pass, {}), { code: "ERR_RLHF_PASS_CONSUMED" });
    model.disposePass(second.pass);
    model.forward(batch, { ...POLICY, grad: true });
  });

  it("refuse what does not fit, and say why", () => {
    const model = microLlama();
    const batch = randomBatch([4, 3], MICRO_LLAMA.vocab);
    const refused = (change: Partial<typeof batch>, code: string, message: RegExp): void => {
      assert.throws(() => model.forward({ ...batch, ...change }, POLICY), { code, message });
    };
    refused({ tokens: Int32Array.of(1, 2, 13, 1, 1, 1, 1) }, "ERR_RLHF_TOKEN_RANGE", /tokens\[2\] is 13/);
    refused({ tokens: Int32Array.of(1, 2, 3, -1, 1, 1, 1) }, "ERR_RLHF_TOKEN_RANGE", /tokens\[3\] is -1/);
    refused({ offsets: Int32Array.of(0, 4, 4, 7) }, "ERR_RLHF_ARGUMENT", /sequence 1 has 0 tokens/);
    refused({ offsets: Int32Array.of(0, 9, 7) }, "ERR_RLHF_ARGUMENT", /rise/);
    refused({ offsets: Int32Array.of(0, 4) }, "ERR_RLHF_ARGUMENT", /end at the number of tokens, 7/);
    refused(
      { predictions: Int32Array.of(1, 4) },
      "ERR_RLHF_ARGUMENT",
      /first token, unless it has a parent; element 1 is 4/,
    );
    refused({ predictions: Int32Array.of(2, 1) }, "ERR_RLHF_ARGUMENT", /must rise/);
    const parents = (...indices: number[]) => ({ parents: Int32Array.from(indices) });
    refused(parents(-1), "ERR_RLHF_SHAPE", /parents has 1 elements, expected one per sequence, 2/);
    refused(
      parents(-1, 1),
      "ERR_RLHF_ARGUMENT",
      /parents\[1\] is 1, expected -1 \(none\) or an earlier sequence/,
    );
    refused(parents(1, -1), "ERR_RLHF_ARGUMENT", /parents\[0\] is 1/);
    refused(parents(-1, -2), "ERR_RLHF_ARGUMENT", /parents\[1\] is -2/);
    refused(
      { offsets: Int32Array.of(0, 2, 4, 7), ...parents(-1, 0, 1), predictions: Int32Array.of(1) },
      "ERR_RLHF_ARGUMENT",
      /parents\[2\] is 1, expected a sequence without a parent: parents go one level deep/,
    );
    assert.throws(
      () =>
        model.forward(
          randomBatch([20, 5], 13, () => false, [-1, 0]),
          POLICY,
        ),
      {
        code: "ERR_RLHF_CONTEXT_LENGTH",
        message: /sequence 1 has 25 tokens with its parent's, more than the model's context of 24/,
      },
    );
    assert.throws(() => model.forward(randomBatch([25], 13), POLICY), {
      code: "ERR_RLHF_CONTEXT_LENGTH",
      message: /25 tokens, more than the model's context of 24/,
    });
    assert.throws(() => model.forward(batch, { adapter: "polcy" }), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /it has policy/,
    });
    assert.throws(() => model.read("model.layers.0.self_attn.q_proj.wieght"), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /did you mean "model\.layers\.0\.self_attn\.q_proj\.weight"/,
    });
    assert.throws(() => model.addAdapter("second", { ...ADAPTER, targetModules: ["c_attn"] }), {
      code: "ERR_RLHF_UNKNOWN_NAME",
      message: /it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj/,
    });
    assert.throws(() => model.addHead("policy", HEAD), {
      code: "ERR_RLHF_ARGUMENT",
      message: /already has/,
    });
    assert.throws(() => createModel({ ...MICRO_LLAMA, kvHeads: 3 }, { backend: "ref", type: "float64" }), {
      code: "ERR_RLHF_CONFIG",
      message: /kvHeads is 3, expected a divisor of heads/,
    });
  });
});

describe("parameters of a model", () => {
  it("are named and ordered as transformers' named_parameters()", () => {
    const gpt2 = createModel({ ...MICRO_GPT2, layers: 1 }, { backend: "ref", type: "float32" });
    assert.deepEqual(
      gpt2.parameters().map((parameter) => `${parameter.name} ${parameter.shape.join("×")}`),
      [
        "transformer.wte.weight 13×9",
        "transformer.wpe.weight 24×9",
        "transformer.h.0.ln_1.weight 9",
        "transformer.h.0.ln_1.bias 9",
        "transformer.h.0.attn.c_attn.weight 9×27",
        "transformer.h.0.attn.c_attn.bias 27",
        "transformer.h.0.attn.c_proj.weight 9×9",
        "transformer.h.0.attn.c_proj.bias 9",
        "transformer.h.0.ln_2.weight 9",
        "transformer.h.0.ln_2.bias 9",
        "transformer.h.0.mlp.c_fc.weight 9×11",
        "transformer.h.0.mlp.c_fc.bias 11",
        "transformer.h.0.mlp.c_proj.weight 11×9",
        "transformer.h.0.mlp.c_proj.bias 9",
        "transformer.ln_f.weight 9",
        "transformer.ln_f.bias 9",
      ],
    );
    const llama = createModel({ ...MICRO_LLAMA, layers: 1 }, { backend: "ref", type: "float32" });
    llama.addAdapter("policy", { ...ADAPTER, targetModules: ["k_proj"] });
    llama.addHead("value", { ...HEAD, inner: 4 });
    assert.deepEqual(
      llama.parameters().map((parameter) => `${parameter.name} ${parameter.shape.join("×")}`),
      [
        "model.embed_tokens.weight 13×10",
        "model.layers.0.self_attn.q_proj.weight 24×10",
        "model.layers.0.self_attn.k_proj.weight 12×10",
        "model.layers.0.self_attn.v_proj.weight 12×10",
        "model.layers.0.self_attn.o_proj.weight 10×24",
        "model.layers.0.mlp.gate_proj.weight 7×10",
        "model.layers.0.mlp.up_proj.weight 7×10",
        "model.layers.0.mlp.down_proj.weight 10×7",
        "model.layers.0.input_layernorm.weight 10",
        "model.layers.0.post_attention_layernorm.weight 10",
        "model.norm.weight 10",
        "lm_head.weight 13×10",
        "policy:model.layers.0.self_attn.k_proj.lora_A 2×10",
        "policy:model.layers.0.self_attn.k_proj.lora_B 12×2",
        "value:inner.weight 4×10",
        "value:inner.bias 4",
        "value:weight 1×4",
        "value:bias 1",
      ],
    );
  });

  it("start as the field starts them", () => {
    const model = createModel(
      { ...MICRO_GPT2, hidden: 66, headDim: 22, intermediate: 200, layers: 2 },
      { backend: "ref", type: "float32" },
    );
    model.initialise(0.02, 7);
    const deviation = (name: string): number =>
      Math.sqrt(model.read(name).reduce((sum, value, _, all) => sum + value ** 2 / all.length, 0));
    assert.ok(Math.abs(deviation("transformer.h.0.mlp.c_fc.weight") - 0.02) < 0.0008);
    assert.ok(Math.abs(deviation("transformer.h.1.mlp.c_proj.weight") - 0.01) < 0.0004);
    assert.ok(model.read("transformer.ln_f.weight").every((value) => value === 1));
    assert.ok(model.read("transformer.h.0.attn.c_attn.bias").every((value) => value === 0));

    model.addAdapter("policy", { ...ADAPTER, targetModules: ["c_fc"] });
    const a = model.read("policy:transformer.h.0.mlp.c_fc.lora_A");
    const bound = 1 / Math.sqrt(66);
    assert.ok(
      a.every((value) => Math.abs(value) <= bound) && a.some((value) => Math.abs(value) > 0.9 * bound),
    );
    assert.ok(model.read("policy:transformer.h.0.mlp.c_fc.lora_B").every((value) => value === 0));
  });
});

describe("AdamW over a model's groups", () => {
  function stepped(scale: number, gradientScale: number, maxGradNorm: number): Float64Array {
    const model = microLlama();
    const batch = randomBatch([9], MICRO_LLAMA.vocab);
    const upstream = { dLogProb: new Float64Array(9).fill(scale) };
    model.createOptimizer(["adapter:policy", "head:value"], { weightDecay: 0.1 });
    for (let i = 0; i < 3; i++) {
      const pass = model.forward(batch, { ...POLICY, grad: true });
      model.backward(pass.pass, upstream);
      const result = model.optimizerStep(1e-2, maxGradNorm, gradientScale);
      assert.equal(result.steps, i + 1);
      assert.ok(result.gradientNorm > 0 && !result.skipped);
    }
    return model.read("policy:model.layers.1.mlp.up_proj.lora_A");
  }

  it("scales, clips by the global norm, decays and zeroes the gradients", () => {
    assert.ok(relativeDistance(stepped(1, 0.25, 0), stepped(0.25, 1, 0)) < 1e-12);
    // Once the norm is clipped, the size of the gradient no longer matters.
    assert.ok(relativeDistance(stepped(100, 1, 1e-3), stepped(200, 1, 1e-3)) < 1e-6);
    assert.ok(
      relativeDistance(stepped(100, 1, 1e-3), microLlama().read("policy:model.layers.1.mlp.up_proj.lora_A")) >
        1e-3,
    );
  });

  it("leaves everything but the named groups alone", () => {
    const model = microLlama("ref", "float64", true);
    model.createOptimizer(["head:value"], {});
    const before = new Map(
      model.parameters().map((parameter) => [parameter.name, model.read(parameter.name)]),
    );
    const pass = model.forward(randomBatch([9], MICRO_LLAMA.vocab), { ...POLICY, grad: true });
    model.backward(pass.pass, randomUpstream(9, true));
    model.optimizerStep(1e-2, 0, 1);
    for (const parameter of model.parameters()) {
      const changed = relativeDistance(model.read(parameter.name), before.get(parameter.name)!) > 0;
      assert.equal(changed, parameter.group === "head:value", parameter.name);
      const zeroed = model.gradient(parameter.name)!.every((value) => value === 0);
      assert.equal(zeroed, parameter.group === "head:value", parameter.name);
    }
  });

  it("skips an update whose gradient is not finite", () => {
    for (const poison of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const model = microLlama();
      model.createOptimizer(["adapter:policy"], { weightDecay: 0.5 });
      const name = "policy:model.layers.0.self_attn.q_proj.lora_B";
      const before = model.read(name);
      const batch = randomBatch([9], MICRO_LLAMA.vocab);
      const pass = model.forward(batch, { ...POLICY, grad: true });
      model.backward(pass.pass, { dLogProb: new Float64Array(9).fill(poison) });
      const result = model.optimizerStep(1e-2, 1, 1);
      assert.ok(result.skipped && !Number.isFinite(result.gradientNorm));
      assert.equal(result.steps, 0);
      assert.deepEqual(model.read(name), before);
      assert.ok(model.gradient(name)!.every((value) => value === 0));
    }
  });

  it("refuses a frozen base", () => {
    assert.throws(() => microLlama().createOptimizer(["base"], {}), {
      code: "ERR_RLHF_ARGUMENT",
      message: /frozen/,
    });
  });
});
