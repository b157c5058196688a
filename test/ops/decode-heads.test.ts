import assert from "node:assert/strict";
import { uniformArray } from "../../bench/ops/op-bench.ts";
import { CPU_BACKENDS } from "../support/bfloat16-kernels.ts";
import { PAGE_TOKENS, runKernel } from "../support/kernels.ts";

/* The CPU goes through the key/value heads of a sequence together, page by page: as many as a task takes, and as its thread's scratch memory
holds. A head's bits are those that it has by itself. */

const HEAD_DIM = 32;
const KV_HEADS = 12;
/** Longer than the 1,024 positions whose scores are taken at a time, within a page, and a page and a position. */
const LENGTHS = Int32Array.of(1100, 5, 33);
const TABLE_STRIDE = Math.ceil(LENGTHS[0]! / PAGE_TOKENS);
const PAGES = LENGTHS.length * TABLE_STRIDE;
const BLOCK = HEAD_DIM * PAGE_TOKENS;
/** A hundred query heads for each key/value head: the scratch memory has room for the scores of nine of these. */
const GROUPS = [1, 100];

/** `width` numbers of every `stride`, from the `index`-th run of them on. */
function runsOf(numbers: Float32Array, stride: number, width: number, index: number): Float32Array {
  return numbers.filter((_, i) => Math.floor((i % stride) / width) === index);
}

describe("decodeAttention of many heads", () => {
  for (const backend of CPU_BACKENDS)
    for (const group of GROUPS)
      for (const window of [0, 40])
        it(`${group} for each key/value head${window > 0 ? `, window ${window}` : ""}, on ${backend}: the bits of each by itself, on any number of threads`, () => {
          const q = uniformArray(LENGTHS.length * KV_HEADS * group * HEAD_DIM);
          const kCache = uniformArray(PAGES * KV_HEADS * BLOCK);
          const vCache = uniformArray(PAGES * KV_HEADS * BLOCK);
          const tables = Int32Array.from({ length: PAGES }, (_, i) => (7 * i) % PAGES);
          const attend = (
            kvHeads: number,
            threads: number,
            inputs: Record<"q" | "kCache" | "vCache", Float32Array>,
          ) => {
            const width = kvHeads * group * HEAD_DIM;
            const o = new Float32Array(LENGTHS.length * width).fill(Number.NaN);
            runKernel(
              backend,
              "decodeAttention",
              {
                ...{
                  type: "float32",
                  cacheType: "float32",
                  rows: LENGTHS.length,
                  heads: kvHeads * group,
                  kvHeads,
                },
                ...{
                  headDim: HEAD_DIM,
                  pages: PAGES,
                  tableStride: TABLE_STRIDE,
                  qStride: width,
                  oStride: width,
                },
                ...{ window, scale: 0.3, tables, lengths: LENGTHS, ...inputs, o },
              },
              { threads },
            );
            return o;
          };
          const all = attend(KV_HEADS, 1, { q, kCache, vCache });
          assert.ok(all.every(Number.isFinite));
          for (const threads of [2, 5])
            assert.deepEqual(attend(KV_HEADS, threads, { q, kCache, vCache }), all);
          const width = group * HEAD_DIM;
          for (let head = 0; head < KV_HEADS; head++) {
            const alone = attend(1, 1, {
              q: runsOf(q, KV_HEADS * width, width, head),
              kCache: runsOf(kCache, KV_HEADS * BLOCK, BLOCK, head),
              vCache: runsOf(vCache, KV_HEADS * BLOCK, BLOCK, head),
            });
            assert.deepEqual(alone, runsOf(all, KV_HEADS * width, width, head), `head ${head}`);
          }
        });
});
