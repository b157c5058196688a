import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";

interface CacheShape {
  rows: number;
  slotCount: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  capacity: number;
  gap: number;
  window?: number;
}

const CACHES: readonly CacheShape[] = [
  { rows: 1, slotCount: 1, heads: 1, kvHeads: 1, headDim: 4, capacity: 1, gap: 0 },
  { rows: 3, slotCount: 5, heads: 4, kvHeads: 2, headDim: 7, capacity: 33, gap: 3 },
  { rows: 7, slotCount: 7, heads: 6, kvHeads: 6, headDim: 16, capacity: 129, gap: 0 },
  { rows: 2, slotCount: 2, heads: 2, kvHeads: 1, headDim: 64, capacity: 300, gap: 1 },
  { rows: 5, slotCount: 6, heads: 4, kvHeads: 2, headDim: 8, capacity: 130, gap: 0, window: 1 },
  { rows: 9, slotCount: 9, heads: 2, kvHeads: 1, headDim: 16, capacity: 300, gap: 2, window: 70 },
  { rows: 3, slotCount: 3, heads: 2, kvHeads: 2, headDim: 8, capacity: 90, gap: 0, window: 1000 },
];

function cacheCases(shape: CacheShape): OpCase[] {
  const { rows, slotCount, heads, kvHeads, headDim, capacity, gap, window = 0 } = shape;
  const suffix = window > 0 ? `, window ${window}` : "";
  const name = `${rows} rows, ${heads}/${kvHeads} heads of ${headDim}, capacity ${capacity}${suffix}`;
  const data = new CaseData(`cache ${name}`);
  const kvWidth = kvHeads * headDim;
  const cacheSize = slotCount * kvWidth * capacity;
  const slots = data.subset(slotCount, rows).reverse();
  return [
    {
      op: "kvAppend",
      name,
      args: {
        rows,
        kvHeads,
        headDim,
        capacity,
        kStride: kvWidth + gap,
        vStride: kvWidth + 2 * gap,
        slots,
        positions: data.integers(rows, capacity),
        k: data.matrix(rows, kvWidth, kvWidth + gap),
        v: data.matrix(rows, kvWidth, kvWidth + 2 * gap),
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
        capacity,
        qStride: heads * headDim + gap,
        oStride: heads * headDim + 2 * gap,
        window,
        scale: headDim ** -0.5,
        slots,
        lengths: data.integers(rows, capacity).map((length) => length + 1),
        q: data.matrix(rows, heads * headDim, heads * headDim + gap, 2),
        kCache: data.normal(cacheSize),
        vCache: data.normal(cacheSize),
        o: unset(rows * (heads * headDim + 2 * gap)),
      },
      criterion: GENERAL,
    },
  ];
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

export const decodeCases: readonly OpCase[] = [
  ...CACHES.flatMap(cacheCases),
  sampleCase("greedy", 33, 65, { temperature: 0 }),
  sampleCase("plain", 65, 129),
  sampleCase("one token", 2, 1),
  sampleCase("tempered", 33, 1000, { temperature: 0.7 }),
  sampleCase("top-k", 33, 129, { topK: 7 }),
  sampleCase("top-k of 1", 33, 129, { topK: 1 }),
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
  sampleCase("a wide vocabulary, everything", 5, 5003, {
    temperature: 1.2,
    topK: 900,
    topP: 0.95,
    minP: 1e-4,
    repetitionPenalty: 0.8,
    seen: seenTokens(5, 5003),
    forbiddenCount: 2,
    forbidden: Int32Array.of(5002, 77),
  }),
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
