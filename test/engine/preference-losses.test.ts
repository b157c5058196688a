import assert from "node:assert/strict";
import { Engine } from "../../lib/engine/engine.ts";
import * as losses from "../../lib/engine/preference-losses.ts";

const floats = (...values: number[]): Float32Array => Float32Array.from(values);
const indices = (...values: number[]): Int32Array => Int32Array.from(values);

describe("losses of whole answers", () => {
  let engine: Engine;
  before(() => {
    engine = Engine.shared({ device: "cpu" });
  });

  const pairs = {
    losses: [{ type: "sigmoid" }],
    logProb: floats(-10, -14, -7, -6, -20, -31),
    refLogProb: floats(-11, -12, -6, -7, -22, -30),
    tokens: indices(5, 8, 3, 2, 9, 7),
    chosen: indices(0, 2, 4),
    rejected: indices(1, 3, 5),
    beta: 0.1,
    scale: 1 / 3,
  } as const;

  const gradientOf = async (args: losses.PreferenceLossArgs): Promise<Float32Array> => {
    const { dLogProb } = await losses.preferenceLoss(engine, args);
    using gradient = dLogProb;
    return gradient.read();
  };

  it("several losses are their weighted sum, and their gradients too", async () => {
    const terms = [
      { type: "sigmoid", weight: 0.8 },
      { type: "ipo", weight: 0.05 },
      { type: "apo_zero" },
    ] as const;
    const parts = await Promise.all(
      terms.map((term) => losses.preferenceLoss(engine, { ...pairs, losses: [{ ...term, weight: 1 }] })),
    );
    const { stats } = await losses.preferenceLoss(engine, { ...pairs, losses: terms });
    const weights = [0.8, 0.05, 1];
    const sum = parts.reduce((total, part, index) => total + weights[index]! * part.stats.loss, 0);
    assert.ok(Math.abs(stats.loss - sum) < 1e-5, `${stats.loss}, expected ${sum}`);
    for (const [index, { type }] of terms.entries())
      assert.equal(stats[`loss/${type}`], parts[index]!.stats.loss, type);
    assert.equal(stats.pairs, 3);

    const gradients = await Promise.all(parts.map((part) => part.dLogProb.read()));
    const together = await gradientOf({ ...pairs, losses: terms });
    for (const [s, value] of together.entries()) {
      const expected = gradients.reduce((total, each, index) => total + weights[index]! * each[s]!, 0);
      assert.ok(Math.abs(value - expected) < 1e-6, `${value}, expected ${expected}`);
    }
  });

  it("length normalisation can be chosen for a loss", async () => {
    const normalized = [{ type: "sigmoid", lengthNormalized: true }] as const;
    assert.deepEqual(
      await gradientOf({ ...pairs, losses: normalized }),
      await gradientOf({ ...pairs, losses: [{ type: "sigmoid_norm" }] }),
    );
    const summed = [{ type: "ipo", lengthNormalized: false }] as const;
    const { stats } = await losses.preferenceLoss(engine, { ...pairs, losses: summed });
    // Margins 3, −2 and 3 against 1/(2β) = 5.
    assert.ok(Math.abs(stats.loss - (4 + 49 + 4)) < 1e-4, `${stats.loss}`);
  });

  it("losses that sort are those that need a whole window", () => {
    const coupling = losses.PREFERENCE_LOSS_TYPES.filter((type) =>
      losses.couplesPairs([{ type: "sigmoid" }, { type }]),
    );
    assert.deepEqual(coupling, ["aot", "aot_unpaired"]);
  });

  it("lengthDesensitizedWeight counts the tokens beyond the shorter answer less", () => {
    const args = {
      mask: floats(0, 0, 1, 1, 1, 0, 0, 1, 0, 1),
      offsets: indices(0, 5, 10),
      chosen: indices(0),
      rejected: indices(1),
    };
    assert.deepEqual(
      losses.lengthDesensitizedWeight({ ...args, ldAlpha: 0.25 }),
      floats(0, 0, 1, 1, 0.25, 0, 0, 1, 0, 1),
    );
    assert.deepEqual(losses.lengthDesensitizedWeight({ ...args, ldAlpha: 1 }), args.mask);
    assert.throws(() => losses.lengthDesensitizedWeight({ ...args, ldAlpha: 1.5 }), {
      code: "ERR_RLHF_ARGUMENT",
      message: "ldAlpha is 1.5, expected 0 to 1",
    });
  });

  it("mismatchedKl is a mean of log-ratios, and never below 0", () => {
    assert.equal(losses.mismatchedKl(floats(-1, -2), floats(-2, -4)), 1.5);
    assert.equal(losses.mismatchedKl(floats(-3, -2), floats(-2, -2)), 0);
    assert.throws(() => losses.mismatchedKl(floats(-3), floats(-2, -2)), { code: "ERR_RLHF_SHAPE" });
    assert.throws(() => losses.mismatchedKl(floats(), floats()), { code: "ERR_RLHF_SHAPE" });
  });

  it("says what is wrong with its arguments", async () => {
    const rejects = (change: object, code: string, message: RegExp): Promise<void> =>
      assert.rejects(losses.preferenceLoss(engine, { ...pairs, ...change }), { code, message });
    await rejects({ losses: [] }, "ERR_RLHF_ARGUMENT", /losses is empty/);
    await rejects(
      { losses: [{ type: "dpo" }] },
      "ERR_RLHF_ARGUMENT",
      /no preference loss "dpo"; there are sigmoid, /,
    );
    await rejects({ losses: [{ type: "toString" }] }, "ERR_RLHF_ARGUMENT", /no preference loss "toString"/);
    await rejects(
      { losses: [{ type: "exo_pair" }] },
      "ERR_RLHF_ARGUMENT",
      /labelSmoothing is 0, expected > 0 with exo_pair/,
    );
    await rejects({ fDivergence: "kl" }, "ERR_RLHF_ARGUMENT", /no f-divergence "kl"; there are reverse_kl, /);
    await rejects({ refLogProb: floats(1) }, "ERR_RLHF_SHAPE", /refLogProb/);
    await rejects({ tokens: indices(1) }, "ERR_RLHF_SHAPE", /tokens has 1 elements, expected 6/);
    await rejects({ rejected: indices(1) }, "ERR_RLHF_SHAPE", /rejected has 1 elements, expected 3/);
    await rejects({ chosen: indices(0, 2, 6) }, "ERR_RLHF_ARGUMENT", /chosen\[2\] is 6, expected 0 to 5/);
    await rejects({ chosen: indices(), rejected: indices() }, "ERR_RLHF_SHAPE", /pairs is 0, expected ≥ 1/);
    await rejects({ losses: [{ type: "ipo" }], tokens: undefined }, "ERR_RLHF_ARGUMENT", /tokens is null/);
    await rejects(
      { losses: [{ type: "aot" }], fDivergence: "forward_kl" },
      "ERR_RLHF_ARGUMENT",
      /fDivergence is 1/,
    );
    const kto = { logProb: floats(-1), refLogProb: floats(-1), kl: 0, beta: 0.1, scale: 1 };
    await assert.rejects(losses.ktoLoss(engine, { ...kto, label: indices(1, 1) }), {
      code: "ERR_RLHF_SHAPE",
      message: /label has 2 elements, expected 1/,
    });
    const sum = { x: floats(1, 2), weight: floats(1, 1) };
    await assert.rejects(losses.sequenceSum(engine, { ...sum, offsets: indices(0, 1) }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /offsets must rise from 0 to the number of tokens, 2/,
    });
  });
});
