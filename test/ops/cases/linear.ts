import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, type OpCase, product, unset } from "./case.ts";

/** Numbers of `enum class Activation`. */
export const ACTIVATION = { none: 0, geluTanh: 1, geluErf: 2, tanh: 3, relu: 4, silu: 5 } as const;

interface LinearShape {
  rows: number;
  inputs: number;
  outputs: number;
  /** Elements between the rows of x, y, dy and dx beyond what a row holds. */
  gap?: number;
  transposed?: boolean;
  rank?: number;
  /** Whether the adapter reads an input of its own, as after dropout. */
  loraInput?: boolean;
}

interface LinearForwardOptions extends LinearShape {
  bias?: boolean;
  activation?: number;
  residual?: "separate" | "inPlace";
  preActivation?: boolean;
  wideOutput?: boolean;
}

interface LinearBackwardOptions extends LinearShape {
  dx?: "write" | "accumulate";
  dLoraInput?: boolean;
  dWeight?: boolean;
  dBias?: boolean;
  dLora?: boolean;
}

function loraArguments(data: CaseData, shape: LinearShape): Record<string, CaseArguments[string]> {
  const { inputs, outputs, rank = 0 } = shape;
  if (rank === 0) return {};
  return {
    rank,
    scale: 1.7,
    loraA: data.normal(rank * inputs, 1 / Math.sqrt(inputs)),
    loraB: data.normal(outputs * rank, 0.5),
    ...(shape.loraInput && { loraInput: data.normal(shape.rows * inputs) }),
  };
}

/** Arguments of linearForward, drawn from `data`. */
export function linearForwardArguments(data: CaseData, options: LinearForwardOptions): CaseArguments {
  const { rows, inputs, outputs, gap = 0, rank = 0, activation = ACTIVATION.none } = options;
  const xStride = inputs + gap;
  const yStride = outputs + gap;
  const y = options.residual === "inPlace" ? data.matrix(rows, outputs, yStride) : unset(rows * yStride);
  return {
    rows,
    inputs,
    outputs,
    xStride,
    yStride,
    activation,
    transposed: options.transposed ?? false,
    x: data.matrix(rows, inputs, xStride),
    weight: data.normal(inputs * outputs, 1 / Math.sqrt(inputs)),
    ...(options.bias && { bias: data.normal(outputs) }),
    ...loraArguments(data, options),
    ...(rank > 0 && { loraHidden: unset(rows * rank) }),
    ...(options.residual && {
      residual: options.residual === "inPlace" ? y : data.matrix(rows, outputs, yStride),
    }),
    ...(options.preActivation && { preActivation: unset(rows * yStride) }),
    ...(options.wideOutput && { wideOutput: true }),
    y,
  };
}

/** Arguments of linearBackward, drawn from `data`; accumulated gradients start from random numbers. */
export function linearBackwardArguments(data: CaseData, options: LinearBackwardOptions): CaseArguments {
  const { rows, inputs, outputs, gap = 0, rank = 0 } = options;
  const stride = inputs + gap;
  const dx = options.dx === "accumulate" ? data.matrix(rows, inputs, stride) : unset(rows * stride);
  return {
    rows,
    inputs,
    outputs,
    xStride: stride,
    dyStride: outputs + gap,
    dxStride: stride,
    accumulateDx: options.dx === "accumulate",
    transposed: options.transposed ?? false,
    x: data.matrix(rows, inputs, stride),
    dy: data.matrix(rows, outputs, outputs + gap),
    weight: data.normal(inputs * outputs, 1 / Math.sqrt(inputs)),
    ...loraArguments(data, options),
    ...(rank > 0 && { loraHidden: data.normal(rows * rank), loraGradient: unset(rows * rank) }),
    ...(options.dx && { dx }),
    ...(options.dLoraInput && { dLoraInput: unset(rows * inputs) }),
    ...(options.dWeight && { dWeight: data.normal(inputs * outputs) }),
    ...(options.dBias && { dBias: data.normal(outputs) }),
    ...(options.dLora && { dA: data.normal(rank * inputs), dB: data.normal(outputs * rank) }),
  };
}

