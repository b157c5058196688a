/**
 * The ops that stream arrays: norms, activations, the optimizer, sampling. Bytes are those of every array once.
 *
 *   npx tsx bench/rows.ts [--threads 2] [--backend cpu:avx2]
 */
import type { KernelArguments } from "../test/support/kernels.ts";
import { benchSettings, report, uniformArray } from "./support.ts";

const settings = benchSettings();
const floats = 4;

/** Times an op on a [rows, cols] activation that `arrays` arrays of that size go in and out of. */
function benchRows(op: string, rows: number, cols: number, arrays: number, args: KernelArguments): void {
  const bytes = floats * rows * cols * arrays;
  report(settings, `${rows}×${cols}`, op, { type: "float32", rows, cols, ...args }, { bytes });
}

console.log(`${settings.backend}, ${settings.threads} threads`);
for (const [rows, cols] of [
  [64, 64],
  [1024, 768],
  [1024, 4096],
] as const) {
  const activation = () => uniformArray(rows * cols);
  const statistics = { mean: uniformArray(rows), rstd: uniformArray(rows).fill(1) };
  const parameters = { weight: uniformArray(cols), bias: uniformArray(cols) };
  const gradients = { dWeight: uniformArray(cols), dBias: uniformArray(cols) };
  benchRows("layerNormForward", rows, cols, 2, {
    eps: 1e-5,
    x: activation(),
    y: activation(),
    ...parameters,
    ...statistics,
  });
  benchRows("layerNormBackward", rows, cols, 3, {
    x: activation(),
    dy: activation(),
    dx: activation(),
    weight: parameters.weight,
    ...statistics,
    ...gradients,
  });
  benchRows("rmsNormForward", rows, cols, 2, {
    eps: 1e-6,
    x: activation(),
    y: activation(),
    weight: parameters.weight,
    rstd: statistics.rstd,
  });
  benchRows("rmsNormBackward", rows, cols, 3, {
    x: activation(),
    dy: activation(),
    dx: activation(),
    weight: parameters.weight,
    rstd: statistics.rstd,
    dWeight: gradients.dWeight,
  });
  benchRows("gatedSiluForward", rows, cols, 3, {
    inputStride: cols,
    gate: activation(),
    up: activation(),
    y: activation(),
  });
}

for (const count of [4096, 1 << 24]) {
  const args = {
    type: "float32",
    count,
    step: 10,
    learningRate: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0.01,
    gradientScale: 1,
    gradient: uniformArray(count),
    parameter: uniformArray(count),
    m: uniformArray(count),
    v: uniformArray(count).map(Math.abs),
  };
  report(settings, `${count} parameters`, "adamW", args, { bytes: 7 * floats * count });
  const norm = { type: "float32", count, x: args.gradient, out: new Float64Array(1) };
  report(settings, `${count} elements`, "squaredNorm", norm, { bytes: floats * count });
}

for (const [label, topP] of [
  ["temperature 1", 1],
  ["temperature 1, top-p 0.9", 0.9],
] as const) {
  const rows = 8;
  const vocab = 50_257;
  const args = {
    type: "float32",
    rows,
    vocab,
    temperature: 1,
    topP,
    repetitionPenalty: 1,
    seed: 1n,
    streams: new BigInt64Array(rows),
    positions: new Int32Array(rows),
    logits: uniformArray(rows * vocab).map((x) => 12 * x ** 3),
    token: new Int32Array(rows),
    logProb: new Float32Array(rows),
  };
  report(settings, `${rows}×${vocab}, ${label}`, "sample", args, { bytes: floats * rows * vocab });
}
