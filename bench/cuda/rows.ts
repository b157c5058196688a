import { rotaryTables } from "../../test/ops/cases/elementwise.ts";
import { ACTIVATION } from "../../test/ops/cases/linear.ts";
import { PAGE_TOKENS } from "../../test/support/kernels.ts";
import { uniformArray } from "../ops/op-bench.ts";
import { bfloat16Array, type CudaBench } from "./cuda-bench.ts";

// The ops that pass over rows once: their time is that of the bytes they move.

interface Rows {
  readonly rows: number;
  readonly cols: number;
  readonly vocab: number;
  /** Of HEAD_DIM numbers each. */
  readonly heads: number;
}

const HEAD_DIM = 128;
const MAX_POSITIONS = 4096;

/** Rows of a table, each at most once. */
function embeddings({ rows, cols, vocab }: Rows): CudaBench[] {
  const label = `${rows}×${cols} of ${vocab}`;
  const shared = () => ({
    ...{ type: "bfloat16", rows, cols, vocab },
    tokens: Int32Array.from({ length: rows }, (_, n) => (n * 7919) % vocab),
  });
  const touched = Math.min(rows, vocab) * cols;
  return [
    {
      ...{ op: "embeddingForward", label, bytes: { table: 2 * touched } },
      args: () => ({
        ...{ ...shared(), tableType: "bfloat16" },
        ...{ table: bfloat16Array(vocab * cols), y: bfloat16Array(rows * cols) },
      }),
    },
    {
      ...{ op: "embeddingBackward", label, bytes: { dTable: 4 * touched }, updated: ["dTable"] },
      args: () => ({ ...shared(), dy: bfloat16Array(rows * cols), dTable: uniformArray(vocab * cols) }),
    },
  ];
}

function ofHeads({ rows, heads }: Rows): CudaBench[] {
  const width = heads * HEAD_DIM;
  const label = `${rows} rows, ${heads} heads of ${HEAD_DIM}`;
  // Weights of 1: what is changed in place again and again must not fade away or grow.
  const shared = () => ({
    ...{ type: "bfloat16", rows, heads, headDim: HEAD_DIM, stride: width },
    weight: bfloat16Array(HEAD_DIM).fill(0x3f80),
    normalised: bfloat16Array(rows * width),
    rstd: uniformArray(rows * heads).fill(1),
  });
  return [
    {
      ...{ op: "headNormForward", label, updated: ["x"] },
      args: () => ({ ...shared(), eps: 1e-6, x: bfloat16Array(rows * width) }),
    },
    {
      ...{ op: "headNormBackward", label, updated: ["dx", "dWeight"] },
      args: () => ({ ...shared(), dx: bfloat16Array(rows * width), dWeight: uniformArray(HEAD_DIM) }),
    },
    {
      ...{ op: "rotary", label, updated: ["x"] },
      args: () => {
        const { cosine, sine } = rotaryTables(MAX_POSITIONS, HEAD_DIM);
        return {
          ...{ type: "bfloat16", rows, heads, headDim: HEAD_DIM, rotary: HEAD_DIM, rowStride: width },
          ...{ maxPositions: MAX_POSITIONS, x: bfloat16Array(rows * width) },
          positions: Int32Array.from({ length: rows }, (_, n) => n % MAX_POSITIONS),
          ...{ cosine: Float32Array.from(cosine), sine: Float32Array.from(sine) },
        };
      },
    },
  ];
}

function elementwise({ rows, cols }: Rows): CudaBench[] {
  const arrays = (names: readonly string[]) =>
    Object.fromEntries(names.map((name) => [name, bfloat16Array(rows * cols)]));
  const label = `${rows}×${cols}`;
  return [
    {
      ...{ op: "dropout", label },
      args: () => ({
        ...{
          type: "bfloat16",
          rows,
          cols,
          xStride: cols,
          yStride: cols,
          probability: 0.1,
          seed: 1,
          layer: 3,
        },
        ...{ keys: BigInt64Array.from({ length: rows }, (_, n) => BigInt(n)), ...arrays(["x", "y"]) },
      }),
    },
    {
      ...{ op: "activationForward", label: `${label}, geluTanh` },
      args: () => ({
        ...{ type: "bfloat16", activation: ACTIVATION.geluTanh, count: rows * cols },
        ...arrays(["x", "y"]),
      }),
    },
    ...(["geluTanh", "silu"] as const).map((name) => ({
      ...{ op: "activationBackward", label: `${label}, ${name}` },
      args: () => ({
        ...{ type: "bfloat16", activation: ACTIVATION[name], count: rows * cols },
        ...arrays(["x", "dy", "dx"]),
      }),
    })),
  ];
}

/** Keys and values of tokens that go into a cache one behind the other, as those of prompts. */
function cache({ rows, heads }: Rows): CudaBench {
  const kvHeads = Math.max(1, heads >> 2);
  const width = kvHeads * HEAD_DIM;
  const pages = Math.ceil(rows / PAGE_TOKENS);
  return {
    ...{ op: "kvAppend", label: `${rows} rows, ${kvHeads} heads of ${HEAD_DIM}` },
    bytes: { kCache: 2 * rows * width, vCache: 2 * rows * width },
    args: () => ({
      ...{ type: "bfloat16", cacheType: "bfloat16", rows, kvHeads, headDim: HEAD_DIM, pages },
      ...{ kStride: width, vStride: width, places: Int32Array.from({ length: rows }, (_, row) => row) },
      ...{ k: bfloat16Array(rows * width), v: bfloat16Array(rows * width) },
      kCache: bfloat16Array(pages * PAGE_TOKENS * width),
      vCache: bfloat16Array(pages * PAGE_TOKENS * width),
    }),
  };
}

export const rowBenches = (sizes: Rows): CudaBench[] => [
  ...embeddings(sizes),
  ...ofHeads(sizes),
  ...elementwise(sizes),
  cache(sizes),
];
