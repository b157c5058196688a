import type { HeadOptions } from "../model/heads.ts";
import { flag, fraction, nonNegative, oneOf, oneOfOrObject, type Rule, type Rules } from "./settings.ts";
import { SUPERVISED_RULES, type SupervisedConfig } from "./supervised.ts";

/**
 * Losses of a pair with Δ = r_chosen − r_rejected: its shape, and whether margins count in it. "log-exp", log(1 + e^−Δ), and
 * "cross-entropy" on softmax(r_chosen, r_rejected) are one function, Bradley-Terry's without margins.
 */
export const PAIR_LOSSES = {
  "bradley-terry": { shape: "logistic", margins: true },
  "cross-entropy": { shape: "logistic", margins: false },
  "log-exp": { shape: "logistic", margins: false },
  hinge: { shape: "hinge", margins: true },
} as const;
export type RewardPairLoss = keyof typeof PAIR_LOSSES;

/** Deviations of the initial weights of a head's last layer with so many inputs. */
export const HEAD_INITS = {
  /** All rewards begin at 0. */
  zero: (_inputs: number): number => 0,
  /** Stiennon et al. 2020. */
  openai: (inputs: number): number => 1 / Math.sqrt(inputs + 1),
  openrlhf: (inputs: number): number => 1 / (inputs + 1),
} as const;
export type HeadInit = keyof typeof HEAD_INITS;

/** Settings of how a reward model's rewards are judged. */
export interface RewardLossConfig {
  /** The loss of pairs. Default "bradley-terry"; answers with a score have the squared error, whatever the loss of pairs. */
  readonly loss?: RewardPairLoss;
  /** By how much every pair's rewards should differ, added to what its row says. Default 0; hinge 1. */
  readonly margin?: number;
  /** Probability that a pair's label is wrong, below 0.5. Default 0. */
  readonly labelSmoothing?: number;
  /** Weight of (r − score)² of an answer with a score, beside the pairs. Default 1. */
  readonly scoreWeight?: number;
  /** Weight of (chosen + rejected)², which keeps rewards near zero; 0.01 is usual. Default 0. */
  readonly centerCoefficient?: number;
}

/**
 * Settings of reward-model training. Default learning rate: 1e-5 for all weights, 1e-4 for an adapter, 1e-3 for the head alone
 * (which is what a frozen model without an adapter trains).
 */
export interface RewardConfig extends SupervisedConfig, RewardLossConfig {
  /** "linear" (default), "mlp" (hidden → hidden/2 → 1 with ReLU), or a head of one's own. */
  readonly head?: "linear" | "mlp" | HeadOptions;
  /** How the head's last layer begins: "zero" (default), or normal with deviation "openai" 1/√(d + 1), "openrlhf" 1/(d + 1). */
  readonly headInit?: HeadInit;
  /** Measures mean and deviation of the rewards of training data after training, and saves them. Default true. */
  readonly normalizeReward?: boolean;
  /** What happens to pairs over `maxLength`: "drop" (default), or "truncate-prompt" cuts the beginning of the prompt off. */
  readonly overlong?: "drop" | "truncate-prompt";
}

const belowHalf: Rule = [
  "a number from 0 to below 0.5",
  (value) => fraction[1](value) && (value as number) < 0.5,
];

export const REWARD_LOSS_RULES: Rules<RewardLossConfig> = {
  loss: oneOf(...Object.keys(PAIR_LOSSES)),
  margin: nonNegative,
  labelSmoothing: belowHalf,
  scoreWeight: nonNegative,
  centerCoefficient: nonNegative,
};

export const REWARD_RULES: Rules<RewardConfig> = {
  ...SUPERVISED_RULES,
  ...REWARD_LOSS_RULES,
  head: oneOfOrObject("linear", "mlp"),
  headInit: oneOf(...Object.keys(HEAD_INITS)),
  normalizeReward: flag,
  overlong: oneOf("drop", "truncate-prompt"),
};

/** The head that the settings describe, for a model so many units wide. */
export function headOptions(config: RewardConfig, hidden: number, seed: number): HeadOptions {
  const { head = "linear", headInit = "zero" } = config;
  const shape: HeadOptions =
    head === "mlp"
      ? { kind: "mlp", innerSize: Math.ceil(hidden / 2), activation: "relu", bias: true }
      : head === "linear"
        ? { kind: "linear", bias: false }
        : head;
  const inputs = shape.kind === "mlp" ? (shape.innerSize ?? hidden) : hidden;
  return { seed, initStd: HEAD_INITS[headInit](inputs), ...shape };
}
