import assert from "node:assert/strict";
import { isKernelArray, type KernelArguments, type KernelArray, outputFields } from "./kernels.ts";

// Elements of outputs that an op must leave alone are NaN, and so is much that an op might write there by mistake. These NaN are unlike
// those that computing leaves: a quiet bit that is 0 becomes 1 in every operation.

/** An array of real numbers as its bits, and what they are in an element that is marked. */
interface Bits {
  readonly words: Uint16Array | Uint32Array | BigUint64Array;
  readonly mark: number | bigint;
  holdsNaN(index: number): boolean;
}

/** Of 16 bits, by the op's type: the exponent of what is not a number, and a mark. */
const HALVES = {
  bfloat16: { exponent: 0x7f80, mark: 0x7fa1 },
  float16: { exponent: 0x7c00, mark: 0x7d12 },
} as const;

/** Nothing for arrays of other things than real numbers. */
function bitsOf(array: KernelArray, type: unknown): Bits | undefined {
  const { buffer, byteOffset, length } = array;
  const holdsNaN = (index: number): boolean => Number.isNaN(array[index]);
  if (array instanceof Float32Array)
    return { words: new Uint32Array(buffer, byteOffset, length), mark: 0x7fa12345, holdsNaN };
  if (array instanceof Float64Array)
    return { words: new BigUint64Array(buffer, byteOffset, length), mark: 0x7ff4123456789abcn, holdsNaN };
  if (!(array instanceof Uint16Array)) return undefined;
  const { exponent, mark } = HALVES[type === "float16" ? type : "bfloat16"];
  return { words: array, mark, holdsNaN: (index) => (array[index]! & 0x7fff) > exponent };
}

/** Marks every NaN of an op's outputs. */
export function markUnset(op: string, args: KernelArguments): void {
  for (const field of outputFields(op)) {
    const array = args[field];
    const bits = isKernelArray(array) ? bitsOf(array, args["type"]) : undefined;
    if (!bits) continue;
    for (const index of bits.words.keys()) if (bits.holdsNaN(index)) bits.words[index] = bits.mark;
  }
}

/** Throws unless each element of these fields that is expected to be NaN still is as markUnset() left it. */
export function assertUntouched(
  op: string,
  args: KernelArguments,
  expected: Readonly<Record<string, Float64Array>>,
  fields: readonly string[],
): void {
  for (const field of fields) {
    const bits = bitsOf(args[field] as KernelArray, args["type"]);
    if (!bits) continue;
    const index = expected[field]!.findIndex(
      (value, i) => Number.isNaN(value) && bits.words[i] !== bits.mark,
    );
    assert.ok(index < 0, `${op}: ${field}[${index}] was written with what is not a number`);
  }
}
