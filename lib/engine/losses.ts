import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { type FloatArray, type Outputs, runOnArrays } from "./array.ts";
import type { Engine } from "./engine.ts";
import { native } from "./native.ts";

/*
 * Losses and advantages as functions of per-token arrays. N is the number of tokens of a packed batch; index t describes token
 * t; the value that belongs to token t stands at t − 1. `mask` is 1 at tokens that count. `stats` are sums over the mask, so
 * that micro-batches add up; `scale` (1 / what the loss is averaged over) multiplies gradients only.
 * All throw ERR_RLHF_SHAPE when lengths differ and ERR_RLHF_ARGUMENT for values outside their range.
 */

export interface WhitenArgs {
  readonly x: FloatArray;
  readonly mask: FloatArray;
  /** False keeps the mean. Default true. */
  readonly shiftMean?: boolean;
}

const WHITEN: NamesOf<WhitenArgs> = { x: true, mask: true, shiftMean: true };

/** y = (x − mean)/√(var + 1e-8) over the mask, unbiased variance; 0 outside the mask. */
export function whiten(engine: Engine, args: WhitenArgs): Promise<Outputs<"y">> {
  refuseUnknownOptions("whiten", args, WHITEN);
  return runOnArrays(engine, native().whiten, { ...args });
}

/** How the KL divergence of policy and reference is estimated from samples: k1, k2 or k3 (Schulman 2020). */
export type KlEstimator = "k1" | "k2" | "k3";

export interface KlRewardArgs {
  /** Log-probs of the policy that sampled. */
  readonly logProb: FloatArray;
  readonly refLogProb: FloatArray;
  readonly mask: FloatArray;
  /** Int32Array[S+1]. */
  readonly offsets: Int32Array;
  /** Float32Array[S]: each sequence's score, added at its last masked token. */
  readonly score: FloatArray;
  readonly klCoefficient: number;
  /** Default "k1". */
  readonly estimator?: KlEstimator;
}

const KL_REWARD: NamesOf<KlRewardArgs> = {
  logProb: true,
  refLogProb: true,
  mask: true,
  offsets: true,
  score: true,
  klCoefficient: true,
  estimator: true,
};

/** reward = −klCoefficient·kl per token, plus the score at the last token of each answer. */
export function klReward(engine: Engine, args: KlRewardArgs): Promise<Outputs<"reward" | "kl">> {
  refuseUnknownOptions("klReward", args, KL_REWARD);
  const estimator = { k1: 1, k2: 2, k3: 3 }[args.estimator ?? "k1"];
  return runOnArrays(engine, native().klReward, { ...args, estimator });
}

export interface GaeArgs {
  readonly reward: FloatArray;
  readonly value: FloatArray;
  readonly mask: FloatArray;
  readonly offsets: Int32Array;
  readonly gamma: number;
  readonly lambda: number;
}

const GAE: NamesOf<GaeArgs> = {
  reward: true,
  value: true,
  mask: true,
  offsets: true,
  gamma: true,
  lambda: true,
};

/** Generalised advantage estimation (Schulman et al. 2015); returns = advantage + value, before any whitening. */
export function gae(engine: Engine, args: GaeArgs): Promise<Outputs<"advantage" | "returns">> {
  refuseUnknownOptions("gae", args, GAE);
  return runOnArrays(engine, native().gae, { ...args });
}

export interface PpoPolicyLossArgs {
  readonly logProb: FloatArray;
  readonly oldLogProb: FloatArray;
  readonly advantage: FloatArray;
  readonly mask: FloatArray;
  readonly clipRange: number;
  /** Bounds the loss where the advantage A is negative by −A·dualClip (Ye et al. 2020); over 1 + clipRange, default 0: no bound. */
  readonly dualClip?: number;
  readonly scale: number;
  readonly entropyCoefficient?: number;
  /** Needed with an entropy coefficient other than 0; then `dEntropy` is among the outputs. */
  readonly entropy?: FloatArray;
}

export type PpoPolicyStat =
  | "loss"
  | "approxKl"
  | "clipped"
  | "ratio"
  | "ratioSquared"
  | "entropy"
  | "tokens"
  | "dualClipped";