/** A case of linearForward whose data follow from its name. */
export function forwardCase(name: string, options: LinearForwardOptions): OpCase {
  const args = linearForwardArguments(new CaseData(`linearForward ${name}`), options);
  return { op: "linearForward", name, args, criterion: product(options.inputs + (options.rank ?? 0) + 2) };
}

/** A case of linearBackward whose data follow from its name. */
export function backwardCase(name: string, options: LinearBackwardOptions): OpCase {
  const args = linearBackwardArguments(new CaseData(`linearBackward ${name}`), options);
  const terms = options.rows + options.outputs + (options.rank ?? 0);
  return { op: "linearBackward", name, args, criterion: product(terms) };
}

/** Rows and columns as Hopper's kernel takes them (csrc/cuda/hopper), around the edges of its tiles and of its ring. */
export const hopperCases: readonly OpCase[] = [
  forwardCase("70×72×132, as wide as its sums, in packs", {
    ...{ rows: 70, inputs: 72, outputs: 132, bias: true, wideOutput: true },
  }),
  forwardCase("1×64×64, one row", { rows: 1, inputs: 64, outputs: 64 }),
  forwardCase("130×72×264, beyond one block each way, geluTanh", {
    ...{ rows: 130, inputs: 72, outputs: 264, gap: 8, bias: true, residual: "separate", preActivation: true },
    activation: ACTIVATION.geluTanh,
  }),
  forwardCase("20×520×200 transposed, beyond the ring of six stages", {
    ...{ rows: 20, inputs: 520, outputs: 200, transposed: true, bias: true, activation: ACTIVATION.silu },
  }),
  forwardCase("140×392×68, beyond the ring of four stages", { rows: 140, inputs: 392, outputs: 68 }),
  forwardCase("70×136×132 with LoRA, residual in place", {
    ...{ rows: 70, inputs: 136, outputs: 132, rank: 8, bias: true, residual: "inPlace" },
  }),
  forwardCase("140×64×72 transposed, with LoRA on an input of its own", {
    ...{ rows: 140, inputs: 64, outputs: 72, transposed: true, rank: 16, loraInput: true },
  }),
  forwardCase("33×40×72 with LoRA of rank 72", { rows: 33, inputs: 40, outputs: 72, rank: 72 }),
  backwardCase("130×264×72", {
    rows: 130,
    inputs: 264,
    outputs: 72,
    dx: "write",
    dWeight: true,
    dBias: true,
  }),
  backwardCase("72×136×200 transposed, strided, dx accumulated", {
    ...{ rows: 72, inputs: 136, outputs: 200, gap: 8, transposed: true, dx: "accumulate", dWeight: true },
  }),
  backwardCase("70×136×128 with LoRA", {
    ...{ rows: 70, inputs: 136, outputs: 128, rank: 8, dx: "write", dWeight: true, dLora: true },
  }),
  backwardCase("9×64×600 transposed, through a frozen adapter", {
    ...{ rows: 9, inputs: 64, outputs: 600, transposed: true, rank: 8, dx: "write" },
  }),
];

/**
 * Products that CUDA takes in its wide tiles, 128 × 256, on an emulated device of two multiprocessors, and in its thin ones, 64 × 32; with
 * rows, columns and sums that end inside a tile, beyond the ring of four stages, aligned and not.
 */
export const tileCases: readonly OpCase[] = [
  forwardCase("130×200×252 in wide tiles, strided, geluTanh", {
    ...{
      rows: 130,
      inputs: 200,
      outputs: 252,
      gap: 8,
      bias: true,
      residual: "separate",
      preActivation: true,
    },
    activation: ACTIVATION.geluTanh,
  }),
  forwardCase("257×45×203 in wide tiles with LoRA, odd sizes", {
    ...{ rows: 257, inputs: 45, outputs: 203, rank: 37, bias: true, residual: "inPlace" },
  }),
  forwardCase("129×72×136 transposed, in wide tiles with LoRA", {
    ...{ rows: 129, inputs: 72, outputs: 136, transposed: true, rank: 16 },
  }),
  forwardCase("256×96×256, whole wide tiles, as wide as its sums", {
    ...{ rows: 256, inputs: 96, outputs: 256, wideOutput: true },
  }),
  forwardCase("129×33×20 transposed, in thin tiles", {
    ...{ rows: 129, inputs: 33, outputs: 20, gap: 3, transposed: true, bias: true },
  }),
  forwardCase("31×16×127 strided by 128, one row and one column short of a warp's", {
    ...{ rows: 31, inputs: 16, outputs: 127, gap: 1 },
  }),
  forwardCase("128×328×32, whole thin tiles", { rows: 128, inputs: 328, outputs: 32 }),
  backwardCase("130×200×136 in wide tiles", {
    ...{ rows: 130, inputs: 200, outputs: 136, gap: 8, dx: "write", dWeight: true },
  }),
  backwardCase("131×137×203 transposed, in wide tiles with LoRA, odd sizes, dx accumulated", {
    ...{
      rows: 131,
      inputs: 137,
      outputs: 203,
      transposed: true,
      rank: 5,
      dx: "accumulate",
      dWeight: true,
      dLora: true,
    },
  }),
  backwardCase("40×256×256 transposed with LoRA, dWeight in whole wide tiles", {
    ...{ rows: 40, inputs: 256, outputs: 256, transposed: true, rank: 8, dx: "write", dWeight: true },
  }),
];

