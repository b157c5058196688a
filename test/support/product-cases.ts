import assert from "node:assert/strict";
import { CaseData } from "../ops/cases/case.ts";
import {
  type KlDivergenceShape,
  klDivergenceBackwardArguments,
  klDivergenceForwardArguments,
} from "../ops/cases/kl-divergence.ts";
import { linearBackwardArguments, linearForwardArguments } from "../ops/cases/linear.ts";
import { type TokenLossShape, tokenLossArguments } from "../ops/cases/token-loss.ts";
import { type KernelArguments, kernels, runKernel } from "./kernels.ts";
import { type CaseArguments, decodeOutputs, encode, toKernelArguments } from "./op-arguments.ts";

/* Ops that are matrix products, by what their products are computed in, beside the oracle on the same numbers. */

export type ProductCompute = "float32" | "bfloat16" | "bfloat16x3";

export interface ProductCase {
  readonly op:
    | `linear${"Forward" | "Backward"}`
    | `tokenLogProb${"Forward" | "Backward"}`
    | `klDivergence${"Forward" | "Backward"}`
    | "tokenLossForwardBackward";
  readonly name: string;
  readonly args: CaseArguments;
}

export function forward(name: string, options: Parameters<typeof linearForwardArguments>[1]): ProductCase {
  const args = linearForwardArguments(new CaseData(`product ${name}`), options);
  return { op: "linearForward", name, args };
}

export function backward(name: string, options: Parameters<typeof linearBackwardArguments>[1]): ProductCase {
  const args = linearBackwardArguments(new CaseData(`product ${name}`), options);
  return { op: "linearBackward", name, args };
}

/** Statistics of `count` of the tokens, each predicted from the hidden row before it. */
export function statistics(rows: number, cols: number, vocab: number, count: number): ProductCase[] {
  const name = `${rows} rows of ${cols}, ${count} predictions, vocabulary of ${vocab}`;
  const data = new CaseData(`statistics ${name}`);
  const predictions = data.subset(rows - 1, count).map((t) => t + 1);
  const shared = {
    ...{ rows, cols, vocab, count, temperature: 0.8 },
    x: data.matrix(rows, cols),
    tokens: data.integers(rows, vocab),
    predictions,
    sources: predictions.map((t) => t - 1),
    weight: data.normal(vocab * cols, 1 / Math.sqrt(cols)),
  };
  const outputs = {
    logProb: new Float64Array(rows),
    lse: new Float64Array(rows),
    entropy: new Float64Array(rows),
  };
  const first: ProductCase = { op: "tokenLogProbForward", name, args: { ...shared, ...outputs } };
  const measured = run({ ...first, compute: "bfloat16" }, "ref", "float64");
  const args = {
    ...shared,
    lse: measured["lse"]!,
    entropy: measured["entropy"]!,
    dLogProb: data.normal(rows),
    dLse: data.normal(rows),
    dEntropy: data.normal(rows),
    dx: data.normal(rows * cols),
    dWeight: data.normal(vocab * cols),
  };
  return [first, { op: "tokenLogProbBackward", name, args }];
}

export function tokenLoss(shape: TokenLossShape): ProductCase {
  const name = `${shape.kind}, ${shape.count} predictions, vocabulary of ${shape.vocab}`;
  const args = tokenLossArguments(new CaseData(`loss ${name}`), shape);
  return { op: "tokenLossForwardBackward", name, args };
}

export function divergence(
  direction: "forward" | "reverse",
  shape: Omit<KlDivergenceShape, "direction">,
): ProductCase[] {
  const name = `${direction}, ${shape.rows} rows, vocabulary of ${shape.vocab}`;
  const data = new CaseData(`divergence ${name}`);
  const args = klDivergenceForwardArguments(data, { ...shape, direction });
  return [
    { op: "klDivergenceForward", name, args },
    { op: "klDivergenceBackward", name, args: klDivergenceBackwardArguments(data, args, { dWeight: true }) },
  ];
}

