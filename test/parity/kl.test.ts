import { CausalLM, packSequences } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertElementsClose, assertGradientClose } from "./compare.ts";
import { modelDirectory, REFERENCE, ReferenceTensors } from "./reference.ts";

const TEMPERATURE = 0.7;

describe("KL over the whole vocabulary against PyTorch", () => {
  for (const klDirection of ["reverse", "forward"] as const)
    for (const adapter of ["policy", undefined]) {
      const trained = adapter ? "an adapter" : "all weights";
      it(`${klDirection}: divergences of mistral from qwen2 and the gradients of ${trained}`, async () => {
        const expected = new ReferenceTensors("kl.safetensors");
        using reference = await CausalLM.load(modelDirectory("qwen2"), { device: testDevice });
        using model = await CausalLM.load(modelDirectory("mistral"), {
          device: testDevice,
          trainable: adapter ? "none" : "all",
        });
        if (adapter) await model.loadAdapter(adapter, `${REFERENCE}adapters/mistral`);
        const batch = packSequences(expected.sequences().map((tokens) => ({ tokens })));
        const settings = { temperature: TEMPERATURE, klDirection };
        using refPass = await reference.forward(batch, { ...settings, keepDistribution: true });
        const pass = await model.forward(batch, {
          ...settings,
          ...(adapter ? { adapter } : {}),
          reference: refPass,
          grad: true,
        });
        const part = adapter ? klDirection : `${klDirection}.base`;
        assertElementsClose(await pass.kl(), expected.floats(`${part}.kl`), 2e-5, "kl");
        await pass.backward({ dKl: expected.floats(`${klDirection}.upstream`) });
        for (const key of expected.names(`${part}.grad.`)) {
          const name = key.slice(`${part}.grad.`.length);
          const parameter = adapter ? `${adapter}:${name}` : name;
          assertGradientClose(await model.readGradient(parameter), expected.floats(key), parameter);
        }
      });
    }
});
