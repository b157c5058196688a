import type { KernelArguments, KernelArray, KernelOptions, KernelType } from "./kernels.ts";
import { isKernelArray, kernels, runKernel } from "./kernels.ts";

/**
 * Arguments of an op as a case states them: every array of real numbers is a Float64Array, whatever type the op is run in.
 * NaN marks elements that the op must neither read nor write (the gaps between strided rows) or must overwrite (outputs).
 */
export type CaseArguments = Readonly<
  Record<string, number | boolean | Float64Array | Int32Array | Uint8Array | BigInt64Array>
>;

/** Arrays whose elements have accumulatorType(type): float32 where activations are 16 bits wide. */
const ACCUMULATOR_FIELDS: Readonly<Record<string, readonly string[]>> = {
  embeddingBackward: ["dTable", "dPositionTable"],
  rmsNormForward: ["rstd"],
  rmsNormBackward: ["rstd", "dWeight"],
  layerNormForward: ["mean", "rstd"],
  layerNormBackward: ["mean", "rstd", "dWeight", "dBias"],
  headNormForward: ["rstd"],
  headNormBackward: ["rstd", "dWeight"],
  rotary: ["cosine", "sine"],
  linearBackward: ["dWeight", "dBias", "dA", "dB"],
  attentionForward: ["lse"],
  attentionBackward: ["lse", "delta"],
  tokenLogProbForward: ["logProb", "lse", "entropy", "logits"],
  tokenLogProbBackward: ["lse", "entropy", "dLogProb", "dLse", "dEntropy", "logits", "dWeight"],
  klDivergenceForward: ["lse", "refLse", "logits", "kl"],
  klDivergenceBackward: ["lse", "refLse", "logits", "kl", "dKl", "dWeight"],
  tokenLossForwardBackward: [
    "mask",
    "tokenWeight",
    "sequenceWeight",
    "advantage",
    "tokenAdvantage",
    "oldLogProb",
    "refLogProb",
    "logProb",
    "lse",
    "entropy",
    "dLogProb",
    "dEntropy",
    "logits",
    "dWeight",
    "stats",
  ],
  whiten: ["mask", "x", "y"],
  klReward: ["mask", "logProb", "refLogProb", "score", "reward", "kl"],
  gae: ["mask", "reward", "value", "advantage", "returns"],
  ppoPolicyLoss: ["mask", "logProb", "oldLogProb", "advantage", "entropy", "dLogProb", "dEntropy", "stats"],
  groupPolicyLoss: [
    "mask",
    "weight",
    "advantage",
    "tokenAdvantage",
    "logProb",
    "oldLogProb",
    "refLogProb",
    "dLogProb",
    "stats",
  ],
  ppoValueLoss: ["mask", "value", "oldValue", "returns", "dValue", "stats"],
  tokenNllLoss: ["weight", "logProb", "dLogProb", "stats"],
  rewardLoss: ["value", "margin", "label", "score", "dValue", "stats"],
  sequenceSum: ["weight", "x", "sum"],
  sequenceSumBackward: ["weight", "dSum", "base", "dx"],
  wpoWeight: ["mask", "logProb", "lse", "lseHalf", "weight"],
  preferenceLoss: ["logProb", "refLogProb", "pairWeight", "base", "dLogProb", "stats"],
  ktoLoss: ["logProb", "refLogProb", "dLogProb", "stats"],
  adamW: ["gradient", "master", "m", "v"],
  narrow: ["x"],
  sample: ["logits", "logProb"],
};

/** Whether an array is an output that the arguments ask to keep as wide as its sums. */
export function isWideOutput(field: string, args: CaseArguments | KernelArguments): boolean {
  return field === "y" && args["wideOutput"] === true;
}

/** The type in which an array of an op is stored when the op runs in `type` with these arguments. */
export function storageType(
  op: string,
  field: string,
  type: KernelType,
  args: CaseArguments | KernelArguments,
): KernelType {
  const narrow = type === "float16" || type === "bfloat16";
  const wide = ACCUMULATOR_FIELDS[op]?.includes(field) || isWideOutput(field, args);
  return narrow && wide ? "float32" : type;
}

