import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, type OpCase, offsetsOf, responseMask, unset } from "./case.ts";

/** As the engine numbers them. */
export const RATIO_LEVELS = { token: 0, "sequence-mean": 1, "sequence-sum": 2 } as const;
export const SURROGATES = { clipped: 0, truncated: 1 } as const;

/** Numbers of stats (the op's kStatCount). */
export const GROUP_POLICY_STATS = 8;

// Losses are sums of terms of either sign, and a sum near 0 keeps the rounding of its terms.
const SUMS = { kind: "general", floor: 1 } as const;

/**
 * Answers whose ratios, of tokens or of whole sequences, are e^±0.1 and e^±0.5 up to 1e-2: never near the clip at 0.8 and 1.3.
 */
export function groupPolicyArguments(
  data: CaseData,
  level: keyof typeof RATIO_LEVELS,
  surrogate: keyof typeof SURROGATES,
  lengths: readonly number[],
): CaseArguments {
  const rows = lengths.reduce((sum, length) => sum + length, 0);
  const mask = responseMask(data, lengths);
  const offsets = offsetsOf(lengths);
  const logProb = data.normal(rows, 0.5, -2);
  const oldLogProb = logProb.slice();
  const change = (i: number): number => [0.1, -0.1, 0.5, -0.5][i % 4]! + data.uniform(-0.01, 0.01);
  lengths.forEach((_, s) => {
    const [begin, end] = [offsets[s]!, offsets[s + 1]!];
    const tokens = mask.subarray(begin, end).reduce((sum, each) => sum + each, 0);
    const shared = change(s);
    for (let t = begin; t < end; t++) {
      if (level === "token") oldLogProb[t]! -= change(t);
      else oldLogProb[t]! -= level === "sequence-mean" ? shared : shared / Math.max(1, tokens);
    }
  });
  return {
    rows,
    sequences: lengths.length,
    level: RATIO_LEVELS[level],
    surrogate: SURROGATES[surrogate],
    lowestRatio: 0.8,
    highestRatio: 1.3,
    offsets,
    mask,
    weight: Float64Array.from(lengths, () => data.uniform(0.01, 0.2)),
    advantage: data.normal(lengths.length),
    logProb,
    oldLogProb,
    dLogProb: unset(rows),
    stats: unset(GROUP_POLICY_STATS),
  };
}

/** The arguments with an advantage for each token in place of one for each answer. */
export function withTokenAdvantages(data: CaseData, args: CaseArguments): CaseArguments {
  const { advantage: _, ...others } = args;
  return { ...others, tokenAdvantage: data.normal(args["rows"] as number) };
}

export function referenceArguments(data: CaseData, { logProb }: CaseArguments): CaseArguments {
  const refLogProb = (logProb as Float64Array).map((value) => value + data.uniform(-0.4, 0.4));
  return { klCoefficient: 0.07, refLogProb };
}

const BATCHES: readonly (readonly number[])[] = [[2], [7, 1, 2], [33, 65, 3, 129, 4]];
const LEVELS = Object.keys(RATIO_LEVELS) as (keyof typeof RATIO_LEVELS)[];
const KINDS = Object.keys(SURROGATES) as (keyof typeof SURROGATES)[];

function casesOf(level: keyof typeof RATIO_LEVELS, surrogate: keyof typeof SURROGATES): OpCase[] {
  return BATCHES.flatMap((lengths) => {
    const name = `${surrogate}, ratios of ${level}, ${lengths.join(", ")} tokens`;
    const data = new CaseData(`groupPolicyLoss ${name}`);
    const args = groupPolicyArguments(data, level, surrogate, lengths);
    const withReference = { ...args, ...referenceArguments(data, args) };
    const forms: [string, CaseArguments][] = [
      [name, args],
      [`${name}, KL`, withReference],
      [`${name}, weighed KL`, { ...withReference, weighKl: 1 }],
    ];
    if (level === "token") {
      forms.push([`${name}, advantages of tokens, KL`, withTokenAdvantages(data, withReference)]);
    }
    return forms.map(([title, given]) => ({
      op: "groupPolicyLoss",
      name: title,
      args: given,
      criterion: SUMS,
    }));
  });
}

export const groupPolicyCases: readonly OpCase[] = [
  ...LEVELS.flatMap((level) => KINDS.flatMap((surrogate) => casesOf(level, surrogate))),
  {
    op: "groupPolicyLoss",
    name: "no answer among the sequences",
    args: {
      ...groupPolicyArguments(new CaseData("groupPolicyLoss of prompts"), "sequence-mean", "clipped", [3, 2]),
      mask: new Float64Array(5),
    },
    criterion: EXACT,
  },
];
