import assert from "node:assert/strict";
import { Expectation } from "../support/compare.ts";
import type { KernelArray } from "../support/kernels.ts";
import { assertUntouched, markUnset } from "../support/untouched.ts";
import { opCases } from "./cases/index.ts";

/** The criteria that backends are held to can fail: every case notices one wrong, one missing and one stray element. */

/** Index of the largest finite element, −1 where every element is 0 or NaN. */
function indexOfLargest(values: Float64Array): number {
  let best = -1;
  for (const [index, value] of values.entries())
    if (Math.abs(value) > (best < 0 ? 0 : Math.abs(values[best]!))) best = index;
  return best;
}

describe("criteria of the table of cases", () => {
  for (const opCase of opCases) {
    it(`${opCase.op}: ${opCase.name}`, () => {
      const expectation = new Expectation(opCase, "float32");
      const { values } = expectation;
      const rejects = (field: string, index: number, value: number): void => {
        const wrong = values[field]!.slice();
        wrong[index] = value;
        assert.throws(
          () => expectation.verify({ ...values, [field]: wrong }, "changed"),
          { name: "AssertionError" },
          `${field}[${index}] = ${value} instead of ${values[field]![index]} passes`,
        );
      };
      for (const field of expectation.fields()) {
        const index = indexOfLargest(values[field]!);
        if (index >= 0) {
          const value = values[field]![index]!;
          rejects(field, index, value + Math.sign(value) * 0.01 * (1 + Math.abs(value)));
          rejects(field, index, Number.NaN);
        }
        const untouched = values[field]!.findIndex(Number.isNaN);
        if (untouched >= 0) rejects(field, untouched, 0);
      }
    });
  }
});

describe("elements that an op must not write", () => {
  for (const [name, array] of [
    ["float32", Float32Array.of(1, Number.NaN)],
    ["bfloat16", Uint16Array.of(0x3f80, 0x7fc0)],
  ] as const) {
    it(`are noticed when NaN is written over them, ${name}`, () => {
      const expected = { y: Float64Array.of(1, Number.NaN) };
      const check = (y: KernelArray): void => assertUntouched("rmsNormForward", { y }, expected, ["y"]);
      const marked = array.slice();
      markUnset("rmsNormForward", { y: marked });
      check(marked);
      assert.equal(marked[0], array[0]);
      assert.throws(() => check(array), { message: /y\[1\] was written/ });
    });
  }
});
