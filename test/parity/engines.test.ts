import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { randomSequences, TINY_LLAMA, testDevice } from "../support/tiny.ts";

/* Engines of one process have threads of their own, and a device each. */

const ROUNDS = 40;

/** Log-probs of a model on the engine that this compute type has, of other sequences each round. */
async function logProbs(compute: "float32" | "bfloat16"): Promise<Float32Array[]> {
  const model = await CausalLM.create(TINY_LLAMA, { device: testDevice, threads: 1, compute });
  const found: Float32Array[] = [];
  for (let round = 0; round < ROUNDS; ++round) {
    const sequences = randomSequences([2 + (round % 7), 3], TINY_LLAMA.vocab_size as number, round);
    const batch = packSequences(sequences.map((tokens) => ({ tokens, promptLength: 1 })));
    using pass = await model.forward(batch);
    found.push(await pass.logProb());
  }
  return found;
}

describe(`two engines at once (${testDevice})`, () => {
  it("compute what each computes alone", async () => {
    const alone = [await logProbs("float32"), await logProbs("bfloat16")];
    assert.deepEqual(await Promise.all([logProbs("float32"), logProbs("bfloat16")]), alone);
  });
});
