import { kernels } from "../../support/kernels.ts";
import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";

const SEED = 12345678901;
const LAYER = 37;

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
  return {
    rows,
    cols,
    xStride: stride,
    yStride: stride,
    probability,
    seed: SEED,
    layer: LAYER,
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

/** Each row is kept as it were by a hair: the random word of its last element is the bound that smaller ones are dropped by. */
function dropoutAtBound(): OpCase {
  const [rows, cols] = [1, 10];
  const name = `${rows}×${cols}, a random word that is the bound`;
  const args = dropoutArguments(new CaseData(`dropout ${name}`), { rows, cols, probability: 0.5 });
  const [key] = args["keys"] as BigInt64Array;
  const last = cols - 1;
  const words = kernels.philox(
    BigInt(SEED),
    BigInt.asUintN(64, key!),
    (BigInt(LAYER) << 32n) + BigInt(last >> 2),
  );
  return {
    op: "dropout",
    name,
    args: { ...args, probability: words[last % 4]! / 2 ** 32 },
    criterion: GENERAL,
  };
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
  dropoutAtBound(),
  dropoutCase("150×301, a tenth, many tasks", { rows: 150, cols: 301, probability: 0.1 }),
];
