/**
 * Matrix products: linear layers forward and backward, with the weight packed before and not, and the token log-probs of a
 * vocabulary. Shares are of the multiply-add peak, measured beside each line.
 *
 *   npx tsx bench/gemm.ts [--threads 2] [--backend cpu:avx2]
 */
import { type KernelArguments, kernels } from "../test/support/kernels.ts";
import { type BenchSettings, benchSettings, report, uniformArray } from "./support.ts";

interface Shape {
  readonly rows: number;
  readonly inputs: number;
  readonly outputs: number;
  readonly rank?: number;
}

/** Squares, the layers of GPT-2 small over 4 × 256 tokens, and steps of decoding. */
const SHAPES: readonly Shape[] = [
  { rows: 512, inputs: 512, outputs: 512 },
  { rows: 1024, inputs: 1024, outputs: 1024 },
  { rows: 1024, inputs: 768, outputs: 768 },
  { rows: 1024, inputs: 768, outputs: 2304, rank: 16 },
  { rows: 1024, inputs: 768, outputs: 3072 },
  { rows: 1024, inputs: 3072, outputs: 768 },
  { rows: 16, inputs: 768, outputs: 3072 },
  { rows: 1, inputs: 768, outputs: 3072 },
  { rows: 64, inputs: 64, outputs: 64 },
];

function pack(
  settings: BenchSettings,
  weight: Float32Array,
  inputs: number,
  outputs: number,
  backward: boolean,
): Float32Array {
  const bytes = kernels.packedWeightBytes(settings.backend, "float32", inputs, outputs, backward);
  const packed = new Float32Array(kernels.alignedBuffer(bytes), 0, bytes / 4);
  kernels.run(settings.backend, "packWeight", {
    type: "float32",
    inputs,
    outputs,
    transposed: false,
    backward,
    weight,
    packed,
  });
  return packed;
}

function loraArguments({ rows, inputs, outputs, rank = 0 }: Shape): KernelArguments {
  if (rank === 0) return {};
  return {
    rank,
    scale: 2,
    loraA: uniformArray(rank * inputs),
    loraB: uniformArray(outputs * rank),
    loraHidden: uniformArray(rows * rank),
  };
}

function benchLinear(settings: BenchSettings, shape: Shape): void {
  const { rows, inputs, outputs, rank = 0 } = shape;
  const label = `${rows}×${inputs}×${outputs}${rank > 0 ? `, rank ${rank}` : ""}`;
  const weight = uniformArray(outputs * inputs);
  const product = 2 * rows * inputs * outputs;
  const lowRank = 2 * rows * rank * (inputs + outputs);
  const shared: KernelArguments = {
    type: "float32",
    rows,
    inputs,
    outputs,
    xStride: inputs,
    x: uniformArray(rows * inputs),
    ...loraArguments(shape),
  };

  const forward = {
    ...shared,
    yStride: outputs,
    weightType: "float32",
    weight,
    y: uniformArray(rows * outputs),
  };
  const flops = product + lowRank;
  report(settings, label, "linearForward", forward, { flops });
  const packedForward = pack(settings, weight, inputs, outputs, false);
  report(settings, `${label}, packed`, "linearForward", { ...forward, packedForward }, { flops });

  const backward = {
    ...shared,
    dyStride: outputs,
    dxStride: inputs,
    weightType: "float32",
    weight,
    dy: uniformArray(rows * outputs),
    loraGradient: rank > 0 ? uniformArray(rows * rank) : null,
  };
  const dx = { ...backward, dx: uniformArray(rows * inputs) };
  report(settings, `${label}, dx`, "linearBackward", dx, { flops });
  const packedBackward = pack(settings, weight, inputs, outputs, true);
  report(settings, `${label}, dx, packed`, "linearBackward", { ...dx, packedBackward }, { flops });
  if (rank > 0) return;
  const dWeight = uniformArray(outputs * inputs);
  report(settings, `${label}, dW`, "linearBackward", { ...backward, dWeight }, { flops: product });
}

/** The head of GPT-2 small; one product forward, three backward (the logits again, dx and dW). */
function benchTokenLogProb(settings: BenchSettings): void {
  const rows = 512;
  const cols = 768;
  const vocab = 50_257;
  const shared = {
    type: "float32",
    weightType: "float32",
    rows,
    cols,
    vocab,
    count: rows - 1,
    temperature: 1,
    x: uniformArray(rows * cols),
    tokens: Int32Array.from({ length: rows }, (_, n) => (n * 97) % vocab),
    predictions: Int32Array.from({ length: rows - 1 }, (_, p) => p + 1),
    sources: Int32Array.from({ length: rows - 1 }, (_, p) => p),
    weight: uniformArray(vocab * cols),
    lse: uniformArray(rows),
    entropy: uniformArray(rows),
  };
  const product = 2 * (rows - 1) * cols * vocab;
  const label = `${rows - 1}×${cols}×${vocab}`;
  const forward = { ...shared, logProb: uniformArray(rows) };
  report(settings, label, "tokenLogProbForward", forward, { flops: product });
  const backward = { ...shared, dLogProb: uniformArray(rows), dx: uniformArray(rows * cols) };
  report(settings, `${label}, dx`, "tokenLogProbBackward", backward, { flops: 2 * product });
  const dWeight = uniformArray(vocab * cols);
  report(
    settings,
    `${label}, dx and dW`,
    "tokenLogProbBackward",
    { ...backward, dWeight },
    { flops: 3 * product },
  );
}

const settings = benchSettings();
console.log(`${settings.backend}, ${settings.threads} threads`);
for (const shape of SHAPES) benchLinear(settings, shape);
benchTokenLogProb(settings);
