import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, GENERAL, type OpCase, offsetsOf, unset } from "./case.ts";

export interface AttentionShape {
  lengths: readonly number[];
  /** Per sequence the one that it continues, −1 for none. */
  parents?: readonly number[];
  heads: number;
  kvHeads: number;
  headDim: number;
  gap?: number;
  /** Keys that a query sees, 0 for all before it. */
  window?: number;
  /** Multiplies queries: large scores make the softmax sharp. */
  sharpness?: number;
}

/** Arguments of attentionForward. */
export function attentionForwardArguments(data: CaseData, shape: AttentionShape): CaseArguments {
  const { lengths, heads, kvHeads, headDim, gap = 0, window = 0, sharpness = 1 } = shape;
  const rows = lengths.reduce((sum, length) => sum + length, 0);
  const width = heads * headDim;
  const kvWidth = kvHeads * headDim;
  return {
    rows,
    sequences: lengths.length,
    maxLength: Math.max(...lengths),
    heads,
    kvHeads,
    headDim,
    qStride: width + gap,
    kStride: kvWidth + 2 * gap,
    vStride: kvWidth + gap,
    oStride: width + gap,
    window,
    scale: headDim ** -0.5,
    offsets: offsetsOf(lengths),
    ...(shape.parents && { parents: Int32Array.from(shape.parents) }),
    q: data.matrix(rows, width, width + gap, sharpness),
    k: data.matrix(rows, kvWidth, kvWidth + 2 * gap),
    v: data.matrix(rows, kvWidth, kvWidth + gap),
    o: unset(rows * (width + gap)),
    lse: unset(rows * heads),
  };
}

/** Arguments of attentionBackward that belong to those of attentionForward. */
export function attentionBackwardArguments(data: CaseData, forward: CaseArguments): CaseArguments {
  const { rows, heads, headDim, oStride } = forward as Record<string, number>;
  const { o, lse } = evaluate("attentionForward", forward) as { o: Float64Array; lse: Float64Array };
  const like = (name: string): Float64Array => unset((forward[name] as Float64Array).length);
  return {
    ...forward,
    o,
    lse,
    dO: data.matrix(rows!, heads! * headDim!, oStride!),
    dq: like("q"),
    dk: like("k"),
    dv: like("v"),
    delta: like("lse"),
  };
}

export const SHAPES: Readonly<Record<string, AttentionShape>> = {
  "one token": { lengths: [1], heads: 1, kvHeads: 1, headDim: 4 },
  "7 tokens, odd width": { lengths: [7], heads: 2, kvHeads: 1, headDim: 5, gap: 1 },
  "33, 1 and 2 tokens, grouped": { lengths: [33, 1, 2], heads: 4, kvHeads: 2, headDim: 8, gap: 3 },
  "65 and 129 tokens": { lengths: [65, 129], heads: 2, kvHeads: 2, headDim: 16 },
  "128, 64 and 3 tokens, one key head": { lengths: [128, 64, 3], heads: 3, kvHeads: 1, headDim: 32 },
  "40 tokens, width 64": { lengths: [40], heads: 2, kvHeads: 2, headDim: 64 },
  // Rows of packs of 4 and of 8 numbers, the last of them one short.
  "9 tokens, width 7": { lengths: [9], heads: 3, kvHeads: 1, headDim: 7 },
  "150 tokens, width 64": { lengths: [150], heads: 2, kvHeads: 1, headDim: 64 },
  "140 tokens, width 100": { lengths: [140], heads: 1, kvHeads: 1, headDim: 100 },
  "17 tokens, width 128": { lengths: [17], heads: 1, kvHeads: 1, headDim: 128 },
  "70 tokens, sharp": { lengths: [70], heads: 2, kvHeads: 1, headDim: 16, sharpness: 12 },
  "window of 1": { lengths: [1, 70, 3], heads: 2, kvHeads: 1, headDim: 8, window: 1 },
  "window of 5": { lengths: [140, 66], heads: 2, kvHeads: 2, headDim: 5, window: 5, gap: 1 },
  "window of a tile": { lengths: [193, 64], heads: 3, kvHeads: 1, headDim: 16, window: 64 },
  "window of 70, sharp": { lengths: [300], heads: 4, kvHeads: 1, headDim: 16, window: 70, sharpness: 12 },
  "window of 130": { lengths: [129, 131, 260], heads: 2, kvHeads: 1, headDim: 16, window: 130 },
  "one answer of one token": { lengths: [1, 1], parents: [-1, 0], heads: 2, kvHeads: 1, headDim: 4 },
  "two answers, grouped": {
    lengths: [7, 5, 9, 3],
    parents: [-1, 0, 0, -1],
    heads: 4,
    kvHeads: 2,
    headDim: 5,
    gap: 1,
  },
  "prompts of a tile, answers apart from their prompts": {
    lengths: [64, 128, 10, 70, 1, 130],
    parents: [-1, -1, 1, 0, 0, 1],
    heads: 2,
    kvHeads: 1,
    headDim: 16,
  },
  // A tile of keys that begins where the last of a warp's queries is.
  "a prompt of 33, an answer of 40": {
    lengths: [33, 40],
    parents: [-1, 0],
    heads: 2,
    kvHeads: 1,
    headDim: 16,
  },
  "a prompt of 100, 3 answers": {
    lengths: [100, 20, 150, 28],
    parents: [-1, 0, 0, 0],
    heads: 4,
    kvHeads: 1,
    headDim: 16,
    sharpness: 6,
  },
  "a prompt of 131, 2 answers, window of 70": {
    lengths: [131, 90, 7],
    parents: [-1, 0, 0],
    heads: 4,
    kvHeads: 1,
    headDim: 16,
    window: 70,
  },
  "a prompt of 70, 2 answers, window of 3": {
    lengths: [70, 3, 140],
    parents: [-1, 0, 0],
    heads: 2,
    kvHeads: 2,
    headDim: 8,
    window: 3,
  },
  "window beyond the length": { lengths: [67, 3], heads: 2, kvHeads: 2, headDim: 8, window: 1e12 },
};

export const attentionCases: readonly OpCase[] = Object.entries(SHAPES).flatMap(([name, shape]) => {
  const data = new CaseData(`attention ${name}`);
  const forward = attentionForwardArguments(data, shape);
  const backward = attentionBackwardArguments(data, forward);
  return [
    { op: "attentionForward", name, args: forward, criterion: GENERAL },
    // With one key dO·v and delta are equal: what is left of their difference is the rounding of two sums of headDim terms.
    {
      op: "attentionBackward",
      name,
      args: backward,
      criterion: { kind: "general", floor: shape.window === 1 ? Math.sqrt(shape.headDim) : 1 },
    },
  ];
});
