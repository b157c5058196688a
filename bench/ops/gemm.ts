import { type KernelArguments, kernels } from "../../test/support/kernels.ts";
import { type BenchPlace, type OpBench, uniformArray } from "./op-bench.ts";

// Matrix products: linear layers forward and backward, with the weight packed before and not, and the ops over a vocabulary.

interface Shape {
  readonly rows: number;
  readonly inputs: number;
  readonly outputs: number;
  readonly rank?: number;
}

/** A square, layers of GPT-2 small over 4 × 256 tokens, steps of decoding, and layers of stories260k over a minibatch of PPO. */
const SHAPES: readonly Shape[] = [
  { rows: 1024, inputs: 1024, outputs: 1024 },
  { rows: 1024, inputs: 768, outputs: 2304, rank: 16 },
  { rows: 1024, inputs: 3072, outputs: 768 },
  { rows: 32, inputs: 768, outputs: 3072 },
  { rows: 1, inputs: 768, outputs: 3072 },
  { rows: 64, inputs: 64, outputs: 64 },
  { rows: 1664, inputs: 64, outputs: 172 },
  { rows: 1664, inputs: 172, outputs: 64 },
];

/** More steps of decoding, whose weights are packed: a layer, and the head, which no cache holds. */
const DECODING: readonly Shape[] = [
  { rows: 16, inputs: 768, outputs: 3072 },
  { rows: 8, inputs: 768, outputs: 3072 },
  { rows: 8, inputs: 768, outputs: 50_257 },
];

interface Packing {
  readonly inputs: number;
  readonly outputs: number;
  readonly backward: boolean;
}

function packArguments(place: BenchPlace, weight: Float32Array, packing: Packing): KernelArguments {
  const { inputs, outputs, backward } = packing;
  const { backend, compute } = place;
  const bytes = kernels.packedWeightBytes(backend, "float32", compute, inputs, outputs, backward);
  const packed = new Float32Array(kernels.alignedBuffer(bytes), 0, bytes / 4);
  return { type: "float32", compute, inputs, outputs, backward, weight, packed };
}

function pack(place: BenchPlace, weight: Float32Array, packing: Packing): Float32Array {
  const args = packArguments(place, weight, packing);
  kernels.run(place.backend, "packWeight", args);
  return args["packed"] as Float32Array;
}

const linearArguments = ({ rows, inputs, outputs, rank = 0 }: Shape, { compute }: BenchPlace) => ({
  ...{ type: "float32", weightType: "float32", compute, rows, inputs, outputs, xStride: inputs },
  ...{ x: uniformArray(rows * inputs), weight: uniformArray(outputs * inputs) },
  ...(rank > 0 && {
    ...{ rank, scale: 2, loraA: uniformArray(rank * inputs), loraB: uniformArray(outputs * rank) },
    loraHidden: uniformArray(rows * rank),
  }),
});

const labelOf = ({ rows, inputs, outputs, rank = 0 }: Shape): string =>
  `${rows}×${inputs}×${outputs}${rank > 0 ? `, rank ${rank}` : ""}`;

const flopsOf = ({ rows, inputs, outputs, rank = 0 }: Shape): number =>
  2 * rows * inputs * outputs + 2 * rows * rank * (inputs + outputs);

const forwardArguments = (shape: Shape, place: BenchPlace) => ({
  ...linearArguments(shape, place),
  ...{ yStride: shape.outputs, y: uniformArray(shape.rows * shape.outputs) },
});

const packedForward = (shape: Shape): OpBench => ({
  ...{ op: "linearForward", label: `${labelOf(shape)}, packed`, flops: flopsOf(shape), bytes: { weight: 0 } },
  args: (place) => {
    const args = forwardArguments(shape, place);
    return { ...args, packedForward: pack(place, args.weight, { ...shape, backward: false }) };
  },
});