/** A case whose products are computed in a type; "bfloat16" inputs are numbers that bfloat16 holds, others those that float32 does. */
export interface ComputedCase extends ProductCase {
  readonly compute: ProductCompute;
  readonly inputs?: ProductCompute;
}

/**
 * Inputs that both sides round or split the same way; what is computed between two products may differ. Those of bfloat16x3 have
 * something left to split.
 */
function exactInputs({ args, compute, inputs = compute }: ComputedCase): CaseArguments {
  const round = (values: Float64Array): Float64Array => {
    const single = Float32Array.from(values);
    return Float64Array.from(
      inputs === "bfloat16" ? kernels.fromBits(kernels.toBits(single, "bfloat16"), "bfloat16") : single,
    );
  };
  const seen = new Map<unknown, Float64Array>();
  const entries = Object.entries(args).map(([name, value]) => {
    if (!(value instanceof Float64Array)) return [name, value] as const;
    if (!seen.has(value)) seen.set(value, round(value));
    return [name, seen.get(value)!] as const;
  });
  return Object.fromEntries(entries);
}

function argumentsOf(each: ComputedCase, type: "float32" | "float64"): KernelArguments {
  const { op, compute } = each;
  const reference: KernelArguments = op.startsWith("kl") ? { refCompute: compute } : {};
  return { ...toKernelArguments(op, exactInputs(each), type), type, compute, ...reference };
}

export function run(
  each: ComputedCase,
  backend: string,
  type: "float32" | "float64",
  forms: KernelArguments = {},
) {
  const args = { ...argumentsOf(each, type), ...forms };
  if (backend === "ref") kernels.run(backend, each.op, args);
  else runKernel(backend, each.op, args);
  return decodeOutputs(each.op, args, type);
}

/** The packed forms of a case's weight, kept in float32 or in bfloat16. */
export function packedForms(
  each: ComputedCase,
  backend: string,
  type: "float32" | "bfloat16",
): KernelArguments {
  const { op, args, compute } = each;
  const inputs = Number(args["inputs"] ?? args["cols"]);
  const outputs = Number(args["outputs"] ?? args["vocab"]);
  const weight = encode(exactInputs(each)["weight"] as Float64Array, type);
  const pack = (back: boolean): Uint8Array => {
    const bytes = kernels.packedWeightBytes(backend, type, compute, inputs, outputs, back);
    const packed = new Uint8Array(kernels.alignedBuffer(bytes));
    const transposed = args["transposed"] === true;
    const sizes = { type, compute, inputs, outputs, transposed, backward: back };
    runKernel(backend, "packWeight", { ...sizes, weight, packed });
    return packed;
  };
  const fields = kernels.operatorFields(op).map((field) => field.name);
  return {
    ...(fields.includes("packedForward") && { packedForward: pack(false) }),
    ...(fields.includes("packedBackward") && { packedBackward: pack(true) }),
  };
}

/** Per array: the largest error is within `share` of the largest number. */
export function assertNear(
  actual: Record<string, Float64Array>,
  expected: Record<string, Float64Array>,
  share: number,
): void {
  for (const [field, wanted] of Object.entries(expected)) {
    if (field === "logits") continue; // work of the ops that have it here
    const scale = wanted.reduce(
      (most, value) => Math.max(most, Number.isNaN(value) ? 0 : Math.abs(value)),
      1e-3,
    );
    wanted.forEach((value, index) => {
      const got = actual[field]![index]!;
      if (Number.isNaN(value)) {
        assert.ok(Number.isNaN(got), `${field}[${index}] was written: ${got}`);
        return;
      }
      const error = Math.abs(got - value) / scale;
      assert.ok(
        error <= share,
        `${field}[${index}] is ${got}, expected ${value}: ${error.toExponential(2)} of ${scale}`,
      );
    });
  }
}
