import assert from "node:assert/strict";
import { relativeDistance } from "./compare.ts";
import { kernels } from "./kernels.ts";
import { type CaseArguments, evaluate, toKernelArguments } from "./op-arguments.ts";

/** The gradient of L = Σ upstream · output by an op's backward, on the oracle in float64, and how to check it. */
export interface GradientCase {
  readonly name: string;
  readonly forward: { readonly op: string; readonly args: CaseArguments };
  /** Upstream gradients by output; never uniform, since a uniform one can hide a wrong transposition. */
  readonly upstream: Readonly<Record<string, Float64Array>>;
  readonly backward: { readonly op: string; readonly args: CaseArguments };
  /** Differentiated input → the backward op's field for its gradient. */
  readonly gradients: Readonly<Record<string, string>>;
  /** Complex steps are exact where the op is smooth; central differences serve where it has kinks. */
  readonly method: "complex" | "central";
}

const COMPLEX_STEP = 1e-30;
const CENTRAL_STEP = 1e-5;
const TOLERANCE = { complex: 1e-10, central: 1e-6 } as const;

/** Σ upstream · output, NaN (what the op does not write) left out. */
function objective(
  upstream: GradientCase["upstream"],
  outputs: (field: string) => ArrayLike<number>,
  part: { stride: number; offset: number },
): number {
  let sum = 0;
  for (const [field, weights] of Object.entries(upstream)) {
    const values = outputs(field);
    for (let i = 0; i < weights.length; i++) {
      const value = values[i * part.stride + part.offset]!;
      if (!Number.isNaN(value) && !Number.isNaN(weights[i])) sum += weights[i]! * value;
    }
  }
  return sum;
}

/** dL/dinput, one evaluation of the forward op per element and step. */
function numericalGradient({ forward, upstream, method }: GradientCase, input: string): Float64Array {
  const complex = method === "complex";
  const args = toKernelArguments(forward.op, forward.args, complex ? "complex128" : "float64");
  const arrays = Object.entries(args).filter(
    (entry): entry is [string, Float64Array] => entry[1] instanceof Float64Array,
  );
  const initial = new Map(arrays.map(([name, array]) => [name, array.slice()]));
  const values = args[input] as Float64Array;
  const evaluateAt = (position: number, step: number): number => {
    for (const [name, array] of arrays) array.set(initial.get(name)!);
    values[position]! += step;
    kernels.run("ref", forward.op, args);
    const part = complex ? { stride: 2, offset: 1 } : { stride: 1, offset: 0 };
    return objective(upstream, (field) => args[field] as Float64Array, part);
  };
  return (forward.args[input] as Float64Array).map((value, i) => {
    if (Number.isNaN(value)) return Number.NaN;
    if (complex) return evaluateAt(2 * i + 1, COMPLEX_STEP) / COMPLEX_STEP;
    return (evaluateAt(i, CENTRAL_STEP) - evaluateAt(i, -CENTRAL_STEP)) / (2 * CENTRAL_STEP);
  });
}

/** Throws unless the backward op's gradients are those of numerical differentiation, and not 0 everywhere. */
export function checkGradient(gradientCase: GradientCase): void {
  const { backward, gradients, method } = gradientCase;
  const analytic = evaluate(backward.op, backward.args);
  for (const [input, field] of Object.entries(gradients)) {
    const numerical = numericalGradient(gradientCase, input);
    assert.ok(
      numerical.some((value) => Math.abs(value) > 1e-3),
      `the gradient of ${input} is 0 everywhere`,
    );
    const distance = relativeDistance(analytic[field]!, numerical);
    assert.ok(distance <= TOLERANCE[method], `${field}: relative distance ${distance.toExponential(2)}`);
  }
}

/** The mocha title of a case. */
export function gradientTitle({ name, gradients, method }: GradientCase): string {
  return `${name}: ${Object.keys(gradients).join(", ")} by ${method} differences`;
}
