import assert from "node:assert/strict";
import { relativeDistance } from "../support/compare.ts";
import { kernels, PAGE_TOKENS } from "../support/kernels.ts";
import { evaluate } from "../support/op-arguments.ts";
import { attentionForwardArguments } from "./cases/attention.ts";
import { CaseData, unset } from "./cases/case.ts";
import { sampleArguments } from "./cases/decode.ts";
import { ACTIVATION } from "./cases/linear.ts";
import { tokenLogProbForwardArguments } from "./cases/token-log-prob.ts";

/** The oracle itself, against the textbook formulas written out once more in TypeScript, and against published vectors. */

function softmax(scores: readonly number[]): number[] {
  const largest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

function dot(left: Float64Array, right: Float64Array): number {
  return left.reduce((sum, value, index) => sum + value * right[index]!, 0);
}

/** attentionForward written out once more, for a window or none. */
function checkNaiveAttention(window: number): void {
  const data = new CaseData("naive attention");
  const [heads, kvHeads, headDim] = [4, 2, 5];
  const lengths = [3, 6];
  const args = attentionForwardArguments(data, { lengths, heads, kvHeads, headDim, window });
  const at = (name: string, row: number, width: number, head: number): Float64Array =>
    (args[name] as Float64Array).subarray(row * width + head * headDim, row * width + (head + 1) * headDim);
  const expected = new Float64Array(9 * heads * headDim);
  for (const [first, length] of [
    [0, 3],
    [3, 6],
  ] as const)
    for (let row = first; row < first + length; row++)
      for (let head = 0; head < heads; head++) {
        const kvHead = Math.floor(head / (heads / kvHeads));
        const oldest = window > 0 ? Math.max(first, row - window + 1) : first;
        const keys = Array.from({ length: row - oldest + 1 }, (_, index) => oldest + index);
        const probabilities = softmax(
          keys.map((key) => dot(at("q", row, 20, head), at("k", key, 10, kvHead)) / Math.sqrt(headDim)),
        );
        for (const [index, key] of keys.entries())
          for (let d = 0; d < headDim; d++)
            expected[row * 20 + head * headDim + d]! += probabilities[index]! * at("v", key, 10, kvHead)[d]!;
      }
  assert.ok(relativeDistance(evaluate("attentionForward", args)["o"]!, expected) < 1e-14);
}

/** decodeAttention against the last row of attentionForward. */
function checkDecode(window: number): void {
  const data = new CaseData("decode is attention");
  const [length, heads, kvHeads, headDim, pages] = [41, 4, 2, 6, 3];
  const table = [2, 0];
  const forward = attentionForwardArguments(data, { lengths: [length], heads, kvHeads, headDim, window });
  const size = pages * PAGE_TOKENS * kvHeads * headDim;
  const cache = { kCache: unset(size), vCache: unset(size) };
  const placeOf = (position: number): number =>
    table[Math.floor(position / PAGE_TOKENS)]! * PAGE_TOKENS + (position % PAGE_TOKENS);
  const filled = evaluate("kvAppend", {
    rows: length,
    kvHeads,
    headDim,
    pages,
    kStride: kvHeads * headDim,
    vStride: kvHeads * headDim,
    places: Int32Array.from({ length }, (_, position) => placeOf(position)),
    k: forward["k"]!,
    v: forward["v"]!,
    ...cache,
  });
  const width = heads * headDim;
  const { o } = evaluate("decodeAttention", {
    rows: 1,
    heads,
    kvHeads,
    headDim,
    pages,
    tableStride: table.length,
    qStride: width,
    oStride: width,
    window,
    scale: forward["scale"]!,
    tables: Int32Array.from(table),
    lengths: Int32Array.of(length),
    q: (forward["q"] as Float64Array).slice(-width),
    kCache: filled["kCache"]!,
    vCache: filled["vCache"]!,
    o: unset(width),
  });
  assert.ok(relativeDistance(o!, evaluate("attentionForward", forward)["o"]!.slice(-width)) < 1e-14);
}

describe("the oracle", () => {
  it("attends as a masked softmax per head", () => {
    for (const window of [0, 1, 2, 4, 7]) checkNaiveAttention(window);
  });

  it("decodes as the last row of attention over the same keys", () => {
    for (const window of [0, 1, 4, 9, 20]) checkDecode(window);
  });

  it("scores tokens as a log-softmax", () => {
    const data = new CaseData("naive log-softmax");
    const args = tokenLogProbForwardArguments(data, {
      rows: 4,
      cols: 3,
      vocab: 7,
      count: 2,
      temperature: 0.6,
    });
    const { logProb, lse, entropy } = evaluate("tokenLogProbForward", args);
    const [x, weight] = [args["x"] as Float64Array, args["weight"] as Float64Array];
    for (const [index, t] of (args["predictions"] as Int32Array).entries()) {
      const source = (args["sources"] as Int32Array)[index]!;
      const hidden = x.subarray(source * 3, (source + 1) * 3);
      const logits = Array.from(
        { length: 7 },
        (_, v) => dot(hidden, weight.subarray(v * 3, v * 3 + 3)) / 0.6,
      );
      const probabilities = softmax(logits);
      const token = (args["tokens"] as Int32Array)[t]!;
      assert.ok(Math.abs(logProb![t]! - Math.log(probabilities[token]!)) < 1e-14);
      assert.ok(Math.abs(lse![t]! - Math.log(logits.reduce((sum, z) => sum + Math.exp(z), 0))) < 1e-14);
      const plogp = probabilities.reduce((sum, p) => sum + p * Math.log(p), 0);
      assert.ok(Math.abs(entropy![t]! + plogp) < 1e-14);
    }
    assert.equal(logProb!.filter((value) => !Number.isNaN(value)).length, 2, "only predictions are written");
  });

  it("activates by the published values", () => {
    // transformers' gelu_new(1), gelu(1), tanh(1), relu, silu(1)
    const expected = {
      geluTanh: 0.8411919906,
      geluErf: 0.8413447461,
      tanh: 0.761594156,
      relu: 1,
      silu: 0.7310585786,
    };
    for (const [name, value] of Object.entries(expected)) {
      const activation = ACTIVATION[name as keyof typeof expected];
      const shape = { rows: 1, inputs: 1, outputs: 1, xStride: 1, yStride: 1 };
      const { y } = evaluate("linearForward", {
        ...shape,
        activation,
        x: Float64Array.of(1),
        weight: Float64Array.of(1),
        y: unset(1),
      });
      assert.ok(Math.abs(y![0]! - value) < 1e-10, `${name}(1) is ${y![0]}`);
    }
  });

  it("normalises rows to mean 0 and variance 1, or to mean square 1", () => {
    const data = new CaseData("norms");
    const x = data.normal(300, 3, 5);
    const shape = {
      rows: 1,
      cols: 300,
      eps: 0,
      x,
      weight: new Float64Array(300).fill(1),
      y: unset(300),
      rstd: unset(1),
    };
    const mean = (values: Float64Array): number =>
      values.reduce((sum, value) => sum + value, 0) / values.length;
    const layer = evaluate("layerNormForward", { ...shape, bias: new Float64Array(300), mean: unset(1) })[
      "y"
    ]!;
    assert.ok(Math.abs(mean(layer)) < 1e-14);
    assert.ok(Math.abs(mean(layer.map((value) => value * value)) - 1) < 1e-13);
    const rms = evaluate("rmsNormForward", shape)["y"]!;
    assert.ok(Math.abs(mean(rms.map((value) => value * value)) - 1) < 1e-13);
  });

  it("reads bfloat16 weights under float32 activations", () => {
    const bits = kernels.toBits(Float32Array.of(1.5, -2), "bfloat16");
    const y = new Float32Array(1);
    const args = {
      type: "float32",
      weightType: "bfloat16",
      rows: 1,
      inputs: 2,
      outputs: 1,
      xStride: 2,
      yStride: 1,
    };
    kernels.run("ref", "linearForward", { ...args, x: Float32Array.of(2, 0.5), weight: bits, y });
    assert.equal(y[0], 2);
  });
});

describe("sampling", () => {
  /** How often each token is drawn, over many positions of one stream. */
  function frequencies(
    logits: readonly number[],
    settings: Record<string, number>,
    draws = 20_000,
  ): number[] {
    const vocab = logits.length;
    const args = sampleArguments(new CaseData("frequencies"), draws, vocab, settings);
    const { token } = evaluate("sample", {
      ...args,
      streams: new BigInt64Array(draws),
      positions: Int32Array.from({ length: draws }, (_, position) => position),
      logits: Float64Array.from({ length: draws * vocab }, (_, index) => logits[index % vocab]!),
    });
    const counts = new Array<number>(vocab).fill(0);
    for (const id of token!) counts[id]!++;
    return counts.map((count) => count / draws);
  }

  const LOGITS = [0.5, 2, -1, 1, 0];

  function assertFrequencies(actual: readonly number[], expected: readonly number[]): void {
    for (const [token, probability] of expected.entries()) {
      const deviation = Math.sqrt((probability * (1 - probability)) / 20_000);
      const distance = Math.abs(actual[token]! - probability);
      assert.ok(distance <= 4 * deviation, `token ${token}: ${actual[token]} instead of ${probability}`);
    }
  }

  it("draws in proportion to the tempered softmax", () => {
    assertFrequencies(frequencies(LOGITS, { temperature: 0.8 }), softmax(LOGITS.map((logit) => logit / 0.8)));
  });

  it("keeps the k largest with top-k", () => {
    const [second, fourth] = softmax([2, 1]);
    assertFrequencies(frequencies(LOGITS, { topK: 2 }), [0, second!, 0, fourth!, 0]);
  });

  it("keeps the smallest set that reaches p, the crossing token included, with top-p", () => {
    // Falling probabilities .559, .206, .125, … : .7 is crossed by the second.
    const [second, fourth] = softmax([2, 1]);
    assertFrequencies(frequencies(LOGITS, { topP: 0.7 }), [0, second!, 0, fourth!, 0]);
  });

  it("keeps what is likely enough beside the likeliest with min-p", () => {
    const [first, second, fourth] = softmax([0.5, 2, 1]);
    assertFrequencies(frequencies(LOGITS, { minP: 0.2 }), [first!, second!, 0, fourth!, 0]);
  });

  it("reports the log-probability with which the token was drawn", () => {
    const args = sampleArguments(new CaseData("log-prob of a draw"), 50, 5, { topK: 2 });
    const repeated = Float64Array.from({ length: 250 }, (_, index) => LOGITS[index % 5]!);
    const { token, logProb } = evaluate("sample", { ...args, logits: repeated });
    const [second, fourth] = softmax([2, 1]);
    for (const [row, id] of token!.entries())
      assert.ok(Math.abs(logProb![row]! - Math.log(id === 1 ? second! : fourth!)) < 1e-14);
  });

  it("divides positive and multiplies negative logits of seen tokens by the repetition penalty", () => {
    const args = sampleArguments(new CaseData("penalty"), 1, 3, { temperature: 0, repetitionPenalty: 2 });
    const greedy = (logits: readonly number[], seen: readonly number[]): number =>
      evaluate("sample", { ...args, logits: Float64Array.from(logits), seen: Uint8Array.from(seen) })[
        "token"
      ]![0]!;
    assert.equal(greedy([3, 2, 1], [0, 0, 0]), 0);
    assert.equal(greedy([3, 2, 1], [1, 0, 0]), 1);
    assert.equal(greedy([-1, -1.5, -3], [1, 0, 0]), 1);
  });

  it("never draws what is forbidden, in the rows that forbid it", () => {
    const draws = { forbiddenCount: 1, forbidden: Int32Array.of(1), forbid: Uint8Array.of(1, 0) };
    const args = sampleArguments(new CaseData("forbidden"), 2, 3, { temperature: 0, ...draws });
    const { token } = evaluate("sample", { ...args, logits: Float64Array.of(0, 9, 1, 0, 9, 1) });
    assert.deepEqual([...token!], [2, 1]);
  });

  it("depends on the seed, the stream and the position alone", () => {
    const args = sampleArguments(new CaseData("coordinates"), 1, 1000, {}, 0.1);
    const draw = (change: Record<string, number | BigInt64Array | Int32Array>): number =>
      evaluate("sample", { ...args, ...change })["token"]![0]!;
    const first = draw({});
    assert.equal(draw({}), first);
    const others = [
      draw({ seed: 99 }),
      draw({ streams: BigInt64Array.of(1n) }),
      draw({ positions: Int32Array.of(77) }),
    ];
    assert.equal(new Set([first, ...others]).size, 4);
  });
});

describe("core", () => {
  it("Philox 4×32-10 meets the known-answer vectors of Random123", () => {
    const words = (seed: bigint, stream: bigint, index: bigint): string[] =>
      Array.from(kernels.philox(seed, stream, index), (word) => word.toString(16).padStart(8, "0"));
    const all = 0xffff_ffff_ffff_ffffn;
    assert.deepEqual(words(0n, 0n, 0n), ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]);
    assert.deepEqual(words(all, all, all), ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]);
    // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: digits of π.
    assert.deepEqual(words(0x299f31d0a4093822n, 0x0370734413198a2en, 0x85a308d3243f6a88n), [
      "d16cfe09",
      "94fdcceb",
      "5001e420",
      "24126ea1",
    ]);
  });

  it("rounds to bfloat16 and float16 to nearest even, subnormals and special values included", () => {
    const bits = (value: number, type: "float16" | "bfloat16"): string =>
      kernels.toBits(Float32Array.of(value), type)[0]!.toString(16).padStart(4, "0");
    assert.equal(bits(1, "bfloat16"), "3f80");
    assert.equal(bits(1 + 2 ** -8, "bfloat16"), "3f80");
    assert.equal(bits(1 + 3 * 2 ** -8, "bfloat16"), "3f82");
    assert.equal(bits(-Infinity, "bfloat16"), "ff80");
    assert.equal(bits(3.4e38, "bfloat16"), "7f80");
    assert.equal(bits(1, "float16"), "3c00");
    assert.equal(bits(65504, "float16"), "7bff");
    assert.equal(bits(65520, "float16"), "7c00");
    assert.equal(bits(2 ** -24, "float16"), "0001");
    assert.equal(bits(2 ** -25, "float16"), "0000");
    assert.equal(bits(3 * 2 ** -25, "float16"), "0002");
    for (const type of ["float16", "bfloat16"] as const) {
      assert.ok(Number.isNaN(kernels.fromBits(kernels.toBits(Float32Array.of(Number.NaN), type), type)[0]));
      const all = Uint16Array.from({ length: 0x10000 }, (_, value) => value);
      const values = kernels.fromBits(all, type);
      const back = kernels.toBits(values, type);
      for (const [value, number] of values.entries())
        if (!Number.isNaN(number)) assert.equal(back[value], value, `${type} ${value.toString(16)}`);
    }
  });

  it("has one ABI hash per build", () => {
    assert.equal(kernels.abiHash(), kernels.abiHash());
    assert.notEqual(kernels.abiHash(), 0n);
  });

  it("backends ask for more scratch memory for more work, never for less", () => {
    const small = {
      rows: 8,
      maxWidth: 64,
      vocab: 100,
      maxRank: 4,
      heads: 4,
      kvHeads: 2,
      headDim: 16,
      tableStride: 5,
    };
    const large = {
      rows: 800,
      maxWidth: 640,
      vocab: 10_000,
      maxRank: 16,
      heads: 8,
      kvHeads: 8,
      headDim: 64,
      tableStride: 50,
    };
    for (const backend of kernels.backends())
      assert.ok(kernels.scratchBytes(backend, small) <= kernels.scratchBytes(backend, large), backend);
  });
});
