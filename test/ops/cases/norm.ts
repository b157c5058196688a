import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, type OpCase, unset } from "./case.ts";

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

export const normCases: readonly OpCase[] = NORMS.flatMap(casesOf);
