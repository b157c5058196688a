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

/** y = (x − mean)/√(var + 1e-8) over the mask, unbiased variance; 0 outside the mask. */
export function whiten(engine: Engine, args: WhitenArgs): Promise<Outputs<"y">> {
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

/** reward = −klCoefficient·kl per token, plus the score at the last token of each answer. */
export function klReward(engine: Engine, args: KlRewardArgs): Promise<Outputs<"reward" | "kl">> {
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

/** Generalised advantage estimation (Schulman et al. 2015); returns = advantage + value, before any whitening. */
export function gae(engine: Engine, args: GaeArgs): Promise<Outputs<"advantage" | "returns">> {
  return runOnArrays(engine, native().gae, { ...args });
}

export interface PpoPolicyLossArgs {
  readonly logProb: FloatArray;
  readonly oldLogProb: FloatArray;
  readonly advantage: FloatArray;
  readonly mask: FloatArray;
  readonly clipRange: number;
  readonly scale: number;
  readonly entropyCoefficient?: number;
  /** Needed with an entropy coefficient other than 0; then `dEntropy` is among the outputs. */
  readonly entropy?: FloatArray;
}

export type PpoPolicyStat = "loss" | "approxKl" | "clipped" | "ratio" | "ratioSquared" | "entropy" | "tokens";

/** PPO's clipped policy loss (Schulman et al. 2017, eq. 7); approxKl sums ½(Δ log-prob)². */
export function ppoPolicyLoss(
  engine: Engine,
  args: PpoPolicyLossArgs,
): Promise<Outputs<"dLogProb", PpoPolicyStat> & Partial<Outputs<"dEntropy">>> {
  return runOnArrays(engine, native().ppoPolicyLoss, { ...args });
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

/** PPO's clipped value loss, ½·max((V − R)², (clip(V, V_old ± clipRange) − R)²). */
export function ppoValueLoss(
  engine: Engine,
  args: PpoValueLossArgs,
): Promise<Outputs<"dValue", PpoValueStat>> {
  return runOnArrays(engine, native().ppoValueLoss, { ...args });
}

export interface TokenNllLossArgs {
  readonly logProb: FloatArray;
  readonly weight: FloatArray;
  readonly scale: number;
}

/** Weighted negative log-likelihood: loss = −Σ weight·logProb. */
export function tokenNllLoss(
  engine: Engine,
  args: TokenNllLossArgs,
): Promise<Outputs<"dLogProb", "loss" | "weight">> {
  return runOnArrays(engine, native().tokenNllLoss, { ...args });
}

export interface BradleyTerryLossArgs {
  readonly value: FloatArray;
  /** Int32Array[pairs]: the index of each chosen answer's last token. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  /** Float32Array[pairs]; left out: no margin. */
  readonly margin?: FloatArray;
  /** Weight of (r_chosen + r_rejected)²; default 0. */
  readonly centering?: number;
  readonly scale: number;
}

export type BradleyTerryStat = "loss" | "correct" | "margin" | "chosen" | "rejected" | "pairs";

/** −log σ(r_chosen − r_rejected − margin) + centering·(r_chosen + r_rejected)² per pair. */
export function bradleyTerryLoss(
  engine: Engine,
  args: BradleyTerryLossArgs,
): Promise<Outputs<"dValue", BradleyTerryStat>> {
  return runOnArrays(engine, native().bradleyTerryLoss, { ...args });
}
