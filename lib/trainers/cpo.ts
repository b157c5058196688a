import { CPO_LOSSES, type CpoLoss } from "./dpo-losses.ts";
import type { PairObjective } from "./pair-losses.ts";
import { PairTrainer, type PairTrainerOptions } from "./pairs.ts";
import { PAIR_DEFAULTS, PAIR_RULES, type PairConfig, type PairSettings } from "./preference-settings.ts";
import { PreferenceWatch } from "./preference-watch.ts";
import { labelNoise, nonNegative, oneOf, type Rules } from "./settings.ts";

interface ContrastiveConfig extends PairConfig {
  /** Probability that a label is wrong. Default 0. */
  readonly labelSmoothing?: number;
  /** Weight of the chosen answers' likelihood, a mean over their tokens. Default 1; SimPO 0. */
  readonly nllWeight?: number;
}

/**
 * Settings of contrastive preference optimisation. Default learning rate: 1e-6 for all weights, 1e-5 for an adapter; `beta` (default
 * 0.1) multiplies the difference of the answers' log-probs.
 */
export interface CPOConfig extends ContrastiveConfig {
  /** Default "sigmoid"; "ipo" takes mean log-probs per token. */
  readonly lossType?: CpoLoss;
}

/**
 * Settings of SimPO. Default learning rate: 1e-6 for all weights, 1e-5 for an adapter; `beta` (default 2) multiplies the difference of
 * the answers' mean log-probs per token.
 */
export interface SimPOConfig extends ContrastiveConfig {
  /** Margin γ by which beta·(chosen − rejected) should exceed 0. Default 0.5. */
  readonly gamma?: number;
}

type CPOSettings = PairSettings & CPOConfig & Required<Pick<CPOConfig, "lossType" | "nllWeight">>;
type SimPOSettings = PairSettings & SimPOConfig & Required<Pick<SimPOConfig, "gamma" | "nllWeight">>;

const CONTRASTIVE_RULES: Rules<ContrastiveConfig> = {
  ...PAIR_RULES,
  labelSmoothing: labelNoise,
  nllWeight: nonNegative,
};

const CPO = {
  defaults: { ...PAIR_DEFAULTS, lossType: "sigmoid" as const, nllWeight: 1 },
  rules: { ...CONTRASTIVE_RULES, lossType: oneOf(...CPO_LOSSES) },
  learningRates: { full: 1e-6, lora: 1e-5 },
};

const SIMPO = {
  defaults: { ...PAIR_DEFAULTS, beta: 2, gamma: 0.5, nllWeight: 0 },
  rules: { ...CONTRASTIVE_RULES, gamma: nonNegative },
  learningRates: { full: 1e-6, lora: 1e-5 },
};

function likelihood(weight: number): PairObjective["nll"] {
  return { tokens: weight > 0 ? "completion" : "none", weight };
}

/** Contrastive preference optimisation (Xu et al. 2024): −log σ(beta·(log-prob of chosen − of rejected)) and the likelihood of chosen answers. */
export class CPOTrainer extends PairTrainer<CPOConfig, CPOSettings> {
  protected readonly name = "cpo";
  protected readonly objective: PairObjective;
  protected readonly watch: PreferenceWatch;

  constructor(options: PairTrainerOptions<CPOConfig>) {
    super(options, CPO);
    const { beta, labelSmoothing, lossType, nllWeight, warmupSteps } = this.config;
    this.objective = {
      losses: [{ type: lossType }],
      settings: {
        beta,
        ...(labelSmoothing === undefined ? {} : { labelSmoothing }),
        statsPerToken: lossType === "ipo",
      },
      nll: likelihood(nllWeight),
    };
    this.watch = new PreferenceWatch({ startsAtLog2: false, warmupSteps });
  }
}

/** SimPO (Meng et al. 2024): −log σ(beta·(mean log-prob of chosen − of rejected) − gamma), without a reference. */
export class SimPOTrainer extends PairTrainer<SimPOConfig, SimPOSettings> {
  protected readonly name = "simpo";
  protected readonly objective: PairObjective;
  protected readonly watch: PreferenceWatch;

  constructor(options: PairTrainerOptions<SimPOConfig>) {
    super(options, SIMPO);
    const { beta, gamma, labelSmoothing, nllWeight, warmupSteps } = this.config;
    this.objective = {
      losses: [{ type: "sigmoid_norm" }],
      settings: {
        beta,
        margin: gamma,
        ...(labelSmoothing === undefined ? {} : { labelSmoothing }),
        statsPerToken: true,
      },
      nll: likelihood(nllWeight),
    };
    this.watch = new PreferenceWatch({ startsAtLog2: false, warmupSteps });
  }
}
