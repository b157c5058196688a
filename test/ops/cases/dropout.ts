import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";

interface DropoutOptions {
  rows: number;
  cols: number;
  probability: number;
  gap?: number;
  accumulate?: boolean;
  inPlace?: boolean;
}

/** Arguments of dropout, drawn from `data`; keys use all 64 bits. */
export function dropoutArguments(data: CaseData, options: DropoutOptions): CaseArguments {
  const { rows, cols, probability, gap = 0, accumulate = false, inPlace = false } = options;
  const stride = cols + gap;
  const x = data.matrix(rows, cols, stride);
  const y = inPlace ? x : accumulate ? data.matrix(rows, cols, stride) : unset(rows * stride);
  const halves = data.integers(2 * rows, 2 ** 31 - 1);
  const keys = BigInt64Array.from({ length: rows }, (_, row) =>
    BigInt.asIntN(64, (BigInt(halves[2 * row]!) << 33n) ^ BigInt(halves[2 * row + 1]!)),
  );
  const seed = 12345678901;
  return {
    rows,
    cols,
    xStride: stride,
    yStride: stride,
    probability,
    seed,
    layer: 37,
    accumulate,
    keys,
    x,
    y,
  };
}

function dropoutCase(name: string, options: DropoutOptions): OpCase {
  const args = dropoutArguments(new CaseData(`dropout ${name}`), options);
  // Halves and quarters are multiplied by exactly; thirds are rounded, and so is a sum.
  const exact = !options.accumulate && [0, 0.5, 0.75].includes(options.probability);
  return { op: "dropout", name, args, criterion: exact ? EXACT : GENERAL };
}

export const dropoutCases: readonly OpCase[] = [
  dropoutCase("1×1, half", { rows: 1, cols: 1, probability: 0.5 }),
  dropoutCase("7×33 strided, half", { rows: 7, cols: 33, gap: 5, probability: 0.5 }),
  dropoutCase("3×600, more columns than one mask, three quarters, in place", {
    rows: 3,
    cols: 600,
    probability: 0.75,
    inPlace: true,
  }),
  dropoutCase("5×257, nothing dropped", { rows: 5, cols: 257, probability: 0 }),
  dropoutCase("9×70 accumulated, a tenth", { rows: 9, cols: 70, gap: 2, probability: 0.1, accumulate: true }),
  dropoutCase("150×301, a tenth, many tasks", { rows: 150, cols: 301, probability: 0.1 }),
];
