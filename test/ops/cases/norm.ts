import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, GENERAL, type OpCase, unset } from "./case.ts";

const NORMS = ["rmsNorm", "layerNorm"] as const;
export type Norm = (typeof NORMS)[number];

/** Arguments of the forward op, with rows whose mean is not 0. */
export function normForwardArguments(norm: Norm, data: CaseData, rows: number, cols: number): CaseArguments {
  return {
    rows,
    cols,
    eps: 1e-5,
    x: data.normal(rows * cols, 1.5, 0.7),
    weight: data.normal(cols, 0.5, 1),
    ...(norm === "layerNorm" && { bias: data.normal(cols), mean: unset(rows) }),
    rstd: unset(rows),
    y: unset(rows * cols),
  };
}

/** Arguments of the backward op that belong to those of a forward op. */
export function normBackwardArguments(
  norm: Norm,
  data: CaseData,
  forward: CaseArguments,
  options: { accumulateDx?: boolean; parameters?: boolean } = {},
): CaseArguments {
  const { rows, cols, x, weight } = forward as {
    rows: number;
    cols: number;
    x: Float64Array;
    weight: Float64Array;
  };
  const { rstd, mean } = evaluate(`${norm}Forward`, forward) as { rstd: Float64Array; mean?: Float64Array };
  const { accumulateDx = false, parameters = true } = options;
  return {
    rows,
    cols,
    accumulateDx,
    x,
    weight,
    rstd,
    ...(mean && { mean }),
    dy: data.normal(rows * cols),
    dx: accumulateDx ? data.normal(rows * cols) : unset(rows * cols),
    ...(parameters && { dWeight: data.normal(cols) }),
    ...(parameters && norm === "layerNorm" && { dBias: data.normal(cols) }),
  };
}

const SHAPES = [
  [1, 1],
  [1, 7],
  [2, 33],
  [7, 64],
  [33, 65],
  [65, 129],
  [3, 1000],
] as const;

function casesOf(norm: Norm): OpCase[] {
  return SHAPES.flatMap(([rows, cols], index) => {
    const data = new CaseData(`${norm} ${rows}×${cols}`);
    const forward = normForwardArguments(norm, data, rows, cols);
    const options = { accumulateDx: index % 2 === 1, parameters: index !== 3 };
    const suffix = `${options.accumulateDx ? ", dx accumulated" : ""}${options.parameters ? "" : ", parameters frozen"}`;
    // In a row of one element the terms of dx cancel; they have the size of rstd, which is eps^(-1/2) in LayerNorm.
    const criterion = { kind: "general", floor: cols === 1 ? 316 : 0 } as const;
    return [
      { op: `${norm}Forward`, name: `${rows}×${cols}`, args: forward, criterion },
      {
        op: `${norm}Backward`,
        name: `${rows}×${cols}${suffix}`,
        args: normBackwardArguments(norm, data, forward, options),
        criterion,
      },
    ];
  });
}

export interface HeadNormShape {
  readonly rows: number;
  readonly heads: number;
  readonly headDim: number;
  /** Elements between the rows. */
  readonly gap?: number;
  /** Keep what the backward pass needs. Default true. */
  readonly kept?: boolean;
}

export function headNormForwardArguments(data: CaseData, shape: HeadNormShape): CaseArguments {
  const { rows, heads, headDim, gap = 0, kept = true } = shape;
  const width = heads * headDim;
  return {
    rows,
    heads,
    headDim,
    stride: width + gap,
    eps: 1e-5,
    weight: data.normal(headDim, 0.5, 1),
    x: data.matrix(rows, width, width + gap, 1.5),
    ...(kept && { normalised: unset(rows * width), rstd: unset(rows * heads) }),
  };
}

/** Arguments of the backward op that belong to those of a forward op with what it keeps. */
export function headNormBackwardArguments(
  data: CaseData,
  forward: CaseArguments,
  parameters = true,
): CaseArguments {
  const { x: _x, eps: _eps, ...shared } = forward;
  const [rows, width, stride] = [
    forward["rows"] as number,
    (forward["heads"] as number) * (forward["headDim"] as number),
    forward["stride"] as number,
  ];
  const { normalised, rstd } = evaluate("headNormForward", forward);
  return {
    ...shared,
    normalised: normalised!,
    rstd: rstd!,
    dx: data.matrix(rows, width, stride),
    ...(parameters && { dWeight: data.normal(forward["headDim"] as number) }),
  };
}

const HEAD_SHAPES: readonly HeadNormShape[] = [
  { rows: 1, heads: 1, headDim: 2 },
  { rows: 7, heads: 3, headDim: 10, gap: 5 },
  { rows: 33, heads: 2, headDim: 64 },
  { rows: 65, heads: 4, headDim: 33, gap: 70 },
  { rows: 5, heads: 2, headDim: 7, gap: 3, kept: false },
];

function headNormCases(): OpCase[] {
  return HEAD_SHAPES.flatMap((shape, index) => {
    const { rows, heads, headDim, kept = true } = shape;
    const name = `${rows} rows, ${heads} heads of ${headDim}${kept ? "" : ", nothing kept"}`;
    const data = new CaseData(`headNorm ${name}`);
    const forward = headNormForwardArguments(data, shape);
    const forwardCase = { op: "headNormForward", name, args: forward, criterion: GENERAL };
    if (!kept) return [forwardCase];
    const args = headNormBackwardArguments(data, forward, index !== 2);
    return [forwardCase, { op: "headNormBackward", name, args, criterion: GENERAL }];
  });
}

export const normCases: readonly OpCase[] = [...NORMS.flatMap(casesOf), ...headNormCases()];
