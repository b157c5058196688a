import type { CaseArguments } from "../../support/op-arguments.ts";
import { CaseData, EXACT, type OpCase, offsetsOf, responseMask, unset } from "./case.ts";

/** The numbers of csrc/ops/preference.h's PreferenceKind, in its order. */
export const PREFERENCE_KINDS = [
  "sigmoid",
  "hinge",
  "ipo",
  "exoPair",
  "robust",
  "discopop",
  "aot",
  "aotUnpaired",
  "oddsRatio",
  "ncaPair",
  "bcoPair",
  "sppoHard",
  "apoZero",
  "apoDown",
] as const;
export type PreferenceKind = (typeof PREFERENCE_KINDS)[number];

/** The kinds that are functions of the margin, which all f-divergences are for. */
export const MARGIN_KINDS = PREFERENCE_KINDS.slice(0, 6);
export const F_DIVERGENCES = { reverseKl: 0, forwardKl: 1, js: 2, alpha: 3 } as const;

/** Numbers of stats of each loss (its kStatCount). */
export const PREFERENCE_STATS = 8;
export const KTO_STATS = 7;

const SUMS = { kind: "general", floor: 1 } as const;

export const sorts = (kind: PreferenceKind): boolean => kind === "aot" || kind === "aotUnpaired";

/** What a kind needs of its settings. */
function settingsOf(kind: PreferenceKind): CaseArguments {
  return {
    kind: PREFERENCE_KINDS.indexOf(kind),
    lengthNormalized: kind === "oddsRatio",
    labelSmoothing: kind === "exoPair" || kind === "robust" || sorts(kind) ? 0.1 : 0,
  };
}

/** Pairs among more sequences than they need, one answer in two pairs: the prompts of a shared batch lie between. */
export function preferenceArguments(
  data: CaseData,
  kind: PreferenceKind,
  pairs: number,
  withEverything: boolean,
): CaseArguments {
  const sequences = 2 * pairs + 3;
  const order = data.permutation(sequences);
  const chosen = order.slice(0, pairs);
  const rejected = order.slice(pairs, 2 * pairs);
  if (pairs > 2) rejected[1] = rejected[0]!;
  const logProb = data.normal(sequences, 2, -12).map((value) => Math.min(value, -0.1));
  const noise = data.normal(sequences, 2);
  const reference = kind !== "oddsRatio" && { refLogProb: logProb.map((value, s) => value + noise[s]!) };
  const optional = withEverything && {
    ...(!sorts(kind) && { lengthNormalized: true, pairWeight: data.normal(pairs, 0.1, 0.6) }),
    base: data.normal(sequences),
    statsPerToken: true,
    margin: 0.3,
    ...(kind === "sigmoid" && { labelSmoothing: 0.2 }),
  };
  return {
    sequences,
    pairs,
    ...settingsOf(kind),
    beta: 0.4,
    discopopTau: 0.5,
    scale: 1 / pairs,
    chosen,
    rejected,
    tokens: data.integers(sequences, 9).map((count) => count + 1),
    logProb,
    ...reference,
    ...optional,
    dLogProb: unset(sequences),
    ...(sorts(kind) && { order: new Int32Array(2 * pairs).fill(-1) }),
    stats: unset(PREFERENCE_STATS),
  };
}

export function ktoArguments(data: CaseData, sequences: number): CaseArguments {
  const logProb = data.normal(sequences, 2, -12);
  const noise = data.normal(sequences, 2);
  return {
    sequences,
    beta: 0.3,
    kl: 0.7,
    desirableWeight: 1.3,
    undesirableWeight: 0.8,
    scale: 1 / sequences,
    label: data.integers(sequences, 3).map((each) => each - 1),
    logProb,
    refLogProb: logProb.map((value, s) => value + noise[s]!),
    dLogProb: unset(sequences),
    stats: unset(KTO_STATS),
  };
}

export function sumArguments(data: CaseData, lengths: readonly number[]): CaseArguments {
  const rows = lengths.reduce((sum, length) => sum + length, 0);
  return {
    rows,
    sequences: lengths.length,
    offsets: offsetsOf(lengths),
    weight: responseMask(data, lengths).map((selected) => selected * data.uniform(0.5, 2)),
    x: data.normal(rows, 1, -2),
    sum: unset(lengths.length),
  };
}

function sumCases(lengths: readonly number[]): OpCase[] {
  const name = `${lengths.join(", ")} tokens`;
  const data = new CaseData(`sequence sums of ${name}`);
  const { x, sum, ...packed } = sumArguments(data, lengths);
  const rows = (x as Float64Array).length;
  const backward = { ...packed, dSum: data.normal(lengths.length), dx: unset(rows) };
  // The first token of a sequence has no log-prob: whatever stands there is not read.
  const gaps = (packed["weight"] as Float64Array).map((weight, t) =>
    weight === 0 ? Number.NaN : (x as Float64Array)[t]!,
  );
  return [
    { op: "sequenceSum", name, args: { ...packed, x: gaps, sum: sum! }, criterion: SUMS },
    { op: "sequenceSumBackward", name, args: backward, criterion: SUMS },
    {
      op: "sequenceSumBackward",
      name: `${name}, added to others`,
      args: { ...backward, base: data.normal(rows) },
      criterion: SUMS,
    },
  ];
}

