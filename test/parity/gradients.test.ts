import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertAllClose, assertGradientClose } from "./compare.ts";
import { modelDirectory, ReferenceTensors } from "./reference.ts";

const MODELS = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neox-sequential-f16"];

describe("gradients of every parameter against PyTorch", () => {
  for (const name of MODELS) {
    it(`${name}: random upstream gradients of logProb, entropy, lse and value at temperature 0.7`, async () => {
      const expected = new ReferenceTensors(`${name}-gradients.safetensors`);
      using model = await CausalLM.load(modelDirectory(name), { device: testDevice, trainable: "all" });
      model.addHead("value", { kind: "linear" });
      await model.writeParameter("value:weight", expected.floats("head.weight"));
      await model.writeParameter("value:bias", expected.floats("head.bias"));

      const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
      const pass = await model.forward(batch, { head: "value", temperature: 0.7, grad: true });
      assertAllClose(await pass.value(), expected.floats("value"), 2e-5, "value");
      await pass.backward({
        dLogProb: expected.floats("dLogProb"),
        dEntropy: expected.floats("dEntropy"),
        dLse: expected.floats("dLse"),
        dValue: expected.floats("dValue"),
      });

      const base = model.parameters().filter((parameter) => !parameter.name.startsWith("value:"));
      const names = expected.names("grad.").map((key) => key.slice("grad.".length));
      assert.deepEqual(base.map((parameter) => parameter.name).sort(), names, "parameter names");
      for (const key of names) {
        assertGradientClose(await model.readGradient(key), expected.floats(`grad.${key}`), key);
      }
      for (const key of ["weight", "bias"]) {
        const actual = await model.readGradient(`value:${key}`);
        assertGradientClose(actual, expected.floats(`headGrad.${key}`), `value:${key}`);
      }
    });
  }
});
