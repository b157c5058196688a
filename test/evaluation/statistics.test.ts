import assert from "node:assert/strict";
import fc from "fast-check";
import { type Battle, lengthControlledRate } from "../../lib/evaluation/statistics.ts";
import { type ByPrompt, estimateMean, pairedDifferences, wilsonInterval, winRate } from "../../lib/index.ts";
import { assertNear } from "../support/near.ts";

function logit(p: number): number {
  return Math.log(p / (1 - p));
}

/** Battles of equal weight: `wins` of `count`, the answers longer by `lengthDifference`. */
function battles(count: number, wins: number, lengthDifference: number): Battle[] {
  return Array.from({ length: count }, (_, i) => ({ win: Number(i < wins), weight: 1, lengthDifference }));
}

describe("statistics of evaluation", () => {
  it("the mean's interval is the normal one over prompts", () => {
    // Means 1, 2, 3, 6 of single answers: sample deviation √(14/3), error √(14/3)/2.
    const estimate = estimateMean([[1], [2], [3], [6]]);
    assertNear(estimate?.mean, 3);
    assertNear(estimate?.high, 3 + 1.959963984540054 * Math.sqrt(14 / 3 / 4));
    assertNear(estimate?.low, 3 - 1.959963984540054 * Math.sqrt(14 / 3 / 4));
    assert.equal(estimate?.answers, 4);
  });

  it("answers that only repeat their prompt's narrow no interval", () => {
    const once = estimateMean([[1], [2], [3], [6]]);
    const thrice = estimateMean([1, 2, 3, 6].map((value) => [value, value, value]));
    assertNear(thrice?.low, once?.low as number);
    assert.equal(thrice?.answers, 12);
  });

  it("shares have Wilson's interval, as narrow as prompts and answers allow", () => {
    const bounds = (values: ByPrompt): object => {
      const estimate = estimateMean(values);
      return { low: estimate?.low, high: estimate?.high };
    };
    assert.deepEqual(bounds([[1], [1], [1], [0]]), wilsonInterval(0.75, 4));
    assert.deepEqual(bounds([[0], [0], [0]]), wilsonInterval(0, 3));
    // Answers alike within prompts count once; answers that differ within every prompt are all trials.
    assert.deepEqual(
      bounds([
        [1, 1, 1],
        [0, 0, 0],
      ]),
      wilsonInterval(0.5, 2),
    );
    assert.deepEqual(
      bounds([
        [1, 0],
        [0, 1],
      ]),
      wilsonInterval(0.5, 4),
    );
    // Means 1, ½, ½, 0 of two answers: error² = 4/3 · (1 + 1) / 64 = 1/24, and ¼ · 24 = 6 trials.
    const between = bounds([
      [1, 1],
      [1, 0],
      [0, 1],
      [0, 0],
    ]) as { low: number; high: number };
    assertNear(between.low, wilsonInterval(0.5, 6).low, 1e-9);
    assertNear(between.high, wilsonInterval(0.5, 6).high, 1e-9);
  });

  it("leaves out what does not apply, and gives no bounds for one prompt", () => {
    assert.deepEqual(estimateMean([[1, null], [null], [3]]), estimateMean([[1], [3]]));
    assert.deepEqual(estimateMean([[1, 2]]), { mean: 1.5, low: null, high: null, answers: 2, prompts: 1 });
    assert.equal(estimateMean([[null], []]), null);
    assert.deepEqual(pairedDifferences([[3, null], [1]], [[1, 1], [null]]), [[2, null], [null]]);
  });

  it("Wilson's interval has the published values", () => {
    // Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for (const [wins, trials, low, high] of [
      [81, 263, 0.2553, 0.3662],
      [15, 148, 0.0624, 0.1605],
      [0, 20, 0, 0.1611],
      [1, 29, 0.0061, 0.1718],
    ] as const) {
      const interval = wilsonInterval(wins / trials, trials);
      assertNear(interval.low, low, 5e-5);
      assertNear(interval.high, high, 5e-5);
    }
  });

  it("holds the rate and mirrors it", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 500 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (trials, rate) => {
          const { low, high } = wilsonInterval(rate, trials);
          assert.ok(low >= 0 && low <= rate + 1e-12 && high >= rate - 1e-12 && high <= 1);
          const mirrored = wilsonInterval(1 - rate, trials);
          assertNear(mirrored.low, 1 - high, 1e-9);
        },
      ),
    );
  });

  it("counts wins, ties and losses by prompt", () => {
    const lengths: ByPrompt = [[5, 5], [5], [5]];
    const result = winRate([[2, 1], [1], [null]], [[1, 1], [3], [0]], lengths, lengths);
    assert.deepEqual([result?.wins, result?.ties, result?.losses], [1, 1, 1]);
    assertNear(result?.rate, (0.75 + 0) / 2);
    assert.deepEqual({ low: result?.low, high: result?.high }, wilsonInterval(0.375, 2));
    assert.equal(winRate([[null]], [[1]], [[1]], [[1]]), null);
  });

  it("swapping the models mirrors win rate and length control", () => {
    const scores = fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 3 })), {
      minLength: 1,
      maxLength: 12,
    });
    fc.assert(
      fc.property(scores, scores, (values, sizes) => {
        const column = (rows: [number, number][], side: 0 | 1): ByPrompt =>
          values.map((_, i) => [(rows[i % rows.length] as [number, number])[side]]);
        const [a, b] = [column(values, 0), column(values, 1)];
        const [la, lb] = [column(sizes, 0), column(sizes, 1)];
        const [ours, theirs] = [winRate(a, b, la, lb), winRate(b, a, lb, la)];
        assertNear(ours?.rate, 1 - (theirs?.rate as number), 1e-12);
        assertNear(ours?.lengthControlled.rate, 1 - (theirs?.lengthControlled.rate as number), 1e-6);
      }),
    );
  });

  it("equal lengths: length control changes nothing but the small penalty", () => {
    const { rate, low, high } = lengthControlledRate(battles(1000, 700, 0));
    assertNear(rate, 0.7, 1e-5);
    const error = 1.959963984540054 / Math.sqrt(1000 * 0.21);
    assertNear(low, 1 / (1 + Math.exp(-(logit(0.7) - error))), 1e-4);
    assertNear(high, 1 / (1 + Math.exp(-(logit(0.7) + error))), 1e-4);
  });

  it("wins by length alone are no wins at equal length", () => {
    // Longer answers win 90 of 100, shorter ones 10 of 100: the mean of their log-odds is 0, though 2/3 are longer.
    const longer = [...battles(200, 180, 10), ...battles(100, 10, -10)];
    const raw = longer.reduce((sum, { win }) => sum + win, 0) / longer.length;
    assertNear(raw, 190 / 300);
    assertNear(lengthControlledRate(longer).rate, 0.5, 1e-4);
    // 90 % where longer and 60 % where shorter: σ of the mean of the log-odds.
    const better = [...battles(100, 90, 10), ...battles(100, 60, -10)];
    assertNear(lengthControlledRate(better).rate, 1 / (1 + Math.exp(-(logit(0.9) + logit(0.6)) / 2)), 1e-4);
  });

  it("stays finite where one model always wins", () => {
    const { rate, low, high } = lengthControlledRate([...battles(50, 50, 3), ...battles(50, 50, -3)]);
    assert.ok(rate > 0.99 && rate < 1 && low > 0 && high <= 1, `${rate} ${low} ${high}`);
  });
});
