import assert from "node:assert/strict";
import { type Comparison, compare } from "../../bench/peers/paired.ts";
import { verdictOf } from "../../bench/verdict.ts";

/** A build that takes `factor` as long as the one before it, with neighbours that disturb both of some pairs. */
function slowedBy(factor: number): Comparison {
  const before = Array.from({ length: 21 }, (_, i) => (i % 5 === 0 ? 3 : 1));
  const now = before.map((seconds, i) => seconds * factor * (1 + 0.01 * Math.sin(7 * i)));
  return compare(now, before);
}

describe("paired ratios of two builds", () => {
  it("see a build that is slower, and one that is faster, through disturbed pairs", () => {
    assert.equal(verdictOf(slowedBy(1.2)), "fell");
    assert.equal(verdictOf(slowedBy(0.8)), "rose");
  });

  it("take changes up to 5 % for none", () => {
    assert.equal(verdictOf(slowedBy(1.03)), "same");
    assert.equal(verdictOf(slowedBy(1)), "same");
  });

  it("do not take noise for a change", () => {
    assert.equal(verdictOf({ ours: 1.1, theirs: 1, ratio: 0.9, interval: [0.6, 1.2] }), "same");
  });

  it("have an interval around their median", () => {
    const { ratio, interval } = slowedBy(1.2);
    assert.ok(interval[0] <= ratio && ratio <= interval[1]);
  });
});
