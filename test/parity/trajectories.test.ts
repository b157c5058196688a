import { CausalLM, packSequences } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertClose } from "./compare.ts";
import { modelDirectory, REFERENCE, readJson } from "./reference.ts";

interface Trajectory {
  batches: number[][][];
  learningRates: number[];
  betas: [number, number];
  eps: number;
  weightDecay: number;
  maxGradNorm: number;
  losses: number[];
  gradNorms: number[];
}

/** The mean negative log-likelihood over all predicted tokens, and its gradient by dLogProb. */
function meanNll(batch: { tokens: Int32Array; offsets: Int32Array }, logProb: Float32Array) {
  const predicted = batch.tokens.length - (batch.offsets.length - 1);
  let sum = 0;
  for (const value of logProb) sum -= value;
  return { loss: sum / predicted, dLogProb: new Float32Array(batch.tokens.length).fill(-1 / predicted) };
}

describe("twenty AdamW steps against PyTorch", () => {
  const trajectories = readJson<Record<string, Trajectory>>("trajectories.json");
  for (const [name, expected] of Object.entries(trajectories)) {
    it(`${name}: every loss within 1e-4, every gradient norm within 1e-3`, async () => {
      const base = name.replace("-lora", "");
      const adapter = base === name ? undefined : "policy";
      using model = await CausalLM.load(modelDirectory(base), {
        device: testDevice,
        trainable: adapter === undefined ? "all" : "none",
      });
      if (adapter !== undefined) await model.loadAdapter(adapter, `${REFERENCE}adapters/${base}`);
      const { betas, eps, weightDecay, maxGradNorm } = expected;
      using optimizer = model.createOptimizer({ adapter, betas, eps, weightDecay });
      const batches = expected.batches.map((sequences) =>
        packSequences(sequences.map((tokens) => ({ tokens }))),
      );
      for (const [step, learningRate] of expected.learningRates.entries()) {
        const batch = batches[step % batches.length]!;
        const pass = await model.forward(batch, { adapter, grad: true });
        const { loss, dLogProb } = meanNll(batch, await pass.logProb());
        await pass.backward({ dLogProb });
        const { gradNorm } = await optimizer.step({ learningRate, maxGradNorm });
        assertClose(loss, expected.losses[step]!, 1e-4, `loss of step ${step}`);
        assertClose(gradNorm, expected.gradNorms[step]!, 1e-3, `gradient norm of step ${step}`);
      }
    });
  }
});
