import assert from "node:assert/strict";
import fc from "fast-check";
import { epochBatches, longestFirst, planMicroBatches } from "../../lib/data/batching.ts";
import { Random } from "../../lib/data/random.ts";
import { isHeldOut, splitDataset } from "../../lib/data/split.ts";

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

describe("planMicroBatches", () => {
  const plans = fc.tuple(
    fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 40 }),
    fc.integer({ min: 1, max: 120 }),
  );

  it("places every sequence once and keeps to the budget", () => {
    fc.assert(
      fc.property(plans, ([lengths, budget]) => {
        const plan = planMicroBatches(lengths, budget);
        assert.deepEqual(
          plan.flat().sort((a, b) => a - b),
          lengths.map((_, index) => index),
        );
        for (const batch of plan) {
          assert.ok(batch.length === 1 || sum(batch.map((index) => lengths[index]!)) <= budget);
        }
      }),
    );
  });

  it("needs at most twice the micro-batches that the tokens would fill, plus one", () => {
    fc.assert(
      fc.property(plans, ([lengths, budget]) => {
        const fitting = lengths.filter((length) => length <= budget);
        // Any-fit packing fills all but one bin to more than half on average.
        assert.ok(planMicroBatches(fitting, budget).length <= Math.floor((2 * sum(fitting)) / budget) + 1);
      }),
    );
  });

  it("is first fit of the longest first, spread over as many bins where that fits, as done by hand", () => {
    fc.assert(
      fc.property(plans, ([lengths, budget]) => {
        const order = lengths.map((_, i) => i).sort((a, b) => lengths[b]! - lengths[a]! || a - b);
        const load = (bin: readonly number[]): number => sum(bin.map((index) => lengths[index]!));
        const packed: number[][] = [];
        for (const index of order) {
          const bin = packed.find((some) => load(some) + lengths[index]! <= budget);
          if (bin) bin.push(index);
          else packed.push([index]);
        }
        const even: number[][] = packed.map(() => []);
        for (const index of order) even.reduce((a, b) => (load(b) < load(a) ? b : a)).push(index);
        const fits = even.every((bin) => bin.length === 1 || load(bin) <= budget);
        const expected = (fits ? even : packed).map((bin) => bin.sort((a, b) => a - b));
        expected.sort((a, b) => a[0]! - b[0]!);
        assert.deepEqual(planMicroBatches(lengths, budget), expected);
      }),
    );
  });

  it("plans a whole data set", () => {
    const random = new Random(1, "lengths");
    const lengths = Array.from({ length: 200_000 }, () => 1 + random.integer(900));
    const plan = planMicroBatches(lengths, 4096);
    assert.ok(plan.every((batch) => sum(batch.map((index) => lengths[index]!)) <= 4096));
    assert.ok(sum(lengths) / plan.length > 0.95 * 4096, "passes are full");
  });

  it("makes micro-batches of about equal size", () => {
    const lengths = [50, 50, 50, 50, 20, 20];
    const loads = planMicroBatches(lengths, 130).map((batch) => sum(batch.map((index) => lengths[index]!)));
    assert.deepEqual(loads, [120, 120]);
  });

  it("gives a sequence over the budget its own micro-batch", () => {
    assert.deepEqual(planMicroBatches([10, 500, 10], 100), [[0, 2], [1]]);
  });

  it("refuses a budget that is no positive integer", () => {
    for (const budget of [0, -5, 1.5])
      assert.throws(() => planMicroBatches([1], budget), { code: "ERR_RLHF_ARGUMENT" });
  });
});

describe("epochBatches", () => {
  it("covers an epoch once, in another order each epoch, and again the same for the same epoch", () => {
    const flat = (epoch: number): number[] => epochBatches(10, 4, 3, epoch).flatMap((batch) => [...batch]);
    assert.deepEqual(
      flat(0).toSorted((a, b) => a - b),
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    assert.deepEqual(flat(0), flat(0));
    assert.notDeepEqual(flat(0), flat(1));
    assert.deepEqual(
      epochBatches(10, 4, 3, 0).map((batch) => batch.length),
      [4, 4, 2],
    );
    assert.deepEqual(
      epochBatches(10, 4, 3, 0, true).map((batch) => batch.length),
      [4, 4],
    );
  });

  it("orders evaluation longest first", () => {
    assert.deepEqual(longestFirst([3, 9, 3, 7]), [1, 3, 0, 2]);
  });
});

describe("splitDataset", () => {
  const rows = Array.from({ length: 400 }, (_, index) => ({ prompt: `p${index % 100}`, index }));

  it("is the same for the same seed, complete and without overlap", () => {
    const first = splitDataset(rows, { evalFraction: 0.25, seed: 1 });
    assert.deepEqual(first, splitDataset(rows, { evalFraction: 0.25, seed: 1 }));
    assert.notDeepEqual(first.eval, splitDataset(rows, { evalFraction: 0.25, seed: 2 }).eval);
    // Four standard deviations of a binomial with 400 draws.
    assert.ok(Math.abs(first.eval.length - 100) < 4 * Math.sqrt(400 * 0.25 * 0.75), `${first.eval.length}`);
    assert.deepEqual(
      [...first.train, ...first.eval].map((row) => row.index).sort((a, b) => a - b),
      rows.map((row) => row.index),
    );
  });

  it("keeps answers to one prompt on one side", () => {
    const split = splitDataset(rows, { evalFraction: 0.2, seed: 0, groupOf: (row) => row.prompt });
    const heldOut = new Set(split.eval.map((row) => row.prompt));
    assert.equal(split.eval.length, 4 * heldOut.size);
    assert.ok(split.train.every((row) => !heldOut.has(row.prompt)));
  });

  it("does not depend on order or on other rows, so that a set that grows keeps its split", () => {
    const options = { evalFraction: 0.1, seed: 3 };
    fc.assert(
      fc.property(fc.shuffledSubarray(rows, { minLength: 60 }), (some) => {
        const split = splitDataset(some, options);
        assert.deepEqual(
          split.eval,
          some.filter((row) => isHeldOut(row, options)),
        );
      }),
      { numRuns: 20 },
    );
  });

  it("leaves one group on each side, however small the set and the share", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.string(), { minLength: 2, maxLength: 5 }),
        fc.double({ min: 0.001, max: 0.999, noNaN: true }),
        (texts, evalFraction) => {
          const split = splitDataset(texts, { evalFraction, seed: 0 });
          assert.ok(split.eval.length > 0 && split.train.length > 0);
          assert.equal(split.eval.length + split.train.length, texts.length);
        },
      ),
    );
  });

  it("holds nothing out at 0 and says when it cannot", () => {
    assert.deepEqual(splitDataset(rows, { evalFraction: 0, seed: 0 }).eval, []);
    assert.throws(() => splitDataset(rows, { evalFraction: 1, seed: 0 }), { code: "ERR_RLHF_ARGUMENT" });
    assert.throws(() => splitDataset(rows.slice(0, 1), { evalFraction: 0.5, seed: 0 }), {
      code: "ERR_RLHF_DATA",
    });
  });
});
