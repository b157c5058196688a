import { PAGE_TOKENS } from "../../test/support/kernels.ts";
import { type BenchPlace, type OpBench, uniformArray } from "./op-bench.ts";

/** Causal attention. Operations are those of the pairs of a query and a key that it sees: two products forward, five backward. */

interface Shape {
  readonly sequences: number;
  readonly length: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

const SHAPES: readonly Shape[] = [
  { sequences: 4, length: 512, heads: 8, kvHeads: 4, headDim: 8 },
  { sequences: 32, length: 53, heads: 8, kvHeads: 4, headDim: 8 },
  { sequences: 16, length: 64, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 4, length: 256, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 1, length: 1024, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 1, length: 2048, heads: 32, kvHeads: 4, headDim: 64 },
  { sequences: 1, length: 1024, heads: 16, kvHeads: 4, headDim: 128 },
];

const nameOf = ({ heads, kvHeads, headDim }: Shape): string => `heads ${heads}/${kvHeads}×${headDim}`;

function training(shape: Shape): OpBench[] {
  const { sequences, length, heads, kvHeads, headDim } = shape;
  const rows = sequences * length;
  const queries = () => uniformArray(rows * heads * headDim);
  const keys = () => uniformArray(rows * kvHeads * headDim);
  const forward = ({ compute }: BenchPlace) => ({
    ...{ type: "float32", compute, rows, sequences, maxLength: length, heads, kvHeads, headDim },
    ...{ qStride: heads * headDim, kStride: kvHeads * headDim, vStride: kvHeads * headDim },
    ...{ oStride: heads * headDim, scale: headDim ** -0.5 },
    offsets: Int32Array.from({ length: sequences + 1 }, (_, s) => s * length),
    ...{ q: queries(), k: keys(), v: keys(), o: queries(), lse: uniformArray(rows * heads) },
  });
  const backward = (place: BenchPlace) => ({
    ...forward(place),
    ...{ dO: queries(), dq: queries(), dk: keys(), dv: keys(), delta: uniformArray(rows * heads) },
  });
  const product = sequences * length * (length + 1) * heads * headDim;
  const label = `${sequences}×${length}, ${nameOf(shape)}`;
  return [
    { op: "attentionForward", label, args: forward, flops: 2 * product },
    { op: "attentionBackward", label, args: backward, flops: 5 * product },
  ];
}

/** One token for each of `rows` sequences, whose caches are `length` long, a multiple of a page's tokens. */
function decoding(rows: number, length: number, shape: Shape): OpBench[] {
  const { heads, kvHeads, headDim } = shape;
  const caches = () => ({
    kCache: uniformArray(rows * kvHeads * length * headDim),
    vCache: uniformArray(rows * kvHeads * length * headDim),
  });
  const pages = (rows * length) / PAGE_TOKENS;
  const shared = { type: "float32", rows, kvHeads, headDim, pages };
  const width = kvHeads * headDim;
  const label = `${rows}×${length}, ${nameOf(shape)}`;
  return [
    {
      op: "decodeAttention",
      label,
      flops: 4 * rows * heads * length * headDim,
      args: () => ({
        ...{ ...shared, heads, qStride: heads * headDim, oStride: heads * headDim, scale: headDim ** -0.5 },
        ...{ tableStride: pages / rows, tables: Int32Array.from({ length: pages }, (_, page) => page) },
        ...{ lengths: new Int32Array(rows).fill(length), ...caches() },
        ...{ q: uniformArray(rows * heads * headDim), o: uniformArray(rows * heads * headDim) },
      }),
    },
    {
      op: "kvAppend",
      label,
      bytes: { kCache: 4 * rows * width, vCache: 4 * rows * width },
      args: () => ({
        ...{ ...shared, kStride: width, vStride: width },
        places: Int32Array.from({ length: rows }, (_, row) => row * length + (length >> 1)),
        ...{ k: uniformArray(rows * width), v: uniformArray(rows * width), ...caches() },
      }),
    },
  ];
}

export const attentionBenches: readonly OpBench[] = [
  ...SHAPES.flatMap(training),
  ...decoding(1, 192, SHAPES[3]!),
  ...decoding(32, 192, SHAPES[3]!),
  ...decoding(8, 2048, SHAPES[4]!),
];
