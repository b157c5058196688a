import { rotaryTables } from "../../test/ops/cases/elementwise.ts";
import { ACTIVATION } from "../../test/ops/cases/linear.ts";
import { type KernelArguments, kernels } from "../../test/support/kernels.ts";
import { type OpBench, uniformArray } from "./op-bench.ts";

// The ops that pass over arrays: embeddings, norms, rotary, dropout, activations, the optimizer, drawing tokens.

const ROWS = 1024;
const WIDTH = 768;
const VOCAB = 50_257;

const token = (n: number): number => (n * 7919) % VOCAB;
const tokens = Int32Array.from({ length: ROWS }, (_, n) => token(n));
const positions = Int32Array.from({ length: ROWS }, (_, n) => n % 256);
const touched = 4 * ROWS * WIDTH;

const embeddings: readonly OpBench[] = [
  {
    op: "embeddingForward",
    label: `${ROWS}×${WIDTH} of ${VOCAB}`,
    bytes: { table: touched, positionTable: 4 * 256 * WIDTH },
    args: () => ({
      ...{ type: "float32", rows: ROWS, cols: WIDTH, vocab: VOCAB, maxPositions: 1024, tokens, positions },
      table: uniformArray(VOCAB * WIDTH),
      positionTable: uniformArray(1024 * WIDTH),
      y: uniformArray(ROWS * WIDTH),
    }),
  },
  {
    op: "embeddingBackward",
    label: `${ROWS}×${WIDTH} of ${VOCAB}`,
    bytes: { dTable: touched, dPositionTable: 4 * 256 * WIDTH },
    updated: ["dTable", "dPositionTable"],
    args: () => ({
      ...{ type: "float32", rows: ROWS, cols: WIDTH, vocab: VOCAB, maxPositions: 1024, tokens, positions },
      dy: uniformArray(ROWS * WIDTH),
      dTable: uniformArray(VOCAB * WIDTH),
      dPositionTable: uniformArray(1024 * WIDTH),
    }),
  },
];

/** Both directions of a norm over [rows, cols]. */
function norms(op: "rmsNorm" | "layerNorm", rows: number, cols: number): OpBench[] {
  const label = `${rows}×${cols}`;
  const centred = op === "layerNorm";
  const shared = (): KernelArguments => ({
    ...{ type: "float32", rows, cols, x: uniformArray(rows * cols), weight: uniformArray(cols) },
    rstd: uniformArray(rows).fill(1),
    ...(centred && { mean: uniformArray(rows) }),
  });
  const forward = () => ({
    ...shared(),
    ...(centred && { bias: uniformArray(cols) }),
    ...{ eps: 1e-5, y: uniformArray(rows * cols) },
  });
  const backward = () => ({
    ...shared(),
    ...{ dy: uniformArray(rows * cols), dx: uniformArray(rows * cols), dWeight: uniformArray(cols) },
    ...(centred && { dBias: uniformArray(cols) }),
  });
  return [
    { op: `${op}Forward`, label, args: forward },
    { op: `${op}Backward`, label, args: backward, updated: centred ? ["dWeight", "dBias"] : ["dWeight"] },
  ];
}

const HEADS = { heads: 12, headDim: 64 } as const;
const heads = `${ROWS} rows, ${HEADS.heads} heads of ${HEADS.headDim}`;
// Weights of 1: what is changed in place again and again must not fade into denormal numbers, which are slow.
const headArguments = () => ({
  ...{ type: "float32", rows: ROWS, ...HEADS, stride: WIDTH, weight: uniformArray(HEADS.headDim).fill(1) },
  normalised: uniformArray(ROWS * WIDTH),
  rstd: uniformArray(ROWS * HEADS.heads).fill(1),
});

const ofHeads: readonly OpBench[] = [
  {
    op: "headNormForward",
    label: heads,
    updated: ["x"],
    args: () => ({ ...headArguments(), eps: 1e-6, x: uniformArray(ROWS * WIDTH) }),
  },
  {
    op: "headNormBackward",
    label: heads,
    updated: ["dx", "dWeight"],
    args: () => ({
      ...headArguments(),
      dx: uniformArray(ROWS * WIDTH),
      dWeight: uniformArray(HEADS.headDim),
    }),
  },
  {
    op: "rotary",
    label: heads,
    updated: ["x"],
    args: () => {
      const { cosine, sine } = rotaryTables(256, HEADS.headDim);
      return {
        ...{ type: "float32", rows: ROWS, ...HEADS, rotary: HEADS.headDim, rowStride: WIDTH },
        ...{ maxPositions: 256, positions, cosine: Float32Array.from(cosine), sine: Float32Array.from(sine) },
        x: uniformArray(ROWS * WIDTH),
      };
    },
  },
];

