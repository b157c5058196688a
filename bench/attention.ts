/**
 * Causal attention. Operations are those of the pairs of a query and a key that it sees: two products forward, five backward.
 *
 *   npx tsx bench/attention.ts [--threads 2] [--backend cpu:avx2]
 */
import { type BenchSettings, benchSettings, report, uniformArray } from "./support.ts";

interface Shape {
  readonly sequences: number;
  readonly length: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

const SHAPES: readonly Shape[] = [
  { sequences: 64, length: 16, heads: 8, kvHeads: 4, headDim: 8 },
  { sequences: 4, length: 512, heads: 8, kvHeads: 4, headDim: 8 },
  { sequences: 16, length: 64, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 4, length: 256, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 1, length: 1024, heads: 12, kvHeads: 12, headDim: 64 },
  { sequences: 1, length: 2048, heads: 32, kvHeads: 4, headDim: 64 },
  { sequences: 1, length: 1024, heads: 16, kvHeads: 4, headDim: 128 },
];

function benchTraining(settings: BenchSettings, shape: Shape): void {
  const { sequences, length, heads, kvHeads, headDim } = shape;
  const rows = sequences * length;
  const queries = () => uniformArray(rows * heads * headDim);
  const keys = () => uniformArray(rows * kvHeads * headDim);
  const forward = {
    type: "float32",
    rows,
    sequences,
    maxLength: length,
    heads,
    kvHeads,
    headDim,
    qStride: heads * headDim,
    kStride: kvHeads * headDim,
    vStride: kvHeads * headDim,
    oStride: heads * headDim,
    scale: headDim ** -0.5,
    offsets: Int32Array.from({ length: sequences + 1 }, (_, s) => s * length),
    q: queries(),
    k: keys(),
    v: keys(),
    o: queries(),
    lse: uniformArray(rows * heads),
  };
  const product = sequences * length * (length + 1) * heads * headDim;
  const label = `${sequences}×${length}, heads ${heads}/${kvHeads}×${headDim}`;
  report(settings, label, "attentionForward", forward, { flops: 2 * product });
  const backward = {
    ...forward,
    dO: queries(),
    dq: queries(),
    dk: keys(),
    dv: keys(),
    delta: uniformArray(rows * heads),
  };
  report(settings, label, "attentionBackward", backward, { flops: 5 * product });
}

/** One token for each of `rows` sequences; the cache is read once. */
function benchDecode(settings: BenchSettings, rows: number, length: number, shape: Shape): void {
  const { heads, kvHeads, headDim } = shape;
  const args = {
    type: "float32",
    rows,
    heads,
    kvHeads,
    headDim,
    capacity: length,
    qStride: heads * headDim,
    oStride: heads * headDim,
    scale: headDim ** -0.5,
    slots: Int32Array.from({ length: rows }, (_, row) => row),
    lengths: new Int32Array(rows).fill(length),
    q: uniformArray(rows * heads * headDim),
    kCache: uniformArray(rows * kvHeads * length * headDim),
    vCache: uniformArray(rows * kvHeads * length * headDim),
    o: uniformArray(rows * heads * headDim),
  };
  const bytes = 8 * rows * kvHeads * length * headDim;
  report(settings, `${rows}×${length}, heads ${heads}/${kvHeads}×${headDim}`, "decodeAttention", args, {
    bytes,
  });
}

const settings = benchSettings();
console.log(`${settings.backend}, ${settings.threads} threads`);
for (const shape of SHAPES) benchTraining(settings, shape);
for (const shape of SHAPES.slice(-2)) benchDecode(settings, 8, shape.length, shape);
