import assert from "node:assert/strict";
import { philox4x32, Random } from "../../lib/data/random.ts";

describe("Random", () => {
  it("gives the known answers of Philox 4x32-10 (Random123, kat_vectors)", () => {
    const ones = 0xffffffff;
    assert.deepEqual(philox4x32([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert.deepEqual(
      philox4x32([ones, ones, ones, ones], [ones, ones]),
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    );
    assert.deepEqual(
      philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    );
  });

  it("repeats for the same seed and stream, and differs for another seed or stream", () => {
    const draw = (seed: number, stream: string): number[] => {
      const random = new Random(seed, stream);
      return Array.from({ length: 6 }, () => random.uint32());
    };
    assert.deepEqual(draw(7, "a"), draw(7, "a"));
    assert.notDeepEqual(draw(7, "a"), draw(8, "a"));
    assert.notDeepEqual(draw(7, "a"), draw(7, "b"));
    assert.notDeepEqual(draw(7, "a"), draw(7 + 2 ** 32, "a"));
  });

  it("goes on where its state was taken", () => {
    const random = new Random(3, "resume");
    for (let drawn = 0; drawn < 7; drawn++) random.uint32();
    const copy = Random.restore(JSON.parse(JSON.stringify(random.state())));
    assert.deepEqual(
      [copy.uniform(), copy.integer(10), copy.normal()],
      [random.uniform(), random.integer(10), random.normal()],
    );
  });

  it("draws uniform and normal numbers with the right moments", () => {
    const random = new Random(1, "moments");
    const n = 20000;
    const uniform = Array.from({ length: n }, () => random.uniform());
    const normal = Array.from({ length: n }, () => random.normal());
    const mean = (values: readonly number[]): number =>
      values.reduce((sum, value) => sum + value, 0) / values.length;
    // Five standard errors.
    assert.ok(Math.abs(mean(uniform) - 0.5) < 5 * Math.sqrt(1 / 12 / n));
    assert.ok(Math.abs(mean(normal)) < 5 / Math.sqrt(n));
    assert.ok(Math.abs(mean(normal.map((value) => value * value)) - 1) < 5 * Math.sqrt(2 / n));
    assert.ok(uniform.every((value) => value >= 0 && value < 1));
  });

  it("permutes without loss and without favourite places", () => {
    const random = new Random(5, "permutation");
    const counts = new Array<number>(4).fill(0);
    for (let trial = 0; trial < 4000; trial++) {
      const order = random.permutation(4);
      assert.deepEqual([...order].sort(), [0, 1, 2, 3]);
      counts[order.indexOf(0)]!++;
    }
    for (const count of counts)
      assert.ok(Math.abs(count - 1000) < 5 * Math.sqrt(4000 * 0.25 * 0.75), `place counts ${counts}`);
  });

  it("refuses seeds and bounds that are no such integers", () => {
    for (const seed of [-1, 1.5, Number.NaN, 2 ** 53])
      assert.throws(() => new Random(seed), { code: "ERR_RLHF_ARGUMENT" });
    for (const bound of [0, 2.5, 2 ** 33])
      assert.throws(() => new Random(0).integer(bound), { code: "ERR_RLHF_ARGUMENT" });
  });
});
