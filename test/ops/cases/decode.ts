import { PAGE_TOKENS } from "../../support/kernels.ts";
import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";

interface CacheShape {
  rows: number;
  pages: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  gap: number;
  /** Longest sequence, in pages; sequences share pages where they have more than there are. */
  tableStride: number;
  window?: number;
  /** Of the sequences; chance decides where it is left out. */
  lengths?: readonly number[];
}

const CACHES: readonly CacheShape[] = [
  { rows: 1, pages: 1, heads: 1, kvHeads: 1, headDim: 4, gap: 0, tableStride: 1 },
  { rows: 3, pages: 5, heads: 4, kvHeads: 2, headDim: 7, gap: 3, tableStride: 2 },
  { rows: 7, pages: 35, heads: 6, kvHeads: 6, headDim: 16, gap: 0, tableStride: 5 },
  { rows: 2, pages: 12, heads: 2, kvHeads: 1, headDim: 64, gap: 1, tableStride: 10 },
  { rows: 5, pages: 30, heads: 4, kvHeads: 2, headDim: 8, gap: 0, tableStride: 5, window: 1 },
  { rows: 9, pages: 90, heads: 2, kvHeads: 1, headDim: 16, gap: 2, tableStride: 10, window: 70 },
  { rows: 3, pages: 9, heads: 2, kvHeads: 2, headDim: 8, gap: 0, tableStride: 3, window: 1000 },
  { rows: 2, pages: 70, heads: 14, kvHeads: 2, headDim: 20, gap: 0, tableStride: 67 },
  // What follows lies at and around the positions where CUDA splits a sequence, each 256th.
  {
    ...{ rows: 8, pages: 40, heads: 4, kvHeads: 2, headDim: 8, gap: 0, tableStride: 17 },
    lengths: [255, 256, 257, 511, 512, 513, 1, 544],
  },
  {
    ...{ rows: 7, pages: 50, heads: 2, kvHeads: 1, headDim: 16, gap: 1, tableStride: 33, window: 257 },
    lengths: [1056, 1025, 512, 513, 257, 258, 3],
  },
  // Query heads of a key head in several chunks, and one that lacks a head; heads as wide as they may be, and in whole packs or not.
  { rows: 3, pages: 20, heads: 22, kvHeads: 2, headDim: 24, gap: 0, tableStride: 9 },
  { rows: 2, pages: 9, heads: 7, kvHeads: 1, headDim: 72, gap: 0, tableStride: 3 },
  { rows: 2, pages: 12, heads: 6, kvHeads: 2, headDim: 40, gap: 2, tableStride: 4 },
  { rows: 1, pages: 2, heads: 8, kvHeads: 1, headDim: 256, gap: 0, tableStride: 2 },
  { rows: 1, pages: 3, heads: 2, kvHeads: 2, headDim: 65, gap: 0, tableStride: 2 },
];

/** Places in a cache, each once: the first and then a run through pages, as those of a prompt, then every other place from the last on. */
function placesOf(rows: number, pages: number): Int32Array {
  const run = rows >> 1;
  const last = pages * PAGE_TOKENS - 1;
  return Int32Array.from({ length: rows }, (_, row) => (row < run ? row && 3 + row : last - 2 * (row - run)));
}

function cacheCases(shape: CacheShape): OpCase[] {
  const { rows, pages, heads, kvHeads, headDim, gap, tableStride, window = 0, lengths } = shape;
  const suffix = window > 0 ? `, window ${window}` : "";
  const name = `${rows} rows, ${heads}/${kvHeads} heads of ${headDim}, ${tableStride} of ${pages} pages${suffix}`;
  const data = new CaseData(`cache ${name}`);
  const kvWidth = kvHeads * headDim;
  const cacheSize = pages * PAGE_TOKENS * kvWidth;
  const appended = Math.min((pages * PAGE_TOKENS) >> 1, 20 * rows);
  return [
    {
      op: "kvAppend",
      name,
      args: {
        rows: appended,
        kvHeads,
        headDim,
        pages,
        kStride: kvWidth + gap,
        vStride: kvWidth + 2 * gap,
        places: placesOf(appended, pages),
        k: data.matrix(appended, kvWidth, kvWidth + gap),
        v: data.matrix(appended, kvWidth, kvWidth + 2 * gap),
        kCache: data.normal(cacheSize),
        vCache: data.normal(cacheSize),
      },
      criterion: EXACT,
    },
    {
      op: "decodeAttention",
      name,
      args: {
        rows,
        heads,
        kvHeads,
        headDim,
        pages,
        tableStride,
        qStride: heads * headDim + gap,
        oStride: heads * headDim + 2 * gap,
        window,
        scale: headDim ** -0.5,
        tables: data.integers(rows * tableStride, pages),
        lengths: lengths ? Int32Array.from(lengths) : lengthsOf(data, rows, tableStride * PAGE_TOKENS),
        q: data.matrix(rows, heads * headDim, heads * headDim + gap, 2),
        kCache: data.normal(cacheSize),
        vCache: data.normal(cacheSize),
        o: unset(rows * (heads * headDim + 2 * gap)),
      },
      criterion: GENERAL,
    },
  ];
}

/** Lengths of sequences, the first of which lacks one token to fill its pages, and the last none. */
function lengthsOf(data: CaseData, rows: number, capacity: number): Int32Array {
  const lengths = data.integers(rows, capacity).map((length) => length + 1);
  lengths[0] = capacity - 1;
  lengths[rows - 1] = capacity;
  return lengths;
}

