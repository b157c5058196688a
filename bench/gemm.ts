/**
 * Matrix products: linear layers forward and backward, with the weight packed before and not, and the ops over a vocabulary: token
 * log-probs and divergences. Shares are of the multiply-add peak, measured beside each line.
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
  const bytes = kernels.packedWeightBytes(settings.backend, "float32", "float32", inputs, outputs, backward);
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

/** The head of GPT-2 small, applied to all rows but the last. */
const HEAD = { rows: 512, cols: 768, vocab: 50_257 } as const;

function headArguments() {
  const { rows, cols, vocab } = HEAD;
  return {
    ...HEAD,
    type: "float32",
    weightType: "float32",
    count: rows - 1,
    temperature: 1,
    x: uniformArray(rows * cols),
    predictions: Int32Array.from({ length: rows - 1 }, (_, p) => p + 1),
    sources: Int32Array.from({ length: rows - 1 }, (_, p) => p),
    weight: uniformArray(vocab * cols),
    lse: uniformArray(rows),
  };
}

const headProduct = 2 * (HEAD.rows - 1) * HEAD.cols * HEAD.vocab;
const headLabel = `${HEAD.rows - 1}×${HEAD.cols}×${HEAD.vocab}`;

/** One product forward, three backward (the logits again, dx and dW). */
function benchTokenLogProb(settings: BenchSettings): void {
  const { rows, cols, vocab } = HEAD;
  const shared = {
    ...headArguments(),
    tokens: Int32Array.from({ length: rows }, (_, n) => (n * 97) % vocab),
    entropy: uniformArray(rows),
  };
  const [product, label] = [headProduct, headLabel];
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

/** Two products forward (the policy's logits and the reference's), four backward; heads packed as a frozen model's are. */
function benchKlDivergence(settings: BenchSettings): void {
  const { rows, cols, vocab } = HEAD;
  const shared = headArguments();
  const refWeight = uniformArray(vocab * cols);
  const packed = {
    packedForward: pack(settings, shared.weight, cols, vocab, false),
    refPackedForward: pack(settings, refWeight, cols, vocab, false),
  };
  // With these lse the probabilities are neither all 0 nor infinite, which would be quicker to work with.
  const both = { ...shared, refCols: cols, refX: uniformArray(rows * cols), refWeight };
  const lse = new Float32Array(rows).fill(120);
  const divergence = { ...both, refWeightType: "float32", lse, refLse: lse, kl: uniformArray(rows) };
  const backward = { ...divergence, dKl: uniformArray(rows), dx: uniformArray(rows * cols) };
  const packedBackward = pack(settings, shared.weight, cols, vocab, true);
  for (const [direction, name] of ["reverse", "forward"].entries()) {
    const label = `${headLabel}, ${name}`;
    const two = { flops: 2 * headProduct };
    report(settings, label, "klDivergenceForward", { ...divergence, direction }, two);
    report(settings, `${label}, packed`, "klDivergenceForward", { ...divergence, ...packed, direction }, two);
    const three = { flops: 3 * headProduct };
    report(settings, `${label}, dx`, "klDivergenceBackward", { ...backward, direction }, three);
    report(
      settings,
      `${label}, dx, packed`,
      "klDivergenceBackward",
      { ...backward, ...packed, packedBackward, direction },
      three,
    );
  }
  const dWeight = uniformArray(vocab * cols);
  report(
    settings,
    `${headLabel}, reverse, dx and dW`,
    "klDivergenceBackward",
    { ...backward, dWeight },
    { flops: 4 * headProduct },
  );
}

const settings = benchSettings();
console.log(`${settings.backend}, ${settings.threads} threads`);
for (const shape of SHAPES) benchLinear(settings, shape);
benchTokenLogProb(settings);
benchKlDivergence(settings);
