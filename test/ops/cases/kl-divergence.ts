import type { CaseArguments } from "../../support/op-arguments.ts";
import { evaluate } from "../../support/op-arguments.ts";
import { CaseData, type OpCase, unset } from "./case.ts";
import { type TokenLogProbShape, tokenLogProbForwardArguments } from "./token-log-prob.ts";

export const KL_DIRECTION = { reverse: 0, forward: 1 } as const;

export interface KlDivergenceShape extends TokenLogProbShape {
  direction: keyof typeof KL_DIRECTION;
  /** The reference's hidden width; by default the policy's. */
  refCols?: number;
  /** The reference is the policy with weights and hidden states moved by this much, not another model. */
  near?: number;
}

/** Policy and reference, each as arguments of tokenLogProbForward. */
export function policyAndReference(
  data: CaseData,
  shape: KlDivergenceShape,
): { policy: CaseArguments; reference: CaseArguments } {
  const policy = tokenLogProbForwardArguments(data, shape);
  const { rows, vocab, near } = shape;
  const refCols = shape.refCols ?? shape.cols;
  const moved = (name: string): Float64Array => {
    const shifts = data.normal((policy[name] as Float64Array).length, near);
    return (policy[name] as Float64Array).map((value, i) => value + shifts[i]!);
  };
  const { logits: _, ...shared } = policy;
  const reference = {
    ...shared,
    cols: refCols,
    x: near === undefined ? data.normal(rows * refCols, shape.sharpness ?? 1) : moved("x"),
    weight: near === undefined ? data.normal(vocab * refCols, 1.5 / Math.sqrt(refCols)) : moved("weight"),
    logProb: unset(rows),
    lse: unset(rows),
    entropy: unset(rows),
  };
  return { policy, reference };
}

/** Arguments of klDivergenceForward. */
export function klDivergenceForwardArguments(data: CaseData, shape: KlDivergenceShape): CaseArguments {
  const { policy, reference } = policyAndReference(data, shape);
  const { lse, logits } = evaluate("tokenLogProbForward", policy);
  const { tokens: _tokens, logProb: _logProb, entropy: _entropy, ...shared } = policy;
  return {
    ...shared,
    refCols: reference["cols"]!,
    direction: KL_DIRECTION[shape.direction],
    refX: reference["x"]!,
    refWeight: reference["weight"]!,
    lse: lse!,
    refLse: evaluate("tokenLogProbForward", reference)["lse"]!,
    ...(logits && { logits }),
    kl: unset(shape.rows),
  };
}

/** Arguments of klDivergenceBackward that belong to those of klDivergenceForward. */
export function klDivergenceBackwardArguments(
  data: CaseData,
  forward: CaseArguments,
  { dWeight }: { dWeight: boolean },
): CaseArguments {
  const { rows, cols, vocab } = forward as Record<string, number>;
  return {
    ...forward,
    kl: evaluate("klDivergenceForward", forward)["kl"]!,
    dKl: data.normal(rows!),
    dx: data.normal(rows! * cols!),
    ...(dWeight && { dWeight: data.normal(vocab! * cols!) }),
  };
}

const SHAPES: readonly [string, Omit<KlDivergenceShape, "direction">, boolean][] = [
  ["2 rows, vocabulary 5", { rows: 2, cols: 3, vocab: 5, count: 1 }, true],
  [
    "9 rows, vocabulary 65, a wider reference",
    { rows: 9, cols: 33, refCols: 47, vocab: 65, count: 5, temperature: 0.7 },
    true,
  ],
  [
    "40 rows, vocabulary 1000, logits kept",
    { rows: 40, cols: 64, refCols: 24, vocab: 1000, count: 33, keepLogits: true },
    true,
  ],
  [
    "17 rows, vocabulary 257, head frozen",
    { rows: 17, cols: 16, vocab: 257, count: 16, temperature: 1.3 },
    false,
  ],
  [
    "33 rows, vocabulary 4100, tempered",
    { rows: 33, cols: 24, refCols: 17, vocab: 4100, count: 20, temperature: 0.8 },
    true,
  ],
  ["30 rows, several tokens from a row", { rows: 30, cols: 17, vocab: 130, count: 23, sources: 9 }, true],
  [
    "1100 rows, all tokens from a few, logits kept",
    { rows: 1100, cols: 5, vocab: 33, count: 1090, sources: 3, temperature: 0.9, keepLogits: true },
    true,
  ],
  ["130 rows, nearly the same models", { rows: 130, cols: 31, vocab: 513, count: 129, near: 1e-3 }, true],
  ["12 rows, sharp", { rows: 12, cols: 20, vocab: 130, count: 11, sharpness: 12 }, true],
];

export const klDivergenceCases: readonly OpCase[] = SHAPES.flatMap(([label, shape, dWeight]) =>
  (["reverse", "forward"] as const).flatMap((direction): OpCase[] => {
    const name = `${label}, ${direction}`;
    const data = new CaseData(`klDivergence ${name}`);
    const forward = klDivergenceForwardArguments(data, { ...shape, direction });
    const backward = klDivergenceBackwardArguments(data, forward, { dWeight });
    return [
      // Terms of the size of a probability cancel.
      { op: "klDivergenceForward", name, args: forward, criterion: { kind: "general", floor: 1 } },
      {
        op: "klDivergenceBackward",
        name,
        args: { ...backward, ...(shape.temperature !== undefined && { lossScale: 32 }) },
        criterion: { kind: "general", floor: 1 },
      },
    ];
  }),
);
