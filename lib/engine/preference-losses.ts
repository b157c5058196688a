import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { type FloatArray, type Outputs, runOnArrays } from "./array.ts";
import type { Engine } from "./engine.ts";
import { native } from "./native.ts";

/*
 * Losses of the preference-optimisation family (DPO, CPO, SimPO, ORPO, KTO). They compare whole answers, so they are functions of
 * each sequence's summed log-prob: `sequenceSum` makes those from per-token arrays, `sequenceSumBackward` spreads their gradients
 * back over the tokens. N tokens, S sequences of a packed batch, P pairs; `chosen` and `rejected` name sequences by index. `stats`
 * are sums over pairs or answers, so that micro-batches add up; `scale` (1 / what the loss is averaged over) multiplies gradients
 * only. All throw ERR_RLHF_SHAPE when lengths differ and ERR_RLHF_ARGUMENT for values outside their range.
 */

export interface SequenceSumArgs {
  /** Per token, such as log-probs. */
  readonly x: FloatArray;
  /** Per token; 0 leaves a token out. */
  readonly weight: FloatArray;
  /** Int32Array[S+1]. */
  readonly offsets: Int32Array;
}

const SEQUENCE_SUM: NamesOf<SequenceSumArgs> = { x: true, weight: true, offsets: true };

/** sum[s] = Σ weight[t]·x[t] over each sequence's tokens. */
export function sequenceSum(engine: Engine, args: SequenceSumArgs): Promise<Outputs<"sum">> {
  refuseUnknownOptions("sequenceSum", args, SEQUENCE_SUM);
  return runOnArrays(engine, native().sequenceSum, { ...args });
}

export interface SequenceSumBackwardArgs {
  /** Float32Array[S]: gradients of the sums. */
  readonly dSum: FloatArray;
  readonly weight: FloatArray;
  readonly offsets: Int32Array;
  /** Gradients of other losses of the same tokens, to which these are added. */
  readonly base?: FloatArray;
}

const SEQUENCE_SUM_BACKWARD: NamesOf<SequenceSumBackwardArgs> = {
  dSum: true,
  weight: true,
  offsets: true,
  base: true,
};

/** dx[t] = base[t] + weight[t]·dSum[s]. */
export function sequenceSumBackward(engine: Engine, args: SequenceSumBackwardArgs): Promise<Outputs<"dx">> {
  refuseUnknownOptions("sequenceSumBackward", args, SEQUENCE_SUM_BACKWARD);
  return runOnArrays(engine, native().sequenceSumBackward, { ...args });
}

/** Which sequences of a batch are compared. */
export interface PairIndices {
  /** Int32Array[P]: the sequence of each pair's chosen answer. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
}

export interface WpoWeightArgs extends PairIndices {
  readonly logProb: FloatArray;
  readonly lse: FloatArray;
  /** `lse` of a forward pass at half the temperature: the logsumexp of twice the logits, from which Σ p² follows. */
  readonly lseHalf: FloatArray;
  /** 1 at the answers' tokens. */
  readonly mask: FloatArray;
  readonly offsets: Int32Array;
}

const WPO_WEIGHT: NamesOf<WpoWeightArgs> = {
  chosen: true,
  rejected: true,
  logProb: true,
  lse: true,
  lseHalf: true,
  mask: true,
  offsets: true,
};

/**
 * Each pair's weight in weighted preference optimisation (Zhou et al. 2024, "WPO", eq. 2 with aligned weights): e to the sum over
 * both answers of the mean of logProb − log Σ p². Pairs that the policy is likely to produce weigh more.
 */
export function wpoWeight(engine: Engine, args: WpoWeightArgs): Promise<Outputs<"weight">> {
  refuseUnknownOptions("wpoWeight", args, WPO_WEIGHT);
  return runOnArrays(engine, native().wpoWeight, { ...args });
}

export interface LengthDesensitizedWeightArgs extends PairIndices {
  readonly mask: Float32Array;
  readonly offsets: Int32Array;
  /** 0 to 1. */
  readonly ldAlpha: number;
}

const LENGTH_DESENSITIZED_WEIGHT: NamesOf<LengthDesensitizedWeightArgs> = {
  chosen: true,
  rejected: true,
  mask: true,
  offsets: true,
  ldAlpha: true,
};

/**
 * Token weights that tell less of what makes an answer long (Liu et al. 2024, "LD-DPO"): 1 up to the length of the pair's shorter
 * answer, `ldAlpha` beyond, 0 outside the mask. They are the `weight` of the policy's sums and of the reference's.
 */
