import { CausalLM, packSequences } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertElementsClose, assertGradientClose } from "./compare.ts";
import { modelDirectory, REFERENCE, ReferenceTensors } from "./reference.ts";

describe("LoRA against peft", () => {
  for (const name of ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"]) {
    it(`${name}: an adapter saved by peft gives its log-probs and the gradients of every A and B`, async () => {
      const expected = new ReferenceTensors(`${name}-lora.safetensors`);
      using model = await CausalLM.load(modelDirectory(name), { device: testDevice });
      await model.loadAdapter("policy", `${REFERENCE}adapters/${name}`);
      const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
      const pass = await model.forward(batch, { adapter: "policy", grad: true });
      for (const key of ["logProb", "entropy", "lse"] as const) {
        assertElementsClose(await pass[key](), expected.floats(key), 2e-5, key);
      }
      await pass.backward({
        dLogProb: expected.floats("dLogProb"),
        dEntropy: expected.floats("dEntropy"),
        dLse: expected.floats("dLse"),
      });
      for (const key of expected.names("grad.")) {
        const parameter = `policy:${key.slice("grad.".length)}`;
        assertGradientClose(await model.readGradient(parameter), expected.floats(key), parameter);
      }
    });
  }
});
