import assert from "node:assert/strict";
import type { OpCase } from "../ops/cases/case.ts";
import type { KernelType } from "./kernels.ts";
import {
  type CaseArguments,
  decode,
  encode,
  evaluate,
  isWideOutput,
  roundArguments,
  storageType,
} from "./op-arguments.ts";

export type Outputs = Readonly<Record<string, Float64Array>>;

/** Distance from 1 to the next number. */
const EPSILON: Readonly<Record<KernelType, number>> = {
  float32: 2 ** -23,
  float64: 2 ** -52,
  complex128: 2 ** -52,
  float16: 2 ** -10,
  bfloat16: 2 ** -7,
};

/** Arrays that an op may leave anything in. */
const WORK_FIELDS: Readonly<Record<string, readonly string[]>> = {
  linearBackward: ["loraGradient"],
  attentionBackward: ["delta"],
  tokenLogProbBackward: ["logits"],
  tokenLossForwardBackward: ["logits"],
};

/** Largest magnitude, elements that are not numbers left out. */
export function largest(values: Iterable<number>): number {
  let result = 0;
  for (const value of values) if (Math.abs(value) > result) result = Math.abs(value);
  return result;
}

/** What the oracle says about a case whose inputs are rounded to `type`, computed once for all backends. */
export class Expectation {
  readonly args: CaseArguments;
  readonly values: Outputs;
  readonly #case: OpCase;
  readonly #type: KernelType;
  #narrow: Outputs | undefined;
  #magnitudes: Outputs | undefined;

  constructor(opCase: OpCase, type: KernelType) {
    this.#case = opCase;
    this.#type = type;
    this.args = roundArguments(opCase.op, opCase.args, type);
    this.values = evaluate(opCase.op, this.args);
  }

  /** The fields that are compared. */
  fields(): string[] {
    const ignored = WORK_FIELDS[this.#case.op] ?? [];
    return Object.keys(this.values).filter((field) => !ignored.includes(field));
  }

  /** Throws unless every output meets the case's criterion; the message names the worst element. */
  verify(actual: Outputs, label: string): void {
    for (const field of this.fields()) this.#verifyField(field, actual[field]!, `${label}: ${field}`);
  }

  #verifyField(field: string, actual: Float64Array, label: string): void {
    const expected = this.#target(field);
    assert.equal(actual.length, expected.length, label);
    const tolerance = this.#tolerance(field);
    let worst = { excess: 0, index: -1 };
    for (let i = 0; i < expected.length; i++) {
      if (Object.is(actual[i], expected[i]) || actual[i] === expected[i]) continue;
      const excess = Math.abs(actual[i]! - expected[i]!) / tolerance(i);
      if (!(excess <= 1) && !(excess <= worst.excess)) worst = { excess, index: i };
    }
    if (worst.index < 0) return;
    const i = worst.index;
    assert.fail(
      `${label}[${i}] is ${actual[i]}, expected ${expected[i]} ± ${tolerance(i).toExponential(2)} ` +
        `(${worst.excess.toFixed(2)} times the tolerance)`,
    );
  }

  /** The values to meet: those of the float64 oracle, or where bits must be equal those of the type itself. */
  #target(field: string): Float64Array {
    const values = this.values[field]!;
    if (this.#case.criterion.kind !== "exact" || this.args[field] instanceof Int32Array) return values;
    const storage = storageType(this.#case.op, field, this.#type, this.args);
    return storage === "float32" ? this.#float32()[field]! : decode(encode(values, storage), storage);
  }

  /** The tolerance of each element of a field. */
  #tolerance(field: string): (index: number) => number {
    const expected = this.values[field]!;
    const { criterion, op } = this.#case;
    const storage = storageType(op, field, this.#type, this.args);
    const halfUlp = EPSILON[storage] / 2;
    // Rounding the output, and in 16 bits also what an op hands from one of its products to the next.
    const unrounded = this.#type === "float32" || isWideOutput(field, this.args);
    const rounding = storage === "float32" && unrounded ? 0 : EPSILON[this.#type];
    if (this.args[field] instanceof Int32Array) return () => 0;
    switch (criterion.kind) {
      case "exact":
        return () => 0;
      case "relative":
        return (i) => criterion.bound * Math.abs(expected[i]!);
      case "product": {
        const magnitude = this.#absolute()[field]!;
        const relative = 4 * Math.sqrt(criterion.terms) * EPSILON.float32;
        return (i) => (relative + rounding) * magnitude[i]! + halfUlp * Math.abs(expected[i]!);
      }
      case "general": {
        const scale = largest(expected) + criterion.floor;
        const narrow = this.#float32()[field]!;
        const reference = largest(expected.map((value, i) => narrow[i]! - value));
        return () => 2 * reference + (4 * EPSILON.float32 + rounding) * scale;
      }
    }
  }

  /** The float32 oracle: an implementation of the same type without any cleverness. */
  #float32(): Outputs {
    this.#narrow ??= evaluate(this.#case.op, this.args, "float32");
    return this.#narrow;
  }

  /** The op on absolute values: the sums of magnitudes that bound the rounding of sums of products. */
  #absolute(): Outputs {
    if (!this.#magnitudes) {
      const args: Record<string, CaseArguments[string]> = { ...this.args };
      const seen = new Map<Float64Array, Float64Array>();
      for (const [name, value] of Object.entries(args)) {
        if (!(value instanceof Float64Array)) continue;
        if (!seen.has(value)) seen.set(value, value.map(Math.abs));
        args[name] = seen.get(value)!;
      }
      if ("activation" in args) args["activation"] = 0;
      this.#magnitudes = evaluate(this.#case.op, args);
    }
    return this.#magnitudes;
  }
}

/** ‖a − b‖ / max(‖a‖, ‖b‖); the absolute difference where both are 0. NaN marks elements to leave out. */
export function relativeDistance(a: Float64Array, b: Float64Array): number {
  let difference = 0;
  let normA = 0;
  let normB = 0;
  for (let i = 0; i < a.length; i++) {
    if (Number.isNaN(a[i]) && Number.isNaN(b[i])) continue;
    difference += (a[i]! - b[i]!) ** 2;
    normA += a[i]! ** 2;
    normB += b[i]! ** 2;
  }
  const norm = Math.sqrt(Math.max(normA, normB));
  return norm === 0 ? Math.sqrt(difference) : Math.sqrt(difference) / norm;
}
