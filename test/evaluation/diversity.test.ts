import assert from "node:assert/strict";
import fc from "fast-check";
import {
  distinctN,
  lengthStatistics,
  measureDiversity,
  pairwiseJaccard,
  repetitionRate,
  selfBleuScores,
  wordEntropy,
} from "../../lib/index.ts";
import { assertNear } from "../support/near.ts";

const words = (text: string): string[] => (text === "" ? [] : text.split(" "));

describe("diversity", () => {
  const answers = ["a b a b", "a b c", "d"].map(words);

  it("distinct-n: different n-grams of all answers ÷ n-grams", () => {
    assertNear(distinctN(answers, 1), 4 / 8);
    assertNear(distinctN(answers, 2), 3 / 5); // ab ba ab | ab bc
    assertNear(distinctN(answers, 3), 3 / 3); // aba bab | abc
    assert.equal(distinctN(answers, 5), 0);
  });

  it("repetition: 4-grams that occurred before in the same answer", () => {
    assertNear(repetitionRate(["a b a b a b", "a b a b"].map(words)), 1 / 4); // abab baba abab | abab
    assertNear(repetitionRate([words("x x x x x x x")]), 3 / 4);
    assert.equal(repetitionRate([words("a b c")]), 0);
  });

  it("entropy of the histogram, in nats", () => {
    assertNear(wordEntropy(["a b", "c d"].map(words)), Math.log(4));
    assertNear(wordEntropy(["a a a", "b"].map(words)), 0.75 * Math.log(4 / 3) + 0.25 * Math.log(4));
    assert.equal(wordEntropy([[]]), 0);
  });

  it("self-BLEU-4 by hand: clipped precisions, brevity and short answers", () => {
    // Against "a b c d": 5 words, precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty; the other way 4 words of 5: all match.
    const [longer, shorter] = selfBleuScores(["a b c d e", "a b c d"].map(words));
    assertNear(longer, (0.8 * 0.75 * (2 / 3) * 0.5) ** (1 / 4));
    assertNear(shorter, Math.exp(1 - 5 / 4));
    // Clipping: of two a's one matches; no bigram matches, so 0.1 stands for it. Two words are two orders.
    const [doubled] = selfBleuScores(["a a", "a b"].map(words));
    assertNear(doubled, Math.sqrt((1 / 2) * (0.1 / 1)));
    // Of an n-gram, the reference that has it most often counts, never the answer itself.
    const [three] = selfBleuScores(["a a a", "a b c", "a a d"].map(words), 1);
    assertNear(three, 2 / 3);
    // Nearest reference length of two as near: the shorter one, so no penalty.
    const [, between] = selfBleuScores(["x", "a b", "a b c"].map(words), 1);
    assertNear(between, 1);
    assert.deepEqual(selfBleuScores([[], []]), [1, 1]);
    assert.equal(selfBleuScores([[], ["a"]])[0], 0);
    assert.deepEqual(selfBleuScores([["a"]]), []);
  });

  it("Jaccard of bigrams by hand", async () => {
    assert.deepEqual(await pairwiseJaccard(["a b c", "a b d", "x y"].map(words)), [1 / 3, 0, 0]);
    assert.deepEqual(await pairwiseJaccard([["a"], ["a"], ["b"], []]), [1, 0, 0, 0, 0, 0]);
  });

  it("length: mean and deviation of a sample", () => {
    assert.deepEqual(lengthStatistics(["a", "a b c"].map(words)), { mean: 2, std: Math.SQRT2 });
    assert.deepEqual(lengthStatistics([["a"]]), { mean: 1, std: 0 });
  });

  it("compares answers within groups only", async () => {
    const same = await measureDiversity([["a b", "a b"].map(words), ["c d", "c d"].map(words)]);
    assertNear(same.jaccard2, 1);
    assertNear(same.selfBleu4, 1);
    const apart = await measureDiversity([["a b", "c d"].map(words), ["a b", "c d"].map(words)]);
    assertNear(apart.jaccard2, 0);
    assertNear(apart.selfBleu4, Math.sqrt((0.1 / 2) * 0.1));
    assert.equal(same.distinct2, apart.distinct2);
  });

  const corpus = fc.array(fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 12 }), {
    minLength: 2,
    maxLength: 6,
  });

  it("keeps every measure in its range, and does not depend on the order of answers", async () => {
    await fc.assert(
      fc.asyncProperty(corpus, async (group) => {
        const measured = await measureDiversity([group]);
        const { entropy, lengthMean, lengthStd, ...shares } = measured;
        for (const [name, value] of Object.entries(shares)) assert.ok(value >= 0 && value <= 1 + 1e-12, name);
        assert.ok(entropy >= 0 && entropy <= Math.log(5) + 1e-12);
        assert.ok(lengthMean <= 12 && lengthStd >= 0);
        const reversed = await measureDiversity([[...group].reverse()]);
        for (const [name, value] of Object.entries(measured))
          assertNear(reversed[name as keyof typeof reversed], value, 1e-9);
      }),
      { numRuns: 200 },
    );
  });

  it("copies of one answer are as alike as can be", async () => {
    const answer = fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 2, maxLength: 10 });
    await fc.assert(
      fc.asyncProperty(answer, fc.integer({ min: 2, max: 5 }), async (one, copies) => {
        const measured = await measureDiversity([new Array<number[]>(copies).fill(one)]);
        assertNear(measured.selfBleu4, 1);
        assertNear(measured.jaccard2, 1);
        assertNear(measured.distinct1, distinctN([one], 1) / copies);
        assertNear(measured.lengthStd, 0);
      }),
    );
  });
});