export const linearCases: readonly OpCase[] = [
  forwardCase("1×1×1", { rows: 1, inputs: 1, outputs: 1 }),
  forwardCase("2×7×3 with bias", { rows: 2, inputs: 7, outputs: 3, bias: true }),
  forwardCase("1×65×129, one row", { rows: 1, inputs: 65, outputs: 129, bias: true }),
  forwardCase("7×33×65 transposed, strided", {
    rows: 7,
    inputs: 33,
    outputs: 65,
    gap: 3,
    transposed: true,
    bias: true,
  }),
  // Rows that could be read as packs up to their end, one number short of a tile or of a pack.
  forwardCase("128×63×128, strided by 64", { rows: 128, inputs: 63, outputs: 128, gap: 1 }),
  forwardCase("5×63×128 transposed, strided by 64", {
    rows: 5,
    inputs: 63,
    outputs: 128,
    gap: 1,
    transposed: true,
  }),
  forwardCase("9×39×48, strided by 40", { rows: 9, inputs: 39, outputs: 48, gap: 1 }),
  forwardCase("150×70×45, rows enough not to be packed", {
    rows: 150,
    inputs: 70,
    outputs: 45,
    gap: 3,
    bias: true,
  }),
  forwardCase("131×40×64 transposed, no operand packed", {
    rows: 131,
    inputs: 40,
    outputs: 64,
    transposed: true,
    residual: "separate",
  }),
  forwardCase("130×1024×7, rows in few sets of the cache", { rows: 130, inputs: 1024, outputs: 7 }),
  forwardCase("33×65×129 with LoRA of rank 1", { rows: 33, inputs: 65, outputs: 129, rank: 1 }),
  forwardCase("65×129×33 with LoRA, bias, residual", {
    rows: 65,
    inputs: 129,
    outputs: 33,
    rank: 8,
    bias: true,
    residual: "separate",
    gap: 1,
  }),
  forwardCase("33×64×48 transposed with LoRA, residual in place", {
    rows: 33,
    inputs: 64,
    outputs: 48,
    rank: 5,
    bias: true,
    residual: "inPlace",
    transposed: true,
  }),
  forwardCase("130×300×260, beyond one block each way", { rows: 130, inputs: 300, outputs: 260, bias: true }),
  forwardCase("5×1030×17, a long sum", { rows: 5, inputs: 1030, outputs: 17 }),
  forwardCase("33×70×1, as wide as its sums", {
    rows: 33,
    inputs: 70,
    outputs: 1,
    bias: true,
    wideOutput: true,
  }),
  forwardCase("7×33×130 strided, as wide as its sums", {
    rows: 7,
    inputs: 33,
    outputs: 130,
    gap: 3,
    activation: ACTIVATION.tanh,
    wideOutput: true,
  }),
  ...Object.entries(ACTIVATION).map(([name, activation]) =>
    forwardCase(`9×31×50 with ${name} and preActivation`, {
      rows: 9,
      inputs: 31,
      outputs: 50,
      activation,
      bias: true,
      preActivation: true,
      gap: 2,
    }),
  ),
  forwardCase("9×31×50 with geluTanh, LoRA and residual", {
    rows: 9,
    inputs: 31,
    outputs: 50,
    activation: ACTIVATION.geluTanh,
    rank: 3,
    residual: "separate",
    preActivation: true,
  }),
  forwardCase("33×65×50 strided, with LoRA on an input of its own", {
    rows: 33,
    inputs: 65,
    outputs: 50,
    gap: 3,
    rank: 3,
    bias: true,
    loraInput: true,
  }),
  forwardCase("9×64×48 transposed, with LoRA on an input of its own, geluTanh", {
    rows: 9,
    inputs: 64,
    outputs: 48,
    transposed: true,
    rank: 8,
    activation: ACTIVATION.geluTanh,
    preActivation: true,
    loraInput: true,
  }),
  backwardCase("150×45×70, odd sizes read as they lie", {
    rows: 150,
    inputs: 45,
    outputs: 70,
    gap: 5,
    dx: "accumulate",
    dWeight: true,
  }),
  backwardCase("290×64×32, whole vectors read as they lie", {
    rows: 290,
    inputs: 64,
    outputs: 32,
    dx: "write",
    dWeight: true,
  }),
  backwardCase("140×48×80 transposed, the adapter's products read as they lie", {
    rows: 140,
    inputs: 48,
    outputs: 80,
    transposed: true,
    rank: 3,
    dx: "write",
    dWeight: true,
    dLora: true,
  }),
  backwardCase("1×1×1", { rows: 1, inputs: 1, outputs: 1, dx: "write", dWeight: true, dBias: true }),
  backwardCase("2×7×3", { rows: 2, inputs: 7, outputs: 3, dx: "write", dWeight: true, dBias: true }),
  backwardCase("7×33×65 strided, dx accumulated", {
    rows: 7,
    inputs: 33,
    outputs: 65,
    gap: 3,
    dx: "accumulate",
    dWeight: true,
    dBias: true,
  }),
  backwardCase("33×65×129 transposed", {
    rows: 33,
    inputs: 65,
    outputs: 129,
    transposed: true,
    dx: "write",
    dWeight: true,
  }),
  backwardCase("65×129×33 with LoRA, base frozen", {
    rows: 65,
    inputs: 129,
    outputs: 33,
    rank: 8,
    dx: "write",
    dLora: true,
  }),
  backwardCase("33×64×48 transposed with LoRA, everything", {
    rows: 33,
    inputs: 64,
    outputs: 48,
    rank: 3,
    gap: 2,
    transposed: true,
    dx: "accumulate",
    dWeight: true,
    dBias: true,
    dLora: true,
  }),
  backwardCase("9×20×30, LoRA gradients alone", { rows: 9, inputs: 20, outputs: 30, rank: 4, dLora: true }),
  backwardCase("9×20×30, dx through a frozen adapter", {
    rows: 9,
    inputs: 20,
    outputs: 30,
    rank: 4,
    dx: "write",
  }),
  backwardCase("33×65×50 strided, LoRA on an input of its own, everything", {
    rows: 33,
    inputs: 65,
    outputs: 50,
    gap: 3,
    rank: 3,
    loraInput: true,
    dx: "accumulate",
    dLoraInput: true,
    dWeight: true,
    dBias: true,
    dLora: true,
  }),
  backwardCase("9×20×30, LoRA on an input of its own, its gradients alone", {
    rows: 9,
    inputs: 20,
    outputs: 30,
    rank: 4,
    loraInput: true,
    dLora: true,
  }),
  backwardCase("9×20×30 transposed, through a frozen adapter to an input of its own", {
    rows: 9,
    inputs: 20,
    outputs: 30,
    transposed: true,
    rank: 4,
    loraInput: true,
    dx: "write",
    dLoraInput: true,
  }),
  backwardCase("65×3×5, one row more than CUDA adds up at once", {
    rows: 65,
    inputs: 3,
    outputs: 5,
    dBias: true,
  }),
  backwardCase("9×20×30, dWeight alone", { rows: 9, inputs: 20, outputs: 30, dWeight: true }),
  backwardCase("130×260×300, beyond one block each way", {
    rows: 130,
    inputs: 260,
    outputs: 300,
    dx: "write",
    dWeight: true,
    dBias: true,
  }),
  ...hopperCases,
  ...tileCases,
];
