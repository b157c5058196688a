import assert from "node:assert/strict";
import {
  floorOf,
  generationOperations,
  type Machine,
  type Operation,
  type PassWork,
  passOperations,
  shapeOf,
  weightCount,
} from "../../bench/end-to-end/floor.ts";
import { MODELS } from "../../bench/end-to-end/works.ts";

const MACHINE: Machine = { peak: { float32: 100, bfloat16x3: 300, bfloat16: 1000 }, bandwidth: 10 };
const flopsOf = (operations: readonly Operation[]): number =>
  operations.reduce((total, { flops }) => total + flops, 0);

const shape = shapeOf(MODELS["gpt2"]!);
const work: PassWork = { lengths: [256], predictions: 0, rank: 0, compute: "float32", trained: "none" };
const scaled = (factor: number): PassWork => ({ ...work, lengths: [256 * factor] });

describe("floors", () => {
  it("take for each op what bounds it, one after another", () => {
    const operations = [
      { flops: 300, bytes: 10, ofWeight: true },
      { flops: 50, bytes: 20 },
    ];
    assert.equal(floorOf(operations, "float32", MACHINE), 3 + 2);
    assert.equal(floorOf(operations, "bfloat16", MACHINE), 1 + 2);
  });

  it("count the weights of GPT-2 small and of the Llama", () => {
    const layer = 4 * 768 ** 2 + 8 * 768 ** 2;
    assert.equal(weightCount(shape), 12 * layer + 50_257 * 768);
    assert.equal(
      weightCount(shapeOf(MODELS["llama-110m"]!)),
      12 * (4 * 768 ** 2 + 3 * 768 * 2048) + 32_000 * 768,
    );
    const grouped = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172;
    assert.equal(weightCount(shapeOf(MODELS["stories260k"]!)), 5 * grouped + 512 * 64);
  });

  it("of a forward pass are two operations a weight and token, and attention's", () => {
    const attention = 12 * 4 * ((256 * 257) / 2) * 768;
    const layers = weightCount(shape) - 50_257 * 768;
    assert.equal(flopsOf(passOperations(shape, work)), 2 * 256 * layers + attention);
    const head = 2 * 100 * 50_257 * 768;
    const withHead = passOperations(shape, { ...work, predictions: 100 });
    assert.equal(flopsOf(withHead), 2 * 256 * layers + attention + head);
  });

  it("of training all weights are three times the products, and 3.5 times attention's", () => {
    const attention = 12 * 4 * ((256 * 257) / 2) * 768;
    const forward = flopsOf(passOperations(shape, { ...work, predictions: 255 }));
    const step = flopsOf(passOperations(shape, { ...work, predictions: 255, trained: "all" }));
    assert.equal(step, 3 * (forward - attention) + 3.5 * attention);
  });

  it("grow with the tokens in all but attention", () => {
    const attention = (tokens: number): number => 12 * 2 * tokens * (tokens + 1) * 768;
    const rest = (factor: number): number =>
      flopsOf(passOperations(shape, scaled(factor))) - attention(256 * factor);
    assert.equal(rest(4), 4 * rest(1));
  });

  it("see the shared prompt that a sequence continues", () => {
    const [whole, shared] = [
      flopsOf(passOperations(shape, work)),
      flopsOf(passOperations(shape, { ...work, lengths: [128, 128], contexts: [0, 128] })),
    ];
    assert.equal(shared, whole);
  });

  it("of decoding one sequence read every weight once a token", () => {
    const first = generationOperations(shape, 1, 64, 1, work);
    const second = generationOperations(shape, 1, 64, 2, work).slice(first.length);
    const read = second.reduce((bytes, operation) => bytes + operation.bytes, 0);
    assert.ok(read > 4 * weightCount(shape) && read < 4.1 * weightCount(shape));
  });
});
