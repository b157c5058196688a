import assert from "node:assert/strict";
import { readEosTokenIds, readModelConfig } from "../../lib/model/config.ts";
import { assertElementsClose } from "../parity/compare.ts";
import { readJson } from "../parity/reference.ts";
import { TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";

/** One entry of configs.json. */
interface ConfigReference {
  readonly config: Record<string, unknown>;
  readonly inverseFrequencies: number[];
  readonly rotaryScale: number;
  readonly windows: number[];
}

/** The sizes that the configurations of configs.json share. */
const SIZES = {
  num_hidden_layers: 4,
  hidden_size: 64,
  intermediate_size: 16,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  vocab_size: 8,
  max_position_embeddings: 128,
};
const TINY_QWEN2 = { ...TINY_LLAMA, model_type: "qwen2" };
const TINY_MISTRAL = { ...TINY_LLAMA, model_type: "mistral", sliding_window: 8 };
const scaled = (rope_scaling: Record<string, unknown>): Record<string, unknown> => ({
  ...TINY_LLAMA,
  rope_scaling,
});

describe("config.json", () => {
  it("reads gpt2 with its defaults", () => {
    const config = readModelConfig(TINY_GPT2, "config.json");
    assert.equal(config.intermediate, 96);
    assert.equal(config.headDim, 8);
    assert.equal(config.tiedEmbeddings, true);
    assert.equal(config.activation, "gelu_tanh");
  });

  const published = readJson<ConfigReference[]>("configs.json");
  for (const { config, inverseFrequencies, rotaryScale, windows } of published) {
    const { model_type, ...settings } = config;
    const said = JSON.stringify(
      Object.fromEntries(Object.entries(settings).filter(([key]) => !(key in SIZES))),
    );
    it(`turns and slides as transformers does: ${model_type} ${said}`, () => {
      const read = readModelConfig(config, "config.json");
      assertElementsClose(read.inverseFrequencies, inverseFrequencies, 1e-6, "inverse frequencies");
      assert.ok(Math.abs(read.rotaryScale - rotaryScale) <= 1e-12);
      assert.deepEqual(read.windows, windows);
    });
  }

  it("reads the other parts of each family", () => {
    const parts = ["attentionBias", "attentionOutBias", "mlpBias", "headNorm", "parallelResidual"] as const;
    const has = (config: Record<string, unknown>): string[] => {
      const read = readModelConfig({ ...SIZES, ...config }, "config.json");
      return parts.filter((part) => read[part]);
    };
    assert.deepEqual(has({ model_type: "llama" }), []);
    assert.deepEqual(has({ model_type: "llama", attention_bias: true }), [
      "attentionBias",
      "attentionOutBias",
    ]);
    assert.deepEqual(has({ model_type: "llama", mlp_bias: true }), ["mlpBias"]);
    assert.deepEqual(has({ model_type: "mistral", sliding_window: null }), []);
    assert.deepEqual(has({ model_type: "qwen2" }), ["attentionBias"]);
    assert.deepEqual(has({ model_type: "qwen3" }), ["headNorm"]);
    assert.deepEqual(has({ model_type: "qwen3", attention_bias: true }), [
      "attentionBias",
      "attentionOutBias",
      "headNorm",
    ]);
    const neox = ["attentionBias", "attentionOutBias", "mlpBias"];
    assert.deepEqual(has({ model_type: "gpt_neox" }), [...neox, "parallelResidual"]);
    assert.deepEqual(has({ model_type: "gpt_neox", use_parallel_residual: false }), neox);
    assert.deepEqual(has({ model_type: "gpt_neox", attention_bias: false }), ["mlpBias", "parallelResidual"]);
    assert.deepEqual(
      ["relu", "gelu", "gelu_new", "gelu_fast"].map(
        (hidden_act) => readModelConfig({ ...SIZES, model_type: "gpt_neox", hidden_act }, "c").activation,
      ),
      ["relu", "gelu", "gelu_tanh", "gelu_tanh"],
    );
  });

  const cases: [string, Record<string, unknown>, string, RegExp][] = [
    ["an unknown family", { ...TINY_LLAMA, model_type: "bert" }, "ERR_RLHF_UNSUPPORTED", /gpt2, llama/],
    ["no family", { vocab_size: 3 }, "ERR_RLHF_UNSUPPORTED", /model_type/],
    ["a missing field", { model_type: "llama" }, "ERR_RLHF_MODEL", /hidden_size/],
    ["a field of text", { ...TINY_LLAMA, hidden_size: "24" }, "ERR_RLHF_MODEL", /hidden_size is "24"/],
    ["heads that do not divide", { ...TINY_LLAMA, num_key_value_heads: 3 }, "ERR_RLHF_MODEL", /multiple/],
    ["an odd head width", { ...TINY_LLAMA, head_dim: 7 }, "ERR_RLHF_MODEL", /odd/],
    ["gpt2 width not divisible", { ...TINY_GPT2, n_head: 5 }, "ERR_RLHF_MODEL", /multiple/],
    [
      "an unknown rope type",
      scaled({ rope_type: "longrope" }),
      "ERR_RLHF_UNSUPPORTED",
      /rope_type is "longrope"; supported: "default", "linear", "llama3", "yarn"/,
    ],
    [
      "an unknown rope type, old form",
      scaled({ type: "dynamic", factor: 2 }),
      "ERR_RLHF_UNSUPPORTED",
      /rope_scaling: type is "dynamic"/,
    ],
    [
      "rope settings by layer",
      { ...TINY_LLAMA, rope_parameters: { full_attention: { rope_theta: 2 } } },
      "ERR_RLHF_UNSUPPORTED",
      /full_attention/,
    ],
    [
      "rope settings of text",
      { ...TINY_LLAMA, rope_scaling: "yarn" },
      "ERR_RLHF_MODEL",
      /rope_scaling is "yarn", expected an object/,
    ],
    [
      "linear scaling without factor",
      scaled({ type: "linear" }),
      "ERR_RLHF_MODEL",
      /rope_scaling: factor is undefined/,
    ],
    [
      "llama3 scaling without its bounds",
      scaled({ rope_type: "llama3", factor: 8 }),
      "ERR_RLHF_MODEL",
      /low_freq_factor/,
    ],
    [
      "llama3 bounds in the wrong order",
      scaled({ rope_type: "llama3", factor: 8, low_freq_factor: 4, high_freq_factor: 4 }),
      "ERR_RLHF_MODEL",
      /high_freq_factor is 4/,
    ],
    [
      "a partial rotary embedding of llama",
      { ...TINY_LLAMA, partial_rotary_factor: 0.5 },
      "ERR_RLHF_UNSUPPORTED",
      /partial_rotary_factor/,
    ],
    [
      "the same within rope_parameters",
      { ...TINY_LLAMA, rope_parameters: { partial_rotary_factor: 0.5 } },
      "ERR_RLHF_UNSUPPORTED",
      /partial_rotary_factor/,
    ],
    [
      "more rotary elements than a head has",
      { ...SIZES, model_type: "gpt_neox", rotary_pct: 1.5 },
      "ERR_RLHF_MODEL",
      /48 elements of heads of 32/,
    ],
    [
      "a relative of a known family",
      { ...TINY_QWEN2, model_type: "qwen2_moe" },
      "ERR_RLHF_UNSUPPORTED",
      /qwen2_moe"; supported are gpt2, llama, mistral, qwen2, qwen3, gpt_neox/,
    ],
    [
      "qwen2 without biases",
      { ...TINY_QWEN2, attention_bias: false },
      "ERR_RLHF_UNSUPPORTED",
      /attention_bias is false; supported: true/,
    ],
    [
      "mistral with biases",
      { ...TINY_MISTRAL, attention_bias: true },
      "ERR_RLHF_UNSUPPORTED",
      /attention_bias is true; supported: false/,
    ],
    [
      "mistral that does not say its window",
      { ...TINY_LLAMA, model_type: "mistral" },
      "ERR_RLHF_MODEL",
      /sliding_window is missing/,
    ],
    [
      "a window of nothing",
      { ...TINY_MISTRAL, sliding_window: 0 },
      "ERR_RLHF_MODEL",
      /sliding_window is 0, expected a positive integer/,
    ],
    [
      "mistral with alternating windows",
      { ...TINY_MISTRAL, layer_types: ["full_attention", "sliding_attention"] },
      "ERR_RLHF_UNSUPPORTED",
      /layer_types/,
    ],
    [
      "windows of another kind",
      { ...TINY_QWEN2, layer_types: ["full_attention", "chunked_attention"] },
      "ERR_RLHF_UNSUPPORTED",
      /layer_types/,
    ],
    [
      "windows of fewer layers",
      { ...TINY_QWEN2, layer_types: ["full_attention"] },
      "ERR_RLHF_MODEL",
      /layer_types.*num_hidden_layers = 2/,
    ],
    [
      "a sliding layer without a window",
      { ...TINY_QWEN2, layer_types: ["full_attention", "sliding_attention"] },
      "ERR_RLHF_MODEL",
      /use_sliding_window/,
    ],
    [
      "gpt_neox width not divisible",
      { ...SIZES, model_type: "gpt_neox", num_attention_heads: 3 },
      "ERR_RLHF_MODEL",
      /multiple/,
    ],
    ["an unknown activation", { ...TINY_GPT2, activation_function: "mish" }, "ERR_RLHF_MODEL", /mish/],
    ["another gate", { ...TINY_LLAMA, hidden_act: "gelu" }, "ERR_RLHF_UNSUPPORTED", /hidden_act/],
    ["a negative epsilon", { ...TINY_LLAMA, rms_norm_eps: -1 }, "ERR_RLHF_MODEL", /rms_norm_eps/],
  ];
  for (const [what, config, code, message] of cases) {
    it(`refuses ${what}`, () => {
      assert.throws(() => readModelConfig(config, "dir/config.json"), { code, message });
    });
  }

  it("finds end tokens as a number or a list, the generation configuration first", () => {
    assert.deepEqual(readEosTokenIds({ eos_token_id: 2 }, null), [2]);
    assert.deepEqual(readEosTokenIds({ eos_token_id: 2 }, { eos_token_id: [5, 6] }), [5, 6]);
    assert.deepEqual(readEosTokenIds({ eos_token_id: null }, null), []);
  });
});