export function lengthDesensitizedWeight(args: LengthDesensitizedWeightArgs): Float32Array {
  refuseUnknownOptions("lengthDesensitizedWeight", args, LENGTH_DESENSITIZED_WEIGHT);
  const { mask, offsets, chosen, rejected, ldAlpha } = args;
  if (!(ldAlpha >= 0 && ldAlpha <= 1))
    throw new RlhfError("ERR_RLHF_ARGUMENT", `ldAlpha is ${ldAlpha}, expected 0 to 1`, { ldAlpha });
  const weight = mask.slice();
  const tokensOf = (sequence: number): number[] => {
    const tokens: number[] = [];
    for (let t = offsets[sequence] as number; t < (offsets[sequence + 1] as number); t++)
      if (mask[t] !== 0) tokens.push(t);
    return tokens;
  };
  for (const [pair, sequence] of chosen.entries()) {
    const answers = [tokensOf(sequence), tokensOf(rejected[pair] as number)];
    const shared = Math.min(...answers.map((tokens) => tokens.length));
    for (const tokens of answers) for (const t of tokens.slice(shared)) weight[t] = ldAlpha;
  }
  return weight;
}

/** The losses of pairs by the names that TRL gives them; csrc/ops/preference.h has formulas and papers. */
const LOSSES = {
  sigmoid: { kind: 0, lengthNormalized: false },
  sigmoid_norm: { kind: 0, lengthNormalized: true },
  hinge: { kind: 1, lengthNormalized: false },
  ipo: { kind: 2, lengthNormalized: true },
  exo_pair: { kind: 3, lengthNormalized: false },
  robust: { kind: 4, lengthNormalized: false },
  discopop: { kind: 5, lengthNormalized: false },
  aot: { kind: 6, lengthNormalized: false },
  aot_unpaired: { kind: 7, lengthNormalized: false },
  odds_ratio: { kind: 8, lengthNormalized: true },
  nca_pair: { kind: 9, lengthNormalized: false },
  bco_pair: { kind: 10, lengthNormalized: false },
  sppo_hard: { kind: 11, lengthNormalized: false },
  apo_zero: { kind: 12, lengthNormalized: false },
  apo_down: { kind: 13, lengthNormalized: false },
} as const;

export type PreferenceLossType = keyof typeof LOSSES;

/** Every loss of pairs there is. */
export const PREFERENCE_LOSS_TYPES = Object.keys(LOSSES) as readonly PreferenceLossType[];

export interface PreferenceLossTerm {
  readonly type: PreferenceLossType;
  /** Default 1. */
  readonly weight?: number;
  /** Whether log-ratios are divided by the answers' tokens. Default: for sigmoid_norm, ipo and odds_ratio. */
  readonly lengthNormalized?: boolean;
}

const PREFERENCE_LOSS_TERM: NamesOf<PreferenceLossTerm> = {
  type: true,
  weight: true,
  lengthNormalized: true,
};

const F_DIVERGENCES = { reverse_kl: 0, forward_kl: 1, js_divergence: 2, alpha_divergence: 3 } as const;

/** Divergences from the reference that a DPO loss can stand for (Wang et al. 2023, "Beyond reverse KL"). */
export type FDivergence = keyof typeof F_DIVERGENCES;

export interface PreferenceLossArgs extends PairIndices {
  readonly losses: readonly PreferenceLossTerm[];
  /** Float32Array[S]: the policy's log-prob of each answer. */
  readonly logProb: FloatArray;
  /** Float32Array[S]: the reference's. Left out: losses without a reference (CPO, SimPO, ORPO). */
  readonly refLogProb?: FloatArray;
  /** Int32Array[S]: tokens of each answer; needed by length-normalised losses and by `statsPerToken`. */
  readonly tokens?: Int32Array;
  /** Float32Array[P]: what each pair's loss is multiplied by. */
  readonly pairWeight?: FloatArray;
  readonly beta: number;
  /** Probability that a label is wrong, for sigmoid (cDPO), sigmoid_norm, exo_pair, robust and aot. Default 0. */
  readonly labelSmoothing?: number;
  /** What β·(x_chosen − x_rejected) must exceed: SimPO's γ. Default 0. */
  readonly margin?: number;
  /** Default "reverse_kl". Others are for sigmoid, sigmoid_norm, hinge, ipo, exo_pair, robust and discopop. */
  readonly fDivergence?: FDivergence;
  /** α of "alpha_divergence". Default 0.5. */
  readonly fAlpha?: number;
  /** Temperature of discopop's mixture. Default 0.05. */
  readonly discopopTau?: number;
  /** Whether rewards and log-probs in `stats` are per token, as is usual for SimPO and ORPO. Default false. */
  readonly statsPerToken?: boolean;
  readonly scale: number;
}

export type PreferenceStat =
  | "loss"
  | "pairs"
  | "correct"
  | "margin"
  | "chosenReward"
  | "rejectedReward"
  | "chosenLogProb"
  | "rejectedLogProb";

/** Sums over pairs; "loss/…" is each loss by itself, without its weight. */
export type PreferenceStats = { readonly [Stat in PreferenceStat]: number } & {
  readonly [loss: `loss/${string}`]: number;
};

/**
 * Whether a loss depends on all pairs of a batch together. Such losses sort the pairs that one call is given: for them the batch
 * is the whole window of an optimizer step, so sums of all its micro-batches are needed before the gradient of any.
 */
export function couplesPairs(losses: readonly PreferenceLossTerm[]): boolean {
  return losses.some(({ type }) => type === "aot" || type === "aot_unpaired");
}

