import { PAGE_TOKENS } from "../../test/support/kernels.ts";
import { lossBenchesOf } from "../ops/losses.ts";
import { uniformArray } from "../ops/op-bench.ts";
import { adamWBenches } from "../ops/rows.ts";
import { BFLOAT16, bfloat16Array, type CudaBench } from "./cuda-bench.ts";
import { rowBenches } from "./rows.ts";
import { headBenches } from "./vocabulary.ts";

interface Linear {
  readonly rows: number;
  readonly inputs: number;
  readonly outputs: number;
}

/** A linear layer forward, with and without an adapter of rank 16, and backward as for a trained weight. */
function linear({ rows, inputs, outputs }: Linear): CudaBench[] {
  const rank = 16;
  const shape = { ...BFLOAT16, rows, inputs, outputs, xStride: inputs };
  const factors = () => ({ x: bfloat16Array(rows * inputs), weight: bfloat16Array(inputs * outputs, 0.02) });
  const adapter = () => ({
    ...{
      rank,
      scale: 2,
      loraA: bfloat16Array(rank * inputs, 0.02),
      loraB: bfloat16Array(outputs * rank, 0.02),
    },
    loraHidden: bfloat16Array(rows * rank),
  });
  const forward = () => ({ ...shape, yStride: outputs, ...factors(), y: bfloat16Array(rows * outputs) });
  const backward = () => ({
    ...{ ...shape, dyStride: outputs, dxStride: inputs, ...factors() },
    ...{ dy: bfloat16Array(rows * outputs), dx: bfloat16Array(rows * inputs) },
    dWeight: uniformArray(inputs * outputs),
  });
  const label = `${rows}×${inputs}×${outputs}`;
  const flops = 2 * rows * inputs * outputs;
  const size = { rows, inputs, outputs };
  const lora = 2 * rows * rank * (inputs + outputs);
  const benches: CudaBench[] = [
    { op: "linearForward", label, flops, args: forward, peer: { kind: "linear", ...size } },
    {
      ...{ op: "linearForward", label: `${label}, LoRA of rank ${rank}`, flops: flops + lora },
      args: () => ({ ...forward(), ...adapter() }),
      peer: { kind: "lora", ...size, rank },
    },
    {
      ...{ op: "linearBackward", label: `${label}, dx and dW`, flops: 2 * flops, updated: ["dWeight"] },
      args: backward,
      peer: { kind: "linearBackward", ...size },
    },
  ];
  return benches.map((bench) => ({ ...bench, ownKernelsFor: 90 }));
}

