import { CaseData } from "../../test/ops/cases/case.ts";
import { groupPolicyArguments, referenceArguments } from "../../test/ops/cases/group-policy.ts";
import { rewardCase, tokenCases } from "../../test/ops/cases/losses.ts";
import { ktoArguments, preferenceArguments, sumArguments } from "../../test/ops/cases/preference.ts";
import { type CaseArguments, toKernelArguments } from "../../test/support/op-arguments.ts";
import { type OpBench, uniformArray } from "./op-bench.ts";

// The losses and what stands around them, on the arguments that their tests make.

const SEQUENCES = 512;
const LENGTH = 128;
const TOKENS = SEQUENCES * LENGTH;
const PAIRS = 4096;
const lengths = new Array<number>(SEQUENCES).fill(LENGTH);
const offsets = Int32Array.from({ length: SEQUENCES + 1 }, (_, s) => s * LENGTH);

function fromCase(op: string, label: string, args: () => CaseArguments, more?: Partial<OpBench>): OpBench {
  return { op, label, args: () => toKernelArguments(op, args(), "float32"), ...more };
}

const ofTokens = ["whiten", "klReward", "gae", "ppoPolicyLoss", "ppoValueLoss", "tokenNllLoss"].map((op) =>
  fromCase(op, `${TOKENS} tokens`, () => tokenCases(lengths).find((each) => each.op === op)!.args),
);

const ofSequences: readonly OpBench[] = [
  ...(["token", "sequence-mean"] as const).map((level) =>
    fromCase("groupPolicyLoss", `${TOKENS} tokens, ratios of ${level}`, () => {
      const data = new CaseData("bench groupPolicyLoss");
      const args = groupPolicyArguments(data, level, "clipped", lengths);
      return { ...args, ...referenceArguments(data, args) };
    }),
  ),
  fromCase("sequenceSum", `${TOKENS} tokens`, () => sumArguments(new CaseData("bench sums"), lengths)),
  fromCase("sequenceSumBackward", `${TOKENS} tokens`, () => {
    const { x, sum, ...packed } = sumArguments(new CaseData("bench sums"), lengths);
    return { ...packed, dSum: sum as Float64Array, dx: x as Float64Array };
  }),
  {
    op: "wpoWeight",
    label: `${TOKENS} tokens`,
    args: () => ({
      ...{ type: "float32", rows: TOKENS, sequences: SEQUENCES, pairs: SEQUENCES / 2, offsets },
      chosen: Int32Array.from({ length: SEQUENCES / 2 }, (_, pair) => 2 * pair),
      rejected: Int32Array.from({ length: SEQUENCES / 2 }, (_, pair) => 2 * pair + 1),
      ...{ mask: uniformArray(TOKENS).fill(1), logProb: uniformArray(TOKENS), lse: uniformArray(TOKENS) },
      ...{ lseHalf: uniformArray(TOKENS), weight: new Float32Array(SEQUENCES / 2) },
    }),
  },
];

const ofAnswers: readonly OpBench[] = [
  fromCase("rewardLoss", `${PAIRS} pairs`, () => rewardCase("logistic", PAIRS, 0, false).args),
  ...(["sigmoid", "aot"] as const).map((kind) =>
    fromCase("preferenceLoss", `${PAIRS} pairs, ${kind}`, () =>
      preferenceArguments(new CaseData("bench preference"), kind, PAIRS, false),
    ),
  ),
  fromCase("ktoLoss", `${2 * PAIRS} answers`, () => ktoArguments(new CaseData("bench kto"), 2 * PAIRS)),
];

export const lossBenches: readonly OpBench[] = [...ofTokens, ...ofSequences, ...ofAnswers];