const PPO_POLICY_LOSS: NamesOf<PpoPolicyLossArgs> = {
  logProb: true,
  oldLogProb: true,
  advantage: true,
  mask: true,
  clipRange: true,
  dualClip: true,
  scale: true,
  entropyCoefficient: true,
  entropy: true,
};

/** PPO's clipped policy loss (Schulman et al. 2017, eq. 7); approxKl sums ½(Δ log-prob)². */
export function ppoPolicyLoss(
  engine: Engine,
  args: PpoPolicyLossArgs,
): Promise<Outputs<"dLogProb", PpoPolicyStat> & Partial<Outputs<"dEntropy">>> {
  refuseUnknownOptions("ppoPolicyLoss", args, PPO_POLICY_LOSS);
  return runOnArrays(engine, native().ppoPolicyLoss, { ...args });
}

export interface GroupPolicyLossArgs {
  readonly logProb: FloatArray;
  readonly oldLogProb: FloatArray;
  /** Needed with a KL coefficient other than 0. */
  readonly refLogProb?: FloatArray;
  readonly mask: FloatArray;
  /** Int32Array[S+1]. */
  readonly offsets: Int32Array;
  /** Float32Array[S]: one advantage per sequence. */
  readonly advantage?: Float32Array;
  /** In its place, with ratios of tokens: one advantage per token. */
  readonly tokenAdvantage?: FloatArray;
  /** Float32Array[S]: what each token of a sequence counts in the loss. */
  readonly weight: Float32Array;
  /** Ratios of single tokens (default), of sequences by the mean of log-ratios (GSPO), or by their sum (RLOO). */
  readonly level?: RatioLevel;
  /** "clipped" (default), or "truncated": −min(ρ, highestRatio)·A·logProb, the factor without gradient (CISPO). */
  readonly surrogate?: "clipped" | "truncated";
  /** Default 0.8. */
  readonly lowestRatio?: number;
  /** Default 1.2. */
  readonly highestRatio?: number;
  /** Weight of the k3 estimate of the KL to the reference in the loss. Default 0. */
  readonly klCoefficient?: number;
  /** Whether the ratio multiplies k3, so that its gradient is that of the KL (DeepSeek-V3.2, 2025). Default false. */
  readonly weighKl?: boolean;
}

/** Over what the ratio of new to old probability is taken. */
export type RatioLevel = "token" | "sequence-mean" | "sequence-sum";

/** `loss` is weighted; the others are plain sums over tokens. */
export type GroupPolicyStat =
  | "loss"
  | "approxKl"
  | "clippedLow"
  | "clippedHigh"
  | "ratio"
  | "ratioSquared"
  | "kl"
  | "tokens";

const GROUP_POLICY_LOSS: NamesOf<GroupPolicyLossArgs> = {
  logProb: true,
  oldLogProb: true,
  refLogProb: true,
  mask: true,
  offsets: true,
  advantage: true,
  tokenAdvantage: true,
  weight: true,
  level: true,
  surrogate: true,
  lowestRatio: true,
  highestRatio: true,
  klCoefficient: true,
  weighKl: true,
};

/**
 * Policy losses without a value function, Σ_s weight[s]·Σ_t (max(−A·ρ, −A·clip(ρ, lowest, highest)) + klCoefficient·k3): GRPO (Shao et
 * al. 2024), GSPO, CISPO, RLOO, REINFORCE++.
 */
export function groupPolicyLoss(
  engine: Engine,
  args: GroupPolicyLossArgs,
): Promise<Outputs<"dLogProb", GroupPolicyStat>> {
  refuseUnknownOptions("groupPolicyLoss", args, GROUP_POLICY_LOSS);
  const level = { token: 0, "sequence-mean": 1, "sequence-sum": 2 }[args.level ?? "token"];
  const surrogate = { clipped: 0, truncated: 1 }[args.surrogate ?? "clipped"];
  return runOnArrays(engine, native().groupPolicyLoss, { ...args, level, surrogate });
}

export interface PpoValueLossArgs {
  readonly value: FloatArray;
  readonly oldValue: FloatArray;
  readonly returns: FloatArray;
  readonly mask: FloatArray;
  /** 0: no clipping. */
  readonly clipRange: number;
  readonly scale: number;
}