function wpoCase(lengths: readonly number[]): OpCase {
  const name = `${lengths.join(", ")} tokens`;
  const data = new CaseData(`wpoWeight ${name}`);
  const rows = lengths.reduce((sum, length) => sum + length, 0);
  const mask = responseMask(data, lengths);
  const offsets = offsetsOf(lengths);
  for (const end of offsets.slice(1)) mask[end - 1] = 1;
  const lse = data.normal(rows, 3, 5);
  return {
    op: "wpoWeight",
    name,
    args: {
      rows,
      sequences: lengths.length,
      pairs: 2,
      offsets,
      chosen: Int32Array.of(0, 2),
      rejected: Int32Array.of(1, 1),
      mask,
      logProb: data.normal(rows, 0.5, -2),
      lse,
      lseHalf: lse.map((value) => 2 * value - data.uniform(0.1, 3)),
      weight: unset(2),
    },
    criterion: SUMS,
  };
}

function pairCases(kind: PreferenceKind, pairs: number): OpCase[] {
  return [false, true].map((withEverything) => {
    const name = `${kind}, ${pairs} pairs${withEverything ? " with everything optional" : ""}`;
    const args = preferenceArguments(new CaseData(`preferenceLoss ${name}`), kind, pairs, withEverything);
    return { op: "preferenceLoss", name, args, criterion: SUMS };
  });
}

/** Log-ratios far out, where e^|βΔ| has no float32, and mean log-probs of −10 to −70: losses and gradients stay finite and right. */
function extremeCase(kind: PreferenceKind, divergence: keyof typeof F_DIVERGENCES = "reverseKl"): OpCase {
  const name = `${kind} of ${divergence} at log-ratios of 0 to ±3,000`;
  const ratios = [0, 1e-7, -1e-7, 40, -40, 300, -300, 3000, -3000, -0.5];
  const rejected = Int32Array.from(ratios, (_, pair) => 2 * pair + 1);
  return {
    op: "preferenceLoss",
    name,
    args: {
      sequences: 2 * ratios.length,
      pairs: ratios.length,
      ...settingsOf(kind),
      fDivergence: F_DIVERGENCES[divergence],
      beta: 0.5,
      scale: 0.1,
      tokens: new Int32Array(2 * ratios.length).fill(100),
      chosen: rejected.map((row) => row - 1),
      rejected,
      logProb: Float64Array.from(ratios.flatMap((ratio) => [-4000 + ratio, -4000 - ratio / 2])),
      ...(kind !== "oddsRatio" && { refLogProb: new Float64Array(2 * ratios.length).fill(-4000) }),
      dLogProb: unset(2 * ratios.length),
      ...(sorts(kind) && { order: new Int32Array(2 * ratios.length).fill(-1) }),
      stats: unset(PREFERENCE_STATS),
    },
    criterion: SUMS,
  };
}

const SCATTERED = [33, 65, 3, 129];

export const preferenceCases: readonly OpCase[] = [
  ...[[2], [7, 1, 2], SCATTERED].flatMap(sumCases),
  wpoCase([3, 2, 5]),
  wpoCase(SCATTERED),
  ...PREFERENCE_KINDS.flatMap((kind) => [1, 7, 33].flatMap((pairs) => pairCases(kind, pairs))),
  ...MARGIN_KINDS.flatMap((kind) =>
    (["forwardKl", "js", "alpha"] as const).map((divergence) => {
      const name = `${kind} of ${divergence}`;
      const args = preferenceArguments(new CaseData(`preferenceLoss ${name}`), kind, 7, true);
      const settings = { fDivergence: F_DIVERGENCES[divergence], fAlpha: 1.5 };
      return { op: "preferenceLoss", name, args: { ...args, ...settings }, criterion: SUMS };
    }),
  ),
  ...PREFERENCE_KINDS.map((kind) => extremeCase(kind)),
  ...(["forwardKl", "js", "alpha"] as const).map((divergence) => extremeCase("sigmoid", divergence)),
  ...[1, 2, 33].map((sequences): OpCase => {
    const name = `${sequences} answers`;
    return {
      op: "ktoLoss",
      name,
      args: ktoArguments(new CaseData(`ktoLoss ${name}`), sequences),
      criterion: SUMS,
    };
  }),
  {
    op: "ktoLoss",
    name: "no answer among the sequences",
    args: { ...ktoArguments(new CaseData("ktoLoss of prompts"), 3), label: new Int32Array(3) },
    criterion: EXACT,
  },
];
