import assert from "node:assert/strict";
import { CausalLM, type Rollout } from "../../lib/index.ts";
import { measureRollouts } from "../../lib/trainers/rollout-steps.ts";
import { RolloutBatch } from "../../lib/trainers/rollouts.ts";
import { randomSequences, TINY_FAMILIES } from "../support/tiny.ts";

const VOCABULARY = 53;
const [first, second, third] = randomSequences([9, 4, 1], VOCABULARY) as [Int32Array, Int32Array, Int32Array];
const ANSWERS = randomSequences([5, 1, 7, 2, 3, 6, 4], VOCABULARY, 1);

function rollout(prompt: Int32Array, response: Int32Array): Rollout {
  return {
    row: { prompt: "" },
    tokens: Int32Array.of(...prompt, ...response),
    promptLength: prompt.length,
    response: "",
    finishReason: "length",
  };
}

/** Prompts with three, two and one answers, and one without any. */
const ROLLOUTS = [first, second, first, third, second, first].map((prompt, i) =>
  rollout(prompt, ANSWERS[i]!),
);
const WITHOUT = rollout(first, new Int32Array(0));
const SETTINGS = { microBatchTokens: 1000, temperature: 1 };

describe("rollouts whose prompts are shared", () => {
  it("lie in a micro-batch with each prompt once", () => {
    const batch = new RolloutBatch([...ROLLOUTS, WITHOUT], { sharePrompts: true });
    const { tokens, parents, mask, sequences } = batch.select([0, 1, 2, 3, 5, 6]);
    const expected = [
      first,
      ANSWERS[0]!,
      second,
      ANSWERS[1]!,
      ANSWERS[2]!,
      third,
      ANSWERS[3]!,
      ANSWERS[5]!,
      first,
    ];
    assert.deepEqual(tokens, Int32Array.from(expected.flatMap((part) => [...part])));
    // The second and the third prompt have one answer here, which stays with it.
    assert.equal(sequences, 7);
    assert.deepEqual(parents, Int32Array.of(-1, 0, -1, 0, -1, 0, -1));
    assert.equal(
      mask.reduce((sum, bit) => sum + bit, 0),
      batch.responseTokens([0, 1, 2, 3, 5, 6]),
    );
    assert.deepEqual(
      batch.ofSequences([0, 1, 2, 3, 5, 6], (index) => index + 10),
      Float32Array.of(0, 10, 11, 12, 13, 15, 16),
    );
  });

  it("give and take the values of their tokens", () => {
    const batch = new RolloutBatch(ROLLOUTS, { sharePrompts: true });
    const values = Float32Array.from(batch.packed.tokens, (_, t) => t + 1);
    const indices = [5, 4, 2, 1, 0];
    const back = new Float32Array(values.length);
    const gathered = batch.gather(values, indices);
    assert.equal(gathered.length, batch.select(indices).tokens.length);
    batch.scatter(back, indices, gathered);
    for (const [index, { tokens, promptLength }] of ROLLOUTS.entries()) {
      const begin = batch.packed.offsets[index]!;
      for (let t = promptLength; t < tokens.length; t++)
        assert.equal(back[begin + t], indices.includes(index) ? values[begin + t] : 0);
    }
  });

  it("are shared out with the answers to a prompt together, each once and within the tokens", () => {
    const many = Array.from({ length: 24 }, (_, i) => rollout([first, second][i % 2]!, ANSWERS[i % 7]!));
    const batch = new RolloutBatch(many, { sharePrompts: true });
    const plan = batch.microBatches(30, many.keys());
    assert.deepEqual(
      plan.flat().sort((a, b) => a - b),
      many.map((_, index) => index),
    );
    for (const indices of plan) assert.ok(batch.select(indices).tokens.length <= 30);
    assert.ok(plan.length < new RolloutBatch(many).microBatches(30, many.keys()).length);
  });

  for (const family of ["gpt2", "llama"] as const)
    it(`${family}: have the same log-probs, to the bit`, async () => {
      using model = await CausalLM.create(TINY_FAMILIES[family], { seed: 1 });
      const [shared, alone] = [true, false].map(
        (sharePrompts) => new RolloutBatch(ROLLOUTS, { sharePrompts }),
      );
      const expected = await measureRollouts(alone!, { model }, SETTINGS);
      for (const microBatchTokens of [1000, 20]) {
        const { logProb } = await measureRollouts(shared!, { model }, { ...SETTINGS, microBatchTokens });
        const { mask } = shared!.packed;
        assert.deepEqual(
          logProb.filter((_, t) => mask[t] !== 0),
          expected.logProb.filter((_, t) => mask[t] !== 0),
        );
      }
    });
});