const PREFERENCE_LOSS: NamesOf<PreferenceLossArgs> = {
  losses: true,
  chosen: true,
  rejected: true,
  logProb: true,
  refLogProb: true,
  tokens: true,
  pairWeight: true,
  beta: true,
  labelSmoothing: true,
  margin: true,
  fDivergence: true,
  fAlpha: true,
  discopopTau: true,
  statsPerToken: true,
  scale: true,
};

/**
 * The weighted sum of losses on pairs of answers, and its gradient by each answer's log-prob. The reward of an answer is
 * β·(logProb − refLogProb), and a pair is correct where the chosen one's is higher.
 */
export async function preferenceLoss(
  engine: Engine,
  args: PreferenceLossArgs,
): Promise<{ readonly dLogProb: Outputs<"dLogProb">["dLogProb"]; readonly stats: PreferenceStats }> {
  refuseUnknownOptions("preferenceLoss", args, PREFERENCE_LOSS);
  const { losses, scale, fDivergence = "reverse_kl", ...common } = args;
  let total: Outputs<"dLogProb", PreferenceStat> | null = null;
  let stats: Record<string, number> = {};
  let loss = 0;
  for (const term of losses) {
    refuseUnknownOptions("a term of preferenceLoss", term, PREFERENCE_LOSS_TERM);
    const { type, weight = 1, lengthNormalized } = term;
    const { kind, ...byType } = lossNamed(type);
    const next: Outputs<"dLogProb", PreferenceStat> = await runOnArrays(engine, native().preferenceLoss, {
      ...common,
      kind,
      fDivergence: divergenceNamed(fDivergence),
      lengthNormalized: lengthNormalized ?? byType.lengthNormalized,
      scale: scale * weight,
      ...(total && { base: total.dLogProb }),
    });
    total?.dLogProb.dispose();
    total = next;
    loss += weight * next.stats.loss;
    const name = `loss/${type}`;
    stats = { ...stats, ...next.stats, [name]: (stats[name] ?? 0) + next.stats.loss };
  }
  if (!total) throw new RlhfError("ERR_RLHF_ARGUMENT", "losses is empty, expected one loss or more");
  return { dLogProb: total.dLogProb, stats: { ...stats, loss } as unknown as PreferenceStats };
}

function lossNamed(type: PreferenceLossType): (typeof LOSSES)[PreferenceLossType] {
  if (Object.hasOwn(LOSSES, type)) return LOSSES[type];
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    `there is no preference loss "${type}"; there are ${PREFERENCE_LOSS_TYPES.join(", ")}`,
    { type },
  );
}

function divergenceNamed(name: FDivergence): number {
  if (Object.hasOwn(F_DIVERGENCES, name)) return F_DIVERGENCES[name];
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    `there is no f-divergence "${name}"; there are ${Object.keys(F_DIVERGENCES).join(", ")}`,
    { fDivergence: name },
  );
}

export interface KtoLossArgs {
  /** Float32Array[S]: the policy's log-prob of each answer. */
  readonly logProb: FloatArray;
  readonly refLogProb: FloatArray;
  /** Int32Array[S]: 1 desirable, −1 undesirable, 0 not an answer. */
  readonly label: Int32Array;
  /** The estimate of KL(policy ‖ reference), `mismatchedKl` of the whole window; 0 gives APO-zero unpaired. */
  readonly kl: number;
  readonly beta: number;
  /** Default 1. */
  readonly desirableWeight?: number;
  /** Default 1. */
  readonly undesirableWeight?: number;
  readonly scale: number;
}

export type KtoStat =
  | "loss"
  | "desirable"
  | "undesirable"
  | "chosenReward"
  | "rejectedReward"
  | "chosenLogProb"
  | "rejectedLogProb";

const KTO_LOSS: NamesOf<KtoLossArgs> = {
  logProb: true,
  refLogProb: true,
  label: true,
  kl: true,
  beta: true,
  desirableWeight: true,
  undesirableWeight: true,
  scale: true,
};

/** The loss of Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8) on single answers, each desirable or not. */
export function ktoLoss(engine: Engine, args: KtoLossArgs): Promise<Outputs<"dLogProb", KtoStat>> {
  refuseUnknownOptions("ktoLoss", args, KTO_LOSS);
  return runOnArrays(engine, native().ktoLoss, { ...args });
}

/**
 * KTO's estimate of KL(policy ‖ reference): the mean log-ratio of answers put behind prompts they do not belong to, at least 0.
 *
 * @param logProb of each mismatched answer under the policy, summed over its tokens
 * @param refLogProb the reference's
 */
export function mismatchedKl(logProb: Float32Array, refLogProb: Float32Array): number {
  if (logProb.length !== refLogProb.length || logProb.length === 0) {
    throw new RlhfError(
      "ERR_RLHF_SHAPE",
      `mismatchedKl needs as many log-probs of the policy (${logProb.length}) as of the reference (${refLogProb.length}), and one or more`,
    );
  }
  const sum = logProb.reduce((total, value, index) => total + value - (refLogProb[index] as number), 0);
  return Math.max(0, sum / logProb.length);
}
