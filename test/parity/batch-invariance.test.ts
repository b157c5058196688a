import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { modelDirectory, ReferenceTensors } from "./reference.ts";

/** Log-probs of every sequence when `groups` says which sequences share a forward pass. */
async function logProbs(
  model: CausalLM,
  sequences: Int32Array[],
  groups: number[][],
): Promise<Float32Array[]> {
  const out: Float32Array[] = [];
  for (const group of groups) {
    const batch = packSequences(group.map((index) => ({ tokens: sequences[index]! })));
    using pass = await model.forward(batch, { grad: true });
    const all = await pass.logProb();
    for (const [position, index] of group.entries()) {
      out[index] = all.slice(batch.offsets[position], batch.offsets[position + 1]);
    }
  }
  return out;
}

describe("a token's log-prob is bitwise the same", () => {
  for (const name of ["gpt2", "llama"]) {
    const sequences = new ReferenceTensors(`${name}-gradients.safetensors`).sequences();
    const everyone = sequences.map((_, index) => index);
    const splits: Record<string, number[][]> = {
      alone: everyone.map((index) => [index]),
      "in micro-batches of two": [
        [0, 1],
        [2, 3],
        [4, 5],
      ],
      "in another order": [everyone.toReversed()],
      "with the longest apart": [[3], [0, 1, 2, 4, 5]],
    };

    for (const threads of [1, 2]) {
      it(`${name}: alone, in a batch, in any micro-batch split, ${threads} thread(s)`, async () => {
        using one = await CausalLM.load(modelDirectory(name), { device: "cpu", threads: 1 });
        const together = await logProbs(one, sequences, [everyone]);
        using model = await CausalLM.load(modelDirectory(name), { device: "cpu", threads });
        for (const [how, groups] of Object.entries(splits)) {
          assert.deepEqual(await logProbs(model, sequences, groups), together, how);
        }
        assert.deepEqual(await logProbs(model, sequences, [everyone]), together, "the whole batch");
      });
    }
  }
});
