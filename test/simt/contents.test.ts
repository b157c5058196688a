import assert from "node:assert/strict";
import { opCases } from "../ops/cases/index.ts";
import { cudaBackend, type KernelArguments, PAGE_TOKENS, runFenced, runKernel } from "../support/kernels.ts";
import { type CaseArguments, decodeOutputs, toKernelArguments } from "../support/op-arguments.ts";

/**
 * What arrays hold cannot be refused by a kernel that runs after the call has returned: it reads nothing outside its arrays, and
 * what follows from a bad entry is not a number.
 */
describe(`arrays whose contents do not fit, on ${cudaBackend}`, () => {
  type Outputs = Record<string, Float64Array>;

  /** The outputs of a case with and without a change of its arrays. */
  function compare(op: string, name: string, change: KernelArguments): { good: Outputs; bad: Outputs } {
    const { args } = opCases.find((each) => each.op === op && each.name === name)!;
    const run = (given: CaseArguments, changed: KernelArguments): Outputs => {
      const converted = (): KernelArguments => ({ ...toKernelArguments(op, given, "float32"), ...changed });
      if (cudaBackend === "simt:apart") {
        runFenced("before", op, converted());
        runFenced("after", op, converted());
      }
      const result = converted();
      runKernel(cudaBackend, op, result);
      return decodeOutputs(op, result, "float32");
    };
    return { good: run(args, {}), bad: run(args, change) };
  }

  /** Throws unless exactly these elements are NaN and all others are as they were. */
  function assertOnlyNaN(good: Float64Array, bad: Float64Array, indices: Iterable<number>): void {
    const expected = good.slice();
    for (const index of indices) expected[index] = Number.NaN;
    assert.deepEqual([...bad], [...expected]);
  }

  const range = (begin: number, count: number): number[] =>
    Array.from({ length: count }, (_, index) => begin + index);

  const caseOf = (op: string, name: string): CaseArguments =>
    opCases.find((each) => each.op === op && each.name === name)!.args;

  function replaced(op: string, name: string, field: string, index: number, value: number): KernelArguments {
    const array = (caseOf(op, name)[field] as Int32Array).slice();
    array[index] = value;
    return { [field]: array };
  }

  function replacedReal(
    op: string,
    name: string,
    field: string,
    index: number,
    value: number,
  ): KernelArguments {
    const array = Float32Array.from(caseOf(op, name)[field] as Float64Array);
    array[index] = value;
    return { [field]: array };
  }

  for (const token of [65, 1000, -1])
    it(`tokenLogProbForward: token ${token} of a vocabulary of 65 has no chance`, () => {
      const [op, name] = ["tokenLogProbForward", "9 rows, vocabulary 65"];
      const [, predicted] = caseOf(op, name)["predictions"] as Int32Array;
      const { good, bad } = compare(op, name, replaced(op, name, "tokens", predicted!, token));
      const expected = good["logProb"]!.slice();
      expected[predicted!] = Number.NEGATIVE_INFINITY;
      assert.deepEqual(bad, { ...good, logProb: expected });
    });

  for (const [field, value] of [
    ["tokens", 11],
    ["tokens", -1],
    ["positions", 9],
    ["positions", -1],
  ] as const) {
    it(`embeddingForward: a row with ${field} of ${value} is NaN`, () => {
      const name = "7×33 with positions";
      const { good, bad } = compare(
        "embeddingForward",
        name,
        replaced("embeddingForward", name, field, 2, value),
      );
      assertOnlyNaN(good["y"]!, bad["y"]!, range(2 * 33, 33));
    });

    it(`embeddingBackward: a row with ${field} of ${value} is left out`, () => {
      const name = "7×33 with positions";
      const { good, bad } = compare(
        "embeddingBackward",
        name,
        replaced("embeddingBackward", name, field, 2, value),
      );
      const [table, other] = field === "tokens" ? ["dTable", "dPositionTable"] : ["dPositionTable", "dTable"];
      assert.deepEqual(bad[other!], good[other!]);
      const owner = (caseOf("embeddingBackward", name)[field] as Int32Array)[2]!;
      const differing = range(0, good[table!]!.length).filter((i) => bad[table!]![i] !== good[table!]![i]);
      assert.deepEqual(differing, range(owner * 33, 33));
    });
  }

  for (const position of [40, -1])
    it(`rotary: a row with position ${position}, beyond the tables, turns to NaN`, () => {
      const name = "7 rows, 3 heads, 6 of 10";
      const { good, bad } = compare("rotary", name, replaced("rotary", name, "positions", 3, position));
      const turned = range(0, 3).flatMap((head) => range(3 * 35 + head * 10, 6));
      assertOnlyNaN(good["x"]!, bad["x"]!, turned);
    });

  it("gae: a counted first token makes its sequence NaN where the advantage is known, and no other", () => {
    const name = "7, 1, 2 tokens";
    const { good, bad } = compare("gae", name, replacedReal("gae", name, "mask", 0, 1));
    assertOnlyNaN(good["advantage"]!, bad["advantage"]!, [0]);
    assertOnlyNaN(good["returns"]!, bad["returns"]!, [0]);
  });

  it("ppoValueLoss: a counted first token makes the loss NaN", () => {
    const name = "7, 1, 2 tokens";
    const { good, bad } = compare("ppoValueLoss", name, replacedReal("ppoValueLoss", name, "mask", 0, 1));
    assertOnlyNaN(good["stats"]!, bad["stats"]!, [0]);
    assert.deepEqual(bad["dValue"], good["dValue"]);
  });

  for (const row of [23, -1])
    it(`rewardLoss: row ${row}, outside the batch, makes the loss NaN and gets no gradient`, () => {
      const name = "logistic, 7 pairs and 0 scored answers";
      const { bad } = compare("rewardLoss", name, replaced("rewardLoss", name, "chosen", 2, row));
      assert.ok(Number.isNaN(bad["stats"]![0]));
    });

  const cache = "3 rows, 4/2 heads of 7, 2 of 5 pages";

  for (const place of [-1, 5 * PAGE_TOKENS])
    it(`kvAppend: a token whose place is ${place} is left out`, () => {
      const { good, bad } = compare("kvAppend", cache, replaced("kvAppend", cache, "places", 0, place));
      const width = 2 * 7;
      for (const field of ["kCache", "vCache"]) {
        const before = Float32Array.from(caseOf("kvAppend", cache)[field] as Float64Array);
        const differing = range(0, before.length).filter((i) => good[field]![i] !== bad[field]![i]);
        assert.equal(differing.length, width);
        for (const index of differing) assert.equal(bad[field]![index], before[index]);
      }
    });

  for (const page of [-1, 5])
    it(`decodeAttention: page ${page}, of none, is left out, and other rows stay as they are`, () => {
      const { good, bad } = compare(
        "decodeAttention",
        cache,
        replaced("decodeAttention", cache, "tables", 0, page),
      );
      const stride = 4 * 7 + 2 * 3;
      const others = (values: Float64Array): Float64Array => values.subarray(stride);
      assert.deepEqual(others(bad["o"]!), others(good["o"]!));
      assert.notDeepEqual(bad["o"], good["o"]);
    });

  const split = "8 rows, 4/2 heads of 8, 17 of 40 pages";
  const firstPagesOf = (row: number, count: number): Int32Array =>
    (caseOf("decodeAttention", split)["tables"] as Int32Array).map((page, index) =>
      index >= 17 * row && index < 17 * row + count ? -1 : page,
    );
  const rowOf = (outputs: Outputs, row: number): Float64Array =>
    outputs["o"]!.subarray(32 * row, 32 * row + 32);

  it("decodeAttention: pages of none are left out as if a window ended before them", () => {
    const missing = compare("decodeAttention", split, { tables: firstPagesOf(2, 8) });
    const hidden = compare("decodeAttention", split, { window: 1 });
    assert.deepEqual(rowOf(missing.bad, 2), rowOf(hidden.bad, 2));
    assert.notDeepEqual(rowOf(missing.bad, 2), rowOf(missing.good, 2));
  });

  it("decodeAttention: a sequence without pages, or without tokens, is NaN", () => {
    const { good, bad } = compare("decodeAttention", split, { tables: firstPagesOf(5, 17) });
    assertOnlyNaN(good["o"]!, bad["o"]!, range(32 * 5, 32));
    for (const [name, width] of [
      [split, 32],
      ["2 rows, 6/2 heads of 40, 4 of 12 pages", 240],
    ] as const) {
      const empty = compare("decodeAttention", name, replaced("decodeAttention", name, "lengths", 0, 0));
      assertOnlyNaN(empty.good["o"]!, empty.bad["o"]!, range(0, width));
    }
  });

  it("decodeAttention: a sequence longer than its table is cut to it", () => {
    const change = replaced("decodeAttention", cache, "lengths", 2, 1000);
    const { good, bad } = compare("decodeAttention", cache, change);
    assert.deepEqual(bad["o"], good["o"]);
  });

  it("sample: forbidden tokens that are none forbid nothing", () => {
    const name = "the last token of all";
    const { vocab } = caseOf("sample", name) as { vocab: number };
    const change = { forbiddenCount: 2, forbidden: Int32Array.of(-1, vocab) };
    const { good, bad } = compare("sample", name, change);
    assert.deepEqual(bad, good);
  });

  for (const sequence of [-1, 3])
    it(`wpoWeight: the pair of sequence ${sequence} is NaN`, () => {
      const name = "3, 2, 5 tokens";
      const { good, bad } = compare("wpoWeight", name, replaced("wpoWeight", name, "chosen", 1, sequence));
      assertOnlyNaN(good["weight"]!, bad["weight"]!, [1]);
    });

  it("wpoWeight: the pair of an answer without tokens is NaN", () => {
    const name = "3, 2, 5 tokens";
    const mask = (caseOf("wpoWeight", name)["mask"] as Float64Array).slice();
    const { good, bad } = compare("wpoWeight", name, { mask: Float32Array.from(mask.fill(0, 5)) });
    assertOnlyNaN(good["weight"]!, bad["weight"]!, [1]);
  });

  for (const kind of ["sigmoid", "aot", "aotUnpaired"]) {
    for (const sequence of [-1, 17]) {
      it(`preferenceLoss (${kind}): a pair of sequence ${sequence} makes the loss NaN`, () => {
        const name = `${kind}, 7 pairs`;
        const { good, bad } = compare(
          "preferenceLoss",
          name,
          replaced("preferenceLoss", name, "rejected", 4, sequence),
        );
        assert.ok(Number.isFinite(good["stats"]![0]));
        assert.ok(Number.isNaN(bad["stats"]![0]));
      });
    }
  }

  it("preferenceLoss: answers without tokens to divide by are NaN", () => {
    const name = "sigmoid, 7 pairs with everything optional";
    const chosen = (caseOf("preferenceLoss", name)["chosen"] as Int32Array)[3]!;
    const { bad } = compare("preferenceLoss", name, replaced("preferenceLoss", name, "tokens", chosen, 0));
    assert.ok(Number.isNaN(bad["stats"]![0]));
    assert.ok(Number.isNaN(bad["dLogProb"]![chosen]));
  });

  for (const label of [2, -2])
    it(`ktoLoss: the label ${label}, which is none, makes its gradient and the loss NaN`, () => {
      const name = "33 answers";
      const { good, bad } = compare("ktoLoss", name, replaced("ktoLoss", name, "label", 5, label));
      assertOnlyNaN(good["dLogProb"]!, bad["dLogProb"]!, [5]);
      assert.ok(Number.isNaN(bad["stats"]![0]));
    });

  for (const [what, value] of [
    ["NaN", Number.NaN],
    ["infinite", Number.POSITIVE_INFINITY],
  ] as const) {
    for (const name of ["plain", "greedy", "a wide vocabulary, everything"]) {
      it(`sample (${name}): a row with a logit that is ${what} gives token -1`, () => {
        const { vocab } = caseOf("sample", name) as { vocab: number };
        const { good, bad } = compare(
          "sample",
          name,
          replacedReal("sample", name, "logits", 2 * vocab + 7, value),
        );
        assertOnlyNaN(good["logProb"]!, bad["logProb"]!, [2]);
        assert.deepEqual([...bad["token"]!], [...good["token"]!.with(2, -1)]);
      });
    }
  }

  it("sample: a row without a token that may be drawn gives token -1", () => {
    const logits = Float32Array.from(caseOf("sample", "top-p")["logits"] as Float64Array).fill(
      -Infinity,
      129,
      258,
    );
    const { good, bad } = compare("sample", "top-p", { logits });
    assertOnlyNaN(good["logProb"]!, bad["logProb"]!, [1]);
    assert.deepEqual([...bad["token"]!], [...good["token"]!.with(1, -1)]);
  });
});
