import { CaseData, type OpCase } from "../../test/ops/cases/case.ts";
import { groupPolicyArguments, referenceArguments } from "../../test/ops/cases/group-policy.ts";
import { rewardCase, tokenCases } from "../../test/ops/cases/losses.ts";
import { ktoArguments, preferenceArguments, sumArguments } from "../../test/ops/cases/preference.ts";
import type { KernelArguments } from "../../test/support/kernels.ts";
import { type CaseArguments, toKernelArguments } from "../../test/support/op-arguments.ts";
import { type OpBench, uniformArray } from "./op-bench.ts";

// The losses and what stands around them, on the arguments that their tests make.

/** How many sequences of how many tokens, and how many pairs of answers. */
interface Sizes {
  readonly sequences: number;
  readonly length: number;
  readonly pairs: number;
}

/** The arguments are the same wherever it runs. */
type LossBench = OpBench & { readonly args: () => KernelArguments };

function fromCase(op: string, label: string, args: () => CaseArguments): LossBench {
  return { op, label, args: () => toKernelArguments(op, args(), "float32") };
}

const lengthsOf = ({ sequences, length }: Sizes): number[] => new Array<number>(sequences).fill(length);

function ofTokens(sizes: Sizes, label: string): LossBench[] {
  let made: readonly OpCase[] | undefined; // of all six: of a million tokens they take a while
  const cases = (): readonly OpCase[] => {
    made ??= tokenCases(lengthsOf(sizes));
    return made;
  };
  return ["whiten", "klReward", "gae", "ppoPolicyLoss", "ppoValueLoss", "tokenNllLoss"].map((op) =>
    fromCase(op, label, () => cases().find((each) => each.op === op)!.args),
  );
}

function wpoWeight({ sequences, length }: Sizes, label: string): LossBench {
  const [rows, pairs] = [sequences * length, sequences >> 1];
  return {
    op: "wpoWeight",
    label,
    args: () => ({
      ...{ type: "float32", rows, sequences, pairs },
      offsets: Int32Array.from({ length: sequences + 1 }, (_, s) => s * length),
      chosen: Int32Array.from({ length: pairs }, (_, pair) => 2 * pair),
      rejected: Int32Array.from({ length: pairs }, (_, pair) => 2 * pair + 1),
      ...{ mask: uniformArray(rows).fill(1), logProb: uniformArray(rows), lse: uniformArray(rows) },
      ...{ lseHalf: uniformArray(rows), weight: new Float32Array(pairs) },
    }),
  };
}

function ofSequences(sizes: Sizes, label: string): LossBench[] {
  const sums = () => sumArguments(new CaseData("bench sums"), lengthsOf(sizes));
  return [
    ...(["token", "sequence-mean"] as const).map((level) =>
      fromCase("groupPolicyLoss", `${label}, ratios of ${level}`, () => {
        const data = new CaseData("bench groupPolicyLoss");
        const args = groupPolicyArguments(data, level, "clipped", lengthsOf(sizes));
        return { ...args, ...referenceArguments(data, args) };
      }),
    ),
    fromCase("sequenceSum", label, sums),
    fromCase("sequenceSumBackward", label, () => {
      const { x, sum, ...packed } = sums();
      return { ...packed, dSum: sum as Float64Array, dx: x as Float64Array };
    }),
    wpoWeight(sizes, label),
  ];
}

const ofAnswers = ({ pairs }: Sizes): LossBench[] => [
  fromCase("rewardLoss", `${pairs} pairs`, () => rewardCase("logistic", pairs, 0, false).args),
  ...(["sigmoid", "aot"] as const).map((kind) =>
    fromCase("preferenceLoss", `${pairs} pairs, ${kind}`, () =>
      preferenceArguments(new CaseData("bench preference"), kind, pairs, false),
    ),
  ),
  fromCase("ktoLoss", `${2 * pairs} answers`, () => ktoArguments(new CaseData("bench kto"), 2 * pairs)),
];

export function lossBenchesOf(sizes: Sizes): LossBench[] {
  const label = `${sizes.sequences * sizes.length} tokens`;
  return [...ofTokens(sizes, label), ...ofSequences(sizes, label), ...ofAnswers(sizes)];
}

export const lossBenches: readonly OpBench[] = lossBenchesOf({ sequences: 512, length: 128, pairs: 4096 });