function linear(shape: Shape): OpBench[] {
  const { rows, inputs, outputs, rank = 0 } = shape;
  const label = labelOf(shape),
    flops = flopsOf(shape);
  const backward = (place: BenchPlace) => ({
    ...linearArguments(shape, place),
    ...{ dyStride: outputs, dxStride: inputs, dy: uniformArray(rows * outputs) },
    ...(rank > 0 && { loraGradient: uniformArray(rows * rank) }),
  });
  const dx = (place: BenchPlace) => ({ ...backward(place), dx: uniformArray(rows * inputs) });
  const unread = { weight: 0 };
  const benches: OpBench[] = [
    { op: "linearForward", label, args: (place) => forwardArguments(shape, place), flops },
    packedForward(shape),
    { op: "linearBackward", label: `${label}, dx`, args: dx, flops, bytes: rank > 0 ? {} : { x: 0 } },
    {
      ...{ op: "linearBackward", label: `${label}, dx, packed`, flops, bytes: { ...unread, x: 0 } },
      args: (place) => {
        const args = dx(place);
        return { ...args, packedBackward: pack(place, args.weight, { inputs, outputs, backward: true }) };
      },
    },
  ];
  const dWeight: OpBench = {
    ...{ op: "linearBackward", label: `${label}, dW`, flops: 2 * rows * inputs * outputs },
    ...{ bytes: unread, updated: ["dWeight"] },
    args: (place) => ({ ...backward(place), dWeight: uniformArray(outputs * inputs) }),
  };
  return rank > 0 ? benches : [...benches, dWeight];
}

const packing: readonly OpBench[] = [false, true].map((backward) => ({
  op: "packWeight",
  label: `768×3072, ${backward ? "backward" : "forward"}`,
  args: (place) => packArguments(place, uniformArray(768 * 3072), { inputs: 768, outputs: 3072, backward }),
}));

const unpacking: readonly OpBench[] = [false, true].map((transposed) => ({
  op: "unpackWeight",
  label: `768×3072${transposed ? ", transposed" : ""}`,
  args: (place) => {
    const sizes = { inputs: 768, outputs: 3072 };
    const packed = pack({ ...place, compute: "float32" }, uniformArray(768 * 3072), {
      ...sizes,
      backward: false,
    });
    return { type: "float32", ...sizes, transposed, packed, weight: new Float32Array(768 * 3072) };
  },
}));

/** The head of GPT-2 small, applied to all rows but the last. */
const HEAD = { rows: 512, cols: 768, vocab: 50_257 } as const;
const headProduct = 2 * (HEAD.rows - 1) * HEAD.cols * HEAD.vocab;
const headLabel = `${HEAD.rows - 1}×${HEAD.cols}×${HEAD.vocab}`;

function headArguments({ compute }: BenchPlace) {
  const { rows, cols, vocab } = HEAD;
  return {
    ...{ ...HEAD, type: "float32", weightType: "float32", compute, count: rows - 1, temperature: 1 },
    predictions: Int32Array.from({ length: rows - 1 }, (_, p) => p + 1),
    sources: Int32Array.from({ length: rows - 1 }, (_, p) => p),
    ...{ x: uniformArray(rows * cols), weight: uniformArray(vocab * cols) },
    // With this the probabilities are neither all 0 nor infinite, which would be quicker to work with.
    lse: new Float32Array(rows).fill(120),
  };
}

const packHead = (place: BenchPlace, weight: Float32Array, backward: boolean): Float32Array =>
  pack(place, weight, { inputs: HEAD.cols, outputs: HEAD.vocab, backward });

