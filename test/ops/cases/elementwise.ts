import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";
import { ACTIVATION } from "./linear.ts";

/** embedding, rotary, activations, gated SiLU */

function embeddingCases(): OpCase[] {
  return [
    { rows: 1, cols: 1, vocab: 1, maxPositions: 1 },
    { rows: 7, cols: 33, vocab: 11, maxPositions: 9 },
    { rows: 65, cols: 129, vocab: 50, maxPositions: 70 },
    { rows: 200, cols: 8, vocab: 40, maxPositions: 33 }, // in two lists by their indices, for which CUDA's kernel has four warps
    { rows: 300, cols: 8, vocab: 40, maxPositions: 33 }, // tokens again and again
  ].flatMap((shape) =>
    [false, true].flatMap((withPositions) => {
      const { rows, cols, vocab, maxPositions } = shape;
      const name = `${rows}×${cols}${withPositions ? " with positions" : ""}`;
      const data = new CaseData(`embedding ${name}`);
      const tokens = data.integers(rows, vocab);
      const positions = withPositions && { positions: data.integers(rows, maxPositions) };
      return [
        {
          op: "embeddingForward",
          name,
          args: {
            ...shape,
            tokens,
            ...positions,
            table: data.normal(vocab * cols),
            ...(withPositions && { positionTable: data.normal(maxPositions * cols) }),
            y: unset(rows * cols),
          },
          criterion: EXACT,
        },
        {
          op: "embeddingBackward",
          name,
          args: {
            ...shape,
            tokens,
            ...positions,
            dy: data.normal(rows * cols),
            dTable: data.normal(vocab * cols),
            ...(withPositions && { dPositionTable: data.normal(maxPositions * cols) }),
          },
          criterion: EXACT,
        },
      ];
    }),
  );
}

/** Rotation tables: cos and sin of position · 10000^(−2i / rotary). */
export function rotaryTables(
  maxPositions: number,
  rotary: number,
): { cosine: Float64Array; sine: Float64Array } {
  const half = rotary / 2;
  const angle = (index: number): number =>
    Math.floor(index / half) * 10000 ** (-(2 * (index % half)) / rotary);
  const length = maxPositions * half;
  return {
    cosine: Float64Array.from({ length }, (_, index) => Math.cos(angle(index))),
    sine: Float64Array.from({ length }, (_, index) => Math.sin(angle(index))),
  };
}

function rotaryCases(): OpCase[] {
  return [
    { rows: 1, heads: 1, headDim: 2, rotary: 2, gap: 0 },
    { rows: 7, heads: 3, headDim: 10, rotary: 6, gap: 5 },
    { rows: 33, heads: 2, headDim: 64, rotary: 64, gap: 0 },
    { rows: 65, heads: 4, headDim: 16, rotary: 16, gap: 7 },
    { rows: 21, heads: 5, headDim: 8, rotary: 8, gap: 3 },
    { rows: 9, heads: 3, headDim: 4, rotary: 4, gap: 0 },
    { rows: 9, heads: 11, headDim: 2, rotary: 2, gap: 0 },
  ].flatMap(({ gap, ...shape }) =>
    [false, true].map((inverse) => {
      const name = `${shape.rows} rows, ${shape.heads} heads, ${shape.rotary} of ${shape.headDim}${inverse ? ", inverse" : ""}`;
      const data = new CaseData(`rotary ${name}`);
      const width = shape.heads * shape.headDim;
      const maxPositions = 40;
      return {
        op: "rotary",
        name,
        args: {
          ...shape,
          rowStride: width + gap,
          maxPositions,
          inverse,
          positions: data.integers(shape.rows, maxPositions),
          ...rotaryTables(maxPositions, shape.rotary),
          x: data.matrix(shape.rows, width, width + gap),
        },
        criterion: GENERAL,
      };
    }),
  );
}

function activationCases(): OpCase[] {
  return Object.entries(ACTIVATION).flatMap(([activation, number]) =>
    [1, 33, 1000].flatMap((count): OpCase[] => {
      const data = new CaseData(`activation ${activation} ${count}`);
      const dy = data.normal(count);
      const x = data.normal(count, 3);
      return [
        {
          op: "activationForward",
          name: `${activation}, ${count} elements`,
          args: { activation: number, count, x, y: unset(count) },
          criterion: GENERAL,
        },
        {
          op: "activationBackward",
          name: `${activation}, ${count} elements${count === 33 ? ", in place" : ""}`,
          args: { activation: number, count, x, dy, dx: count === 33 ? dy : unset(count) },
          criterion: GENERAL,
        },
        {
          op: "activationBackward",
          name: `${activation}, ${count} elements${count === 33 ? ", in place" : ""}, with the activation`,
          args: { activation: number, count, x, dy, dx: count === 33 ? dy : unset(count), y: unset(count) },
          criterion: GENERAL,
        },
      ];
    }),
  );
}

function gatedSiluCases(): OpCase[] {
  return [
    { rows: 1, cols: 1, gap: 0 },
    { rows: 7, cols: 33, gap: 33 },
    { rows: 33, cols: 129, gap: 2 },
  ].flatMap(({ rows, cols, gap }) => {
    const data = new CaseData(`gatedSilu ${rows}×${cols}`);
    const inputStride = cols + gap;
    const inputs = {
      rows,
      cols,
      inputStride,
      gate: data.matrix(rows, cols, inputStride, 3),
      up: data.matrix(rows, cols, inputStride),
    };
    const dy = data.normal(rows * cols);
    const length = rows * inputStride;
    return [
      {
        op: "gatedSiluForward",
        name: `${rows}×${cols}`,
        args: { ...inputs, y: unset(rows * cols) },
        criterion: GENERAL,
      },
      {
        op: "gatedSiluBackward",
        name: `${rows}×${cols}`,
        args: { ...inputs, dy, dGate: unset(length), dUp: unset(length) },
        criterion: GENERAL,
      },
      {
        op: "gatedSiluBackward",
        name: `${rows}×${cols}, in place, with the activation`,
        args: { ...inputs, dy, dGate: inputs.gate, dUp: inputs.up, y: unset(rows * cols) },
        criterion: GENERAL,
      },
    ];
  });
}

export const elementwiseCases: readonly OpCase[] = [
  ...embeddingCases(),
  ...rotaryCases(),
  ...activationCases(),
  ...gatedSiluCases(),
];