/** Arguments of sample for `rows` draws from distributions of `spread`. */
export function sampleArguments(
  data: CaseData,
  rows: number,
  vocab: number,
  settings: CaseArguments = {},
  spread = 2,
): CaseArguments {
  return {
    rows,
    vocab,
    seed: 1234567,
    streams: BigInt64Array.from({ length: rows }, (_, row) => BigInt(row * 17)),
    positions: data.integers(rows, 50),
    logits: data.normal(rows * vocab, spread),
    token: new Int32Array(rows).fill(-1),
    logProb: unset(rows),
    ...settings,
  };
}

function sampleCase(name: string, rows: number, vocab: number, settings: CaseArguments = {}): OpCase {
  const data = new CaseData(`sample ${name}`);
  return { op: "sample", name, args: sampleArguments(data, rows, vocab, settings), criterion: GENERAL };
}

const seenTokens = (rows: number, vocab: number): Uint8Array =>
  Uint8Array.from(new CaseData("seen").mask(rows * vocab, 0.3));

/** Logits of few values, 0 and −0 among them. */
const steps = (count: number): Float64Array =>
  Float64Array.from(new CaseData("steps").integers(count, 4), (step, index) =>
    step === 2 && index % 2 === 0 ? -0 : step - 2,
  );

/** Rows in which two tokens have logits above all others: 5, and the float32 before or behind it. */
function withNeighbours(rows: number, vocab: number): Float64Array {
  const logits = new CaseData("neighbours").normal(rows * vocab);
  for (let row = 0; row < rows; row++) {
    logits[row * vocab + 7] = 5;
    logits[row * vocab + 40] = 5 + (row % 2 === 0 ? 1 : -1) * 2 ** -21;
  }
  return logits;
}

/** Rows in which one token, to be forbidden, has by far the largest logit. */
function withPeak(rows: number, vocab: number, token: number): Float64Array {
  const logits = new CaseData("peak").normal(rows * vocab, 2);
  for (let row = 0; row < rows; row++) logits[row * vocab + token] = 40;
  return logits;
}

export const decodeCases: readonly OpCase[] = [
  ...CACHES.flatMap(cacheCases),
  sampleCase("greedy", 33, 65, { temperature: 0 }),
  sampleCase("plain", 65, 129),
  sampleCase("one token", 2, 1),
  sampleCase("tempered", 33, 1000, { temperature: 0.7 }),
  sampleCase("top-k", 33, 129, { topK: 7 }),
  sampleCase("top-k of 1", 33, 129, { topK: 1 }),
  sampleCase("top-k of all but one token", 65, 3, { topK: 2 }),
  sampleCase("greedy among neighbouring numbers", 33, 65, { temperature: 0, logits: withNeighbours(33, 65) }),
  sampleCase("top-k of neighbouring numbers", 33, 65, { topK: 2, logits: withNeighbours(33, 65) }),
  sampleCase("the last token of all", 2, 33, { logits: withPeak(2, 33, 32) }),
  sampleCase("top-k beyond the vocabulary", 7, 33, { topK: 100 }),
  sampleCase("top-p", 33, 129, { topP: 0.8 }),
  sampleCase("top-p near 0", 33, 129, { topP: 1e-6 }),
  sampleCase("min-p", 33, 129, { minP: 0.2 }),
  sampleCase("everything", 33, 500, {
    temperature: 0.9,
    topK: 40,
    topP: 0.9,
    minP: 0.02,
    repetitionPenalty: 1.3,
    seen: seenTokens(33, 500),
    forbiddenCount: 3,
    forbidden: Int32Array.of(0, 7, 499),
    forbid: Uint8Array.from({ length: 33 }, (_, row) => row % 2),
  }),
  // A backend may adjust logits in scratch memory, so many rows at a time.
  sampleCase("more rows than scratch memory has", 520, 5, {
    repetitionPenalty: 1.3,
    seen: seenTokens(520, 5),
    forbiddenCount: 2,
    forbidden: Int32Array.of(1, 4),
    forbid: Uint8Array.from({ length: 520 }, (_, row) => row % 2),
  }),
  sampleCase("a wide vocabulary, everything", 3, 2203, {
    temperature: 1.2,
    topK: 400,
    topP: 0.95,
    minP: 1e-4,
    repetitionPenalty: 0.8,
    seen: seenTokens(3, 2203),
    forbiddenCount: 2,
    forbidden: Int32Array.of(2202, 1999),
    logits: withPeak(3, 2203, 1999),
  }),
  sampleCase("greedy among equal logits", 33, 300, { temperature: 0, logits: steps(33 * 300) }),
  sampleCase("equal logits, top-k and top-p", 33, 300, {
    topK: 20,
    topP: 0.5,
    logits: new Float64Array(33 * 300).fill(-1.5),
  }),
  sampleCase("many equal logits, top-k", 33, 300, { topK: 100, logits: steps(33 * 300) }),
  sampleCase("many equal logits, top-p", 33, 300, { topP: 0.7, logits: steps(33 * 300) }),
  sampleCase("greedy with repetition penalty and forbidden tokens", 33, 65, {
    temperature: 0,
    repetitionPenalty: 1.5,
    seen: seenTokens(33, 65),
    forbiddenCount: 2,
    forbidden: Int32Array.of(3, 9),
  }),
];