interface Heads {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

interface Attention extends Heads {
  readonly sequences: number;
  readonly length: number;
}

/** Causal attention; operations are those of the pairs that are seen. */
function attention({ sequences, length, heads, kvHeads, headDim }: Attention): CudaBench[] {
  const rows = sequences * length;
  const queries = () => bfloat16Array(rows * heads * headDim);
  const keys = () => bfloat16Array(rows * kvHeads * headDim);
  const forward = () => ({
    ...{ type: "bfloat16", rows, sequences, maxLength: length, heads, kvHeads, headDim },
    ...{ qStride: heads * headDim, kStride: kvHeads * headDim, vStride: kvHeads * headDim },
    ...{ oStride: heads * headDim, scale: headDim ** -0.5 },
    offsets: Int32Array.from({ length: sequences + 1 }, (_, s) => s * length),
    ...{ q: queries(), k: keys(), v: keys(), o: queries(), lse: uniformArray(rows * heads).fill(9) },
  });
  const backward = () => ({
    ...forward(),
    ...{ dO: queries(), dq: queries(), dk: keys(), dv: keys(), delta: uniformArray(rows * heads) },
  });
  const product = sequences * length * (length + 1) * heads * headDim;
  const label = `${sequences}×${length}, heads ${heads}/${kvHeads} of ${headDim}`;
  const size = { sequences, length, heads, kvHeads, headDim };
  return [
    {
      ...{ op: "attentionForward", label, flops: 2 * product, args: forward, ownKernelsFor: 90 },
      peer: { kind: "attention", ...size },
    },
    {
      ...{ op: "attentionBackward", label, flops: 5 * product, args: backward, ownKernelsFor: 90 },
      peer: { kind: "attentionBackward", ...size },
    },
  ];
}

/** One token for each of `rows` sequences whose caches are `length` long, a multiple of a page's tokens. */
function decoding(rows: number, length: number, { heads, kvHeads, headDim }: Heads): CudaBench {
  const pages = (rows * length) / PAGE_TOKENS;
  const cache = () => bfloat16Array(rows * length * kvHeads * headDim);
  const queries = () => bfloat16Array(rows * heads * headDim);
  return {
    op: "decodeAttention",
    label: `${rows}×${length}, heads ${heads}/${kvHeads} of ${headDim}`,
    flops: 4 * rows * heads * length * headDim,
    args: () => ({
      ...{ type: "bfloat16", cacheType: "bfloat16", rows, heads, kvHeads, headDim, pages },
      ...{ qStride: heads * headDim, oStride: heads * headDim, scale: headDim ** -0.5 },
      ...{ tableStride: pages / rows, tables: Int32Array.from({ length: pages }, (_, page) => page) },
      ...{
        lengths: new Int32Array(rows).fill(length),
        q: queries(),
        kCache: cache(),
        vCache: cache(),
        o: queries(),
      },
    }),
  };
}

function norms(op: "rmsNorm" | "layerNorm", rows: number, cols: number): CudaBench[] {
  const centred = op === "layerNorm";
  const shared = () => ({
    ...{ type: "bfloat16", rows, cols, x: bfloat16Array(rows * cols), weight: bfloat16Array(cols) },
    rstd: uniformArray(rows).fill(1),
    ...(centred && { mean: uniformArray(rows) }),
  });
  const forward = () => ({
    ...shared(),
    ...{ eps: 1e-5, y: bfloat16Array(rows * cols) },
    ...(centred && { bias: bfloat16Array(cols) }),
  });
  const backward = () => ({
    ...shared(),
    ...{ dy: bfloat16Array(rows * cols), dx: bfloat16Array(rows * cols), dWeight: uniformArray(cols) },
    ...(centred && { dBias: uniformArray(cols) }),
  });
  const updated = centred ? ["dWeight", "dBias"] : ["dWeight"];
  const label = `${rows}×${cols}`;
  return [
    { op: `${op}Forward`, label, args: forward, peer: { kind: op, rows, cols } },
    { op: `${op}Backward`, label, args: backward, updated, peer: { kind: `${op}Backward`, rows, cols } },
  ];
}

/** The gate of a Llama's MLP. */
function gatedSilu(rows: number, cols: number): CudaBench[] {
  const arrays = (names: readonly string[]) =>
    Object.fromEntries(names.map((name) => [name, bfloat16Array(rows * cols)]));
  const shape = { type: "bfloat16", rows, cols, inputStride: cols };
  const label = `${rows}×${cols}`;
  return [
    {
      ...{ op: "gatedSiluForward", label, peer: { kind: "gatedSilu", rows, cols } },
      args: () => ({ ...shape, ...arrays(["gate", "up", "y"]) }),
    },
    {
      ...{ op: "gatedSiluBackward", label },
      args: () => ({ ...shape, ...arrays(["gate", "up", "dy", "dGate", "dUp"]) }),
    },
  ];
}

function optimizer(count: number): CudaBench[] {
  return [
    // PyTorch's fused step has no copy to write.
    ...adamWBenches(count).map((bench): CudaBench => ({ ...bench, peer: { kind: "adamW", count } })),
    {
      ...{ op: "squaredNorm", label: `${count} elements, float32` },
      args: () => ({ type: "float32", count, x: uniformArray(count), out: new Float64Array(1) }),
      peer: { kind: "squaredNorm", count },
    },
    {
      ...{ op: "narrow", label: `${count} elements to bfloat16` },
      args: () => ({ type: "bfloat16", count, x: uniformArray(count), y: new Uint16Array(count) }),
    },
  ];
}

/** Sequences and their pages: one long one, and as many of 1,024 tokens as a rollout has. */
const DECODED = [
  [1, 512],
  [64, 32],
] as const;

/** All of them; with `shrink` every extent but the heads' is divided by it, to walk the same way where no GPU is. */
export function cudaBenches(shrink = 1): CudaBench[] {
  const size = (extent: number): number => Math.max(1, Math.round(extent / shrink));
  const heads = [
    { heads: 32, kvHeads: 8, headDim: 64 },
    { heads: 32, kvHeads: 8, headDim: 128 },
  ].map((each) => ({ ...each, heads: size(each.heads), kvHeads: size(each.kvHeads) }));
  const lengths = [
    { sequences: size(4), length: size(4096) },
    { sequences: 1, length: size(16_384) },
  ];
  return [
    ...linear({ rows: size(8192), inputs: size(4096), outputs: size(4096) }),
    // Fewer wide tiles than multiprocessors: those of 128 × 128.
    ...linear({ rows: size(2048), inputs: size(4096), outputs: size(1024) }),
    ...heads.flatMap((each) => lengths.flatMap((length) => attention({ ...each, ...length }))),
    ...heads.flatMap((each) =>
      DECODED.map(([rows, pages]) => decoding(size(rows), PAGE_TOKENS * size(pages), each)),
    ),
    ...norms("rmsNorm", size(16_384), size(4096)),
    ...norms("layerNorm", size(16_384), size(4096)),
    ...gatedSilu(size(16_384), size(8192)),
    ...optimizer(size(size(2 ** 28))),
    ...headBenches(size(8192), size(4096), size(128_256)),
    ...rowBenches({ rows: size(16_384), cols: size(4096), vocab: size(32_000), heads: size(32) }),
    ...lossBenchesOf({ sequences: size(1024), length: size(1024), pairs: size(8192) }),
  ];
}