export type PpoValueStat =
  | "loss"
  | "clipped"
  | "value"
  | "return"
  | "returnSquared"
  | "errorSquared"
  | "tokens";

const PPO_VALUE_LOSS: NamesOf<PpoValueLossArgs> = {
  value: true,
  oldValue: true,
  returns: true,
  mask: true,
  clipRange: true,
  scale: true,
};

/** PPO's clipped value loss, ½·max((V − R)², (clip(V, V_old ± clipRange) − R)²). */
export function ppoValueLoss(
  engine: Engine,
  args: PpoValueLossArgs,
): Promise<Outputs<"dValue", PpoValueStat>> {
  refuseUnknownOptions("ppoValueLoss", args, PPO_VALUE_LOSS);
  return runOnArrays(engine, native().ppoValueLoss, { ...args });
}

export interface TokenNllLossArgs {
  readonly logProb: FloatArray;
  readonly weight: FloatArray;
  readonly scale: number;
}

const TOKEN_NLL_LOSS: NamesOf<TokenNllLossArgs> = { logProb: true, weight: true, scale: true };

/** Weighted negative log-likelihood: loss = −Σ weight·logProb. */
export function tokenNllLoss(
  engine: Engine,
  args: TokenNllLossArgs,
): Promise<Outputs<"dLogProb", "loss" | "weight">> {
  refuseUnknownOptions("tokenNllLoss", args, TOKEN_NLL_LOSS);
  return runOnArrays(engine, native().tokenNllLoss, { ...args });
}

export interface RewardLossArgs {
  /** Rewards at hidden rows, Float32Array[N]. */
  readonly value: FloatArray;
  /** Int32Array[pairs]: the index of each chosen answer's last token. Left out: no pairs. */
  readonly chosen?: Int32Array;
  readonly rejected?: Int32Array;
  /** Float32Array[pairs]; left out: no margin. */
  readonly margin?: Float32Array;
  /** Float32Array[pairs]: the probability that the chosen answer is the better one, ½ for a tie; left out: 1. */
  readonly label?: Float32Array;
  /** Int32Array[answers]: the index of the last token of each answer with a score of its own. */
  readonly scored?: Int32Array;
  /** Float32Array[answers]. */
  readonly score?: Float32Array;
  /** ℓ(z) is "logistic" (default), −log σ(z), or "hinge", max(0, −z). */
  readonly pairLoss?: "logistic" | "hinge";
  /** Weight of (r_chosen + r_rejected)²; default 0. */
  readonly centering?: number;
  /** Weight of (r − score)²; default 1. */
  readonly scoreWeight?: number;
  readonly scale: number;
}

/**
 * `decided` counts pairs whose label is not ½, of which `correct` score the better answer higher (½ for each whose answers score the
 * same) by `margin` in all; `reward` sums all `rewards` rewards.
 */
export type RewardStat =
  | "loss"
  | "pairs"
  | "decided"
  | "correct"
  | "margin"
  | "reward"
  | "rewards"
  | "answers"
  | "squaredError";

const REWARD_LOSS: NamesOf<RewardLossArgs> = {
  value: true,
  chosen: true,
  rejected: true,
  margin: true,
  label: true,
  scored: true,
  score: true,
  pairLoss: true,
  centering: true,
  scoreWeight: true,
  scale: true,
};

/**
 * Losses of reward models: y·ℓ(Δ − margin) + (1 − y)·ℓ(−Δ − margin) + centering·(r_chosen + r_rejected)² per pair, where
 * Δ = r_chosen − r_rejected and y is the label, and scoreWeight·(r − score)² per scored answer. Logistic with y = 1 is Bradley-Terry.
 */
export function rewardLoss(engine: Engine, args: RewardLossArgs): Promise<Outputs<"dValue", RewardStat>> {
  refuseUnknownOptions("rewardLoss", args, REWARD_LOSS);
  const none = new Int32Array(0);
  const { chosen = none, rejected = none, scored = none, pairLoss = "logistic" } = args;
  const kind = { logistic: 1, hinge: 2 }[pairLoss] ?? 0;
  return runOnArrays(engine, native().rewardLoss, { ...args, chosen, rejected, scored, pairLoss: kind });
}
