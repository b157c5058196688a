import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertElementsClose } from "./compare.ts";
import { modelDirectory, ReferenceTensors } from "./reference.ts";

const CASES = [
  { model: "gpt2", file: "gpt2-gradients.safetensors" },
  { model: "llama", file: "llama-gradients.safetensors" },
  { model: "micro-llama", file: "micro-llama-statistics.safetensors" },
  { model: "micro-llama-bf16", file: "micro-llama-bf16-statistics.safetensors" },
  { model: "micro-llama-f16", file: "micro-llama-f16-statistics.safetensors" },
  ...["mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neox-sequential-f16"].map((model) => ({
    model,
    file: `${model}-gradients.safetensors`,
  })),
  // Rotary positions beyond the context that the model was trained with, in half precision.
  ...["llama3-bf16", "yarn-f16", "yarn-bf16", "linear-bf16"].map((model) => ({
    model,
    file: `${model}-statistics.safetensors`,
  })),
];

describe("per-token statistics against transformers", () => {
  for (const { model: name, file } of CASES) {
    for (const temperature of [1, 0.7]) {
      it(`${name}, temperature ${temperature}: log-probs, entropies and lse within 2e-5`, async () => {
        const expected = new ReferenceTensors(file);
        using model = await CausalLM.load(modelDirectory(name), { device: testDevice, dtype: "float32" });
        const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
        using pass = await model.forward(batch, { temperature });
        for (const key of ["logProb", "entropy", "lse"] as const) {
          const actual = await pass[key]();
          assertElementsClose(actual, expected.floats(`t${temperature}.${key}`), 2e-5, key);
        }
      });
    }
  }

  it("the first token of every sequence has log-prob, entropy and lse 0", async () => {
    const expected = new ReferenceTensors("llama-gradients.safetensors");
    using model = await CausalLM.load(modelDirectory("llama"), { device: testDevice });
    const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
    using pass = await model.forward(batch, {});
    for (const key of ["logProb", "entropy", "lse"] as const) {
      const actual = await pass[key]();
      for (const start of expected.integers("offsets").subarray(0, -1)) assert.equal(actual[start], 0, key);
    }
  });
});
