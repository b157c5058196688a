import assert from "node:assert/strict";
import { readEosTokenIds, readModelConfig } from "../../lib/model/config.ts";
import { TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";

describe("config.json", () => {
  it("reads gpt2 with its defaults", () => {
    const config = readModelConfig(TINY_GPT2, "config.json");
    assert.equal(config.intermediate, 96);
    assert.equal(config.headDim, 8);
    assert.equal(config.tiedEmbeddings, true);
    assert.equal(config.activation, "gelu_tanh");
  });

  it("reads llama, with rotary settings of transformers 4 and 5", () => {
    const old = readModelConfig({ ...TINY_LLAMA, rope_theta: 500000 }, "c");
    const recent = readModelConfig(
      { ...TINY_LLAMA, rope_parameters: { rope_type: "default", rope_theta: 500000 } },
      "c",
    );
    assert.equal(old.ropeTheta, 500000);
    assert.equal(recent.ropeTheta, 500000);
    assert.equal(old.kvHeads, 2);
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
      "rope scaling",
      { ...TINY_LLAMA, rope_scaling: { rope_type: "llama3", factor: 8 } },
      "ERR_RLHF_UNSUPPORTED",
      /rope_type/,
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
