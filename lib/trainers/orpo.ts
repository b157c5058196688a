import type { Metrics } from "../monitor/metrics.ts";
import type { PairObjective } from "./pair-losses.ts";
import { PairTrainer, type PairTrainerOptions } from "./pairs.ts";
import { PAIR_DEFAULTS, PAIR_RULES, type PairConfig, type PairSettings } from "./preference-settings.ts";
import { PreferenceWatch } from "./preference-watch.ts";
import { oneOf, type Rules } from "./settings.ts";
import type { Sums } from "./supervised.ts";

/**
 * Settings of odds-ratio preference optimisation. Default learning rate: 1e-6 for all weights, 1e-5 for an adapter; `beta` (default
 * 0.1) is the weight of the odds ratio beside the likelihood.
 */
export interface ORPOConfig extends PairConfig {
  /**
   * Tokens whose likelihood is learnt: those of the chosen answer ("completion", default; the paper's p(y|x)), or those of its
   * prompt too ("all", as TRL does).
   */
  readonly nllOn?: "completion" | "all";
}

type ORPOSettings = PairSettings & ORPOConfig & Required<Pick<ORPOConfig, "nllOn">>;

const DEFAULTS = { ...PAIR_DEFAULTS, nllOn: "completion" as const };
const RULES: Rules<ORPOConfig> = { ...PAIR_RULES, nllOn: oneOf("completion", "all") };
const LEARNING_RATES = { full: 1e-6, lora: 1e-5 };

/**
 * Odds-ratio preference optimisation (Hong et al. 2024): the likelihood of chosen answers − beta·log σ(log-odds of the chosen against
 * the rejected answer), by mean log-probs per token, without a reference.
 */
export class ORPOTrainer extends PairTrainer<ORPOConfig, ORPOSettings> {
  protected readonly name = "orpo";
  protected readonly objective: PairObjective;
  protected readonly watch: PreferenceWatch;

  constructor(options: PairTrainerOptions<ORPOConfig>) {
    super(options, { defaults: DEFAULTS, rules: RULES, learningRates: LEARNING_RATES });
    const { beta, nllOn, warmupSteps } = this.config;
    this.objective = {
      losses: [{ type: "odds_ratio", weight: beta }],
      settings: { beta, statsPerToken: true },
      nll: { tokens: nllOn, weight: 1 },
    };
    this.watch = new PreferenceWatch({ startsAtLog2: false, warmupSteps });
  }

  protected override toMetrics(sums: Sums): Metrics {
    const ratio = -(sums["loss/odds_ratio"] ?? Number.NaN) / (sums.pairs ?? 0);
    return { ...super.toMetrics(sums), log_odds_ratio: ratio };
  }
}