function tokenLogProb(): OpBench[] {
  const { rows, cols, vocab } = HEAD;
  const shared = (place: BenchPlace) => {
    const args = headArguments(place);
    return {
      ...args,
      tokens: Int32Array.from({ length: rows }, (_, n) => (n * 97) % vocab),
      entropy: uniformArray(rows),
      packedForward: packHead(place, args.weight, false),
    };
  };
  const backward = (place: BenchPlace) => {
    const args = shared(place);
    const packedBackward = packHead(place, args.weight, true);
    return { ...args, packedBackward, dLogProb: uniformArray(rows), dx: uniformArray(rows * cols) };
  };
  const bytes = { weight: 0 };
  const updated = ["dx", "dWeight"];
  return [
    {
      ...{ op: "tokenLogProbForward", label: `${headLabel}, packed`, flops: headProduct, bytes },
      args: (place) => ({ ...shared(place), logProb: uniformArray(rows) }),
    },
    {
      ...{
        op: "tokenLogProbBackward",
        label: `${headLabel}, dx, packed`,
        flops: 2 * headProduct,
        bytes,
        updated,
      },
      args: backward,
    },
    {
      ...{
        op: "tokenLogProbBackward",
        label: `${headLabel}, dx and dW`,
        flops: 3 * headProduct,
        bytes,
        updated,
      },
      args: (place) => ({ ...backward(place), dWeight: uniformArray(vocab * cols) }),
    },
  ];
}

/** Predictions whose logits stand at a time. */
const LOSS_BLOCK = 256;

/** The same with the likelihood's loss in between: the logits once, where the two ops above keep them or compute them twice. */
function tokenLoss(): OpBench[] {
  const { rows, cols, vocab } = HEAD;
  const args = (place: BenchPlace) => {
    const shared = headArguments(place);
    return {
      ...{ ...shared, kind: 0, scale: 1 / rows, tokenWeight: uniformArray(rows), blockRows: LOSS_BLOCK },
      tokens: Int32Array.from({ length: rows }, (_, n) => (n * 97) % vocab),
      ...{
        packedForward: packHead(place, shared.weight, false),
        packedBackward: packHead(place, shared.weight, true),
      },
      ...{ logProb: uniformArray(rows), entropy: uniformArray(rows), dLogProb: uniformArray(rows) },
      ...{ logits: uniformArray(LOSS_BLOCK * vocab), dx: uniformArray(rows * cols), stats: uniformArray(2) },
    };
  };
  const shared = {
    op: "tokenLossForwardBackward",
    bytes: { weight: 0, logits: 0 },
    updated: ["dx", "dWeight"],
  };
  return [
    { ...shared, label: `${headLabel}, dx, packed`, flops: 2 * headProduct, args },
    {
      ...{ ...shared, label: `${headLabel}, dx and dW`, flops: 3 * headProduct },
      args: (place) => ({ ...args(place), dWeight: uniformArray(vocab * cols) }),
    },
  ];
}

/** Two products forward (the policy's logits and the reference's), three or four backward; heads packed as a frozen model's are. */
function klDivergence(): OpBench[] {
  const { rows, cols, vocab } = HEAD;
  const forward = (place: BenchPlace) => {
    const args = headArguments(place);
    const refWeight = uniformArray(vocab * cols);
    return {
      ...{ ...args, refCols: cols, refWeightType: "float32", refCompute: place.compute, refWeight },
      ...{ refX: uniformArray(rows * cols), refLse: args.lse, kl: uniformArray(rows) },
      packedForward: packHead(place, args.weight, false),
      refPackedForward: packHead(place, refWeight, false),
    };
  };
  const backward = (place: BenchPlace) => {
    const args = forward(place);
    const packedBackward = packHead(place, args.weight, true);
    return { ...args, packedBackward, dKl: uniformArray(rows), dx: uniformArray(rows * cols) };
  };
  const bytes = { weight: 0, refWeight: 0 };
  const label = `${headLabel}, reverse, packed`;
  return [
    { op: "klDivergenceForward", label, flops: 2 * headProduct, bytes, args: forward },
    { op: "klDivergenceBackward", label, flops: 3 * headProduct, bytes, updated: ["dx"], args: backward },
  ];
}

export const gemmBenches: readonly OpBench[] = [
  ...SHAPES.flatMap(linear),
  ...DECODING.map(packedForward),
  ...packing,
  ...unpacking,
  ...tokenLogProb(),
  ...tokenLoss(),
  ...klDivergence(),
];