/** An op on `rows` rows of `cols` that takes and gives the named arrays of that size. */
function wholeRows(op: string, rows: number, cols: number, names: string[], args: KernelArguments): OpBench {
  const arrays = () => Object.fromEntries(names.map((name) => [name, uniformArray(rows * cols)]));
  return { op, label: `${rows}×${cols}`, args: () => ({ type: "float32", ...args, ...arrays() }) };
}

const silu = { rows: ROWS, cols: 2048, inputStride: 2048 };
const activations: readonly OpBench[] = [
  wholeRows("dropout", ROWS, WIDTH, ["x", "y"], {
    ...{ rows: ROWS, cols: WIDTH, xStride: WIDTH, yStride: WIDTH, probability: 0.1, seed: 1, layer: 3 },
    keys: BigInt64Array.from({ length: ROWS }, (_, n) => BigInt(n)),
  }),
  ...(["geluTanh", "geluErf", "silu"] as const).flatMap((name) => {
    const args = { activation: ACTIVATION[name], count: ROWS * 3072 };
    return [
      wholeRows("activationForward", ROWS, 3072, ["x", "y"], args),
      wholeRows("activationBackward", ROWS, 3072, ["x", "dy", "dx"], args),
    ].map((bench) => ({ ...bench, label: `${bench.label}, ${name}` }));
  }),
  wholeRows("gatedSiluForward", ROWS, 2048, ["gate", "up", "y"], silu),
  wholeRows("gatedSiluBackward", ROWS, 2048, ["gate", "up", "dy", "dGate", "dUp"], silu),
];

/** 28 bytes a weight; 30 where a copy in bfloat16 is written beside master weights, and 24 where bfloat16 is all that there is. */
export function adamWBenches(count: number): (OpBench & { readonly args: () => KernelArguments })[] {
  const args = () => ({
    ...{ count, step: 10, learningRate: 1e-4, weightDecay: 0.01 },
    ...{ gradient: uniformArray(count), m: uniformArray(count), v: uniformArray(count).fill(0.1) },
  });
  return [
    {
      ...{ op: "adamW", label: `${count} parameters`, updated: ["parameter", "m", "v"] },
      args: () => ({ type: "float32", ...args(), parameter: uniformArray(count) }),
    },
    {
      ...{ op: "adamW", label: `${count} parameters, a copy in bfloat16`, updated: ["master", "m", "v"] },
      args: () => ({
        type: "bfloat16",
        ...args(),
        ...{ master: uniformArray(count), parameter: new Uint16Array(count) },
      }),
    },
    {
      ...{ op: "adamW", label: `${count} parameters, bfloat16 alone`, updated: ["parameter", "m", "v"] },
      args: () => ({
        type: "bfloat16",
        ...args(),
        ...{ seed: 1, parameter: kernels.toBits(uniformArray(count), "bfloat16") },
      }),
    },
  ];
}

const optimizers: readonly OpBench[] = [1 << 16, 1 << 24].flatMap((count): OpBench[] => [
  ...adamWBenches(count),
  {
    op: "narrow",
    label: `${count} elements to bfloat16`,
    args: () => ({ type: "bfloat16", count, x: uniformArray(count), y: new Uint16Array(count) }),
  },
  {
    op: "squaredNorm",
    label: `${count} elements`,
    args: () => ({ type: "float32", count, x: uniformArray(count), out: new Float64Array(1) }),
  },
]);

function drawing(rows: number, label: string, settings: KernelArguments): OpBench {
  return {
    op: "sample",
    label: `${rows}×${VOCAB}, ${label}`,
    args: () => ({
      ...{ type: "float32", rows, vocab: VOCAB, temperature: 1, seed: 1n, ...settings },
      ...{ streams: new BigInt64Array(rows), positions: new Int32Array(rows) },
      logits: uniformArray(rows * VOCAB).map((x) => 12 * x ** 3),
      token: new Int32Array(rows),
      logProb: new Float32Array(rows),
    }),
  };
}

export const rowBenches: readonly OpBench[] = [
  ...embeddings,
  ...norms("layerNorm", ROWS, WIDTH),
  ...norms("rmsNorm", ROWS, WIDTH),
  ...ofHeads,
  ...activations,
  ...optimizers,
  drawing(8, "greedy", { temperature: 0 }),
  drawing(8, "temperature 1", {}),
  drawing(8, "top-k 50", { topK: 50 }),
  drawing(8, "top-p 0.9", { topP: 0.9 }),
];