/** Real numbers in an element type; complex numbers are pairs with imaginary parts of 0. */
export function encode(values: Float64Array, type: KernelType): KernelArray {
  switch (type) {
    case "float32":
      return Float32Array.from(values);
    case "float64":
      return values.slice();
    case "complex128": {
      const pairs = new Float64Array(2 * values.length);
      for (const [index, value] of values.entries()) pairs[2 * index] = value;
      return pairs;
    }
    default:
      return kernels.toBits(Float32Array.from(values), type);
  }
}

/** The real numbers (the real parts) that an array of an element type holds. */
export function decode(array: KernelArray, type: KernelType): Float64Array {
  if (type === "complex128")
    return Float64Array.from({ length: array.length / 2 }, (_, i) => Number(array[2 * i]));
  if (array instanceof Uint16Array) return Float64Array.from(kernels.fromBits(array, type));
  return Float64Array.from(array, Number);
}

/** A case's arguments in the types that the op takes when it runs in `type`. Arrays given twice stay one array. */
export function toKernelArguments(
  op: string,
  args: CaseArguments,
  type: KernelType,
): Record<string, KernelArguments[string]> {
  const converted: Record<string, KernelArguments[string]> = { type };
  const seen = new Map<Float64Array, KernelArray>();
  const fixed = new Set(
    kernels
      .operatorFields(op)
      .filter((field) => field.element === "Float64Array")
      .map((field) => field.name),
  );
  for (const field of kernels.operatorFields(op))
    if (field.kind === "type" && field.name !== "type") converted[field.name] = type;
  for (const [name, value] of Object.entries(args)) {
    if (!(value instanceof Float64Array)) {
      converted[name] = ArrayBuffer.isView(value) ? value.slice() : value;
      continue;
    }
    const storage = fixed.has(name) ? "float64" : storageType(op, name, type, args);
    const array = seen.get(value) ?? encode(value, storage);
    seen.set(value, array);
    converted[name] = array;
  }
  return converted;
}

/** A case's arguments with every real number rounded to what `type` can hold, so that all backends start from the same inputs. */
export function roundArguments(op: string, args: CaseArguments, type: KernelType): CaseArguments {
  const rounded: Record<string, CaseArguments[string]> = {};
  const seen = new Map<Float64Array, Float64Array>();
  for (const [name, value] of Object.entries(args)) {
    if (!(value instanceof Float64Array)) {
      rounded[name] = value;
      continue;
    }
    const storage = storageType(op, name, type, args);
    const array = seen.get(value) ?? decode(encode(value, storage), storage);
    seen.set(value, array);
    rounded[name] = array;
  }
  return rounded;
}

/** The output arrays of converted arguments as real numbers, by field; integer outputs included. */
export function decodeOutputs(
  op: string,
  args: KernelArguments,
  type: KernelType,
): Record<string, Float64Array> {
  const outputs: Record<string, Float64Array> = {};
  for (const field of kernels.operatorFields(op)) {
    const value = args[field.name];
    if (field.kind !== "output" || !isKernelArray(value)) continue;
    const storage = field.element === "Float64Array" ? "float64" : storageType(op, field.name, type, args);
    outputs[field.name] = value instanceof Int32Array ? Float64Array.from(value) : decode(value, storage);
  }
  return outputs;
}

/**
 * Runs an op in `type` and returns the outputs; the case's own arrays stay as they are. On the oracle this is the reference;
 * other backends run between guards.
 */
export function evaluate(
  op: string,
  args: CaseArguments,
  type: KernelType = "float64",
  backend = "ref",
  options: KernelOptions = {},
): Record<string, Float64Array> {
  const converted = toKernelArguments(op, args, type);
  if (backend === "ref") kernels.run(backend, op, converted);
  else runKernel(backend, op, converted, options);
  return decodeOutputs(op, converted, type);
}
