import { CaseData, EXACT, GENERAL, type OpCase, unset } from "./case.ts";

/** An update; one `with master weights` rounds a copy of them, which is all that 16-bit parameters then are. */
function adamWCase(
  count: number,
  step: number,
  settings: Readonly<Record<string, number>>,
  weights: "" | ", master weights" = "",
): OpCase {
  const name = `${count} elements, step ${step}${weights}`;
  const data = new CaseData(`adamW ${name}`);
  const first = step === 1;
  const values = data.normal(count);
  return {
    op: "adamW",
    name,
    args: {
      count,
      step,
      learningRate: 1e-2,
      ...settings,
      gradient: data.normal(count),
      ...(weights ? { parameter: unset(count), master: values } : { parameter: values }),
      m: first ? new Float64Array(count) : data.normal(count, 0.1),
      v: first ? new Float64Array(count) : data.normal(count, 0.3).map((value) => value * value),
    },
    criterion: GENERAL,
  };
}

/** Numbers whose nearest neighbours in 16 bits are as near as each other, odd and even, and what is beyond the largest and below the least. */
const HARD_TO_ROUND = [
  ...[1 + 2 ** -8, 1 + 3 * 2 ** -8, -1 - 2 ** -8, 1 + 2 ** -8 + 2 ** -20, 1 + 2 ** -11, 1 + 3 * 2 ** -11],
  ...[0, -0, 3.4e38, -3.4e38, 65504, 65519, 65520, 1e-40, 2 ** -25],
];

export const optimizerCases: readonly OpCase[] = [
  ...[0, 1, 33, 5000].map((count): OpCase => {
    const x = new CaseData(`narrow ${count}`).normal(count);
    x.set(HARD_TO_ROUND.slice(0, count));
    const scaled = count > 1000 && { scale: 2 ** -7 };
    return {
      op: "narrow",
      name: `${count} elements`,
      args: { count, ...scaled, x, y: unset(count) },
      criterion: EXACT,
    };
  }),
  adamWCase(1, 1, {}),
  adamWCase(33, 7, { weightDecay: 0.1 }),
  adamWCase(33, 7, { weightDecay: 0.1 }, ", master weights"),
  adamWCase(1003, 3, { gradientScale: 2 }, ", master weights"),
  adamWCase(1000, 250, { weightDecay: 0.01, gradientScale: 0.37, beta1: 0.8, beta2: 0.95, eps: 1e-5 }),
  ...[0, 1, 33, 39, 5000].map((count): OpCase => {
    const data = new CaseData(`squaredNorm ${count}`);
    return {
      op: "squaredNorm",
      name: `${count} elements`,
      args: { count, x: data.normal(count), out: unset(1) },
      criterion: { kind: "relative", bound: 1e-13 },
    };
  }),
];
