import { CaseData, GENERAL, type OpCase, unset } from "./case.ts";

function adamWCase(count: number, step: number, settings: Readonly<Record<string, number>>): OpCase {
  const name = `${count} elements, step ${step}`;
  const data = new CaseData(`adamW ${name}`);
  const first = step === 1;
  return {
    op: "adamW",
    name,
    args: {
      count,
      step,
      learningRate: 1e-2,
      ...settings,
      gradient: data.normal(count),
      parameter: data.normal(count),
      m: first ? new Float64Array(count) : data.normal(count, 0.1),
      v: first ? new Float64Array(count) : data.normal(count, 0.3).map((value) => value * value),
    },
    criterion: GENERAL,
  };
}

export const optimizerCases: readonly OpCase[] = [
  adamWCase(1, 1, {}),
  adamWCase(33, 7, { weightDecay: 0.1 }),
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
