import type { TokenizedPreference } from "../data/types.ts";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { KeptWeights } from "./checkpoint.ts";
import {
  DIFFERENCE_LOSSES,
  DPO_LOSSES,
  type DpoLoss,
  F_DIVERGENCES,
  type FDivergence,
} from "./dpo-losses.ts";
import type { TrainerWorkload } from "./memory.ts";
import type { PairObjective } from "./pair-losses.ts";
import { hashPairs, PairTrainer, type PairTrainerOptions } from "./pairs.ts";
import {
  PAIR_DEFAULTS,
  PAIR_RULES,
  type PairConfig,
  type PairSettings,
  REFERENCE_DEFAULTS,
  REFERENCE_RULES,
  type ReferenceConfig,
  type ReferenceSettings,
  refuseTogether,
} from "./preference-settings.ts";
import { PreferenceWatch } from "./preference-watch.ts";
import { checkRefModel, ReferenceSource } from "./reference-source.ts";
import {
  finite,
  flag,
  fraction,
  labelNoise,
  listOf,
  nonNegative,
  oneOf,
  oneOrMore,
  positive,
  type Rules,
} from "./settings.ts";
import type { PrepareOptions } from "./train-options.ts";

/**
 * Settings of direct preference optimisation. Default learning rate: 5e-7 for all weights, 5e-6 for an adapter; `beta` (default
 * 0.1) is the strength of the tie to the reference.
 */
export interface DPOConfig extends PairConfig, ReferenceConfig {
  /** The loss, or several that are added up, under TRL's names. Default "sigmoid". */
  readonly lossType?: DpoLoss | readonly DpoLoss[];
  /** A weight for each loss. Default 1. */
  readonly lossWeights?: readonly number[];
  /** Probability that a label is wrong: conservative DPO, robust DPO, EXO and AOT. Default 0. */
  readonly labelSmoothing?: number;
  /** Divergence from the reference (f-DPO). Default "reverse_kl". */
  readonly fDivergence?: FDivergence;
  /** α of "alpha_divergence". Default 0.5. */
  readonly fDivergenceAlpha?: number;
  /** Weight of the tokens that the longer answer of a pair has more (LD-DPO); 1 (default) counts them in full. */
  readonly ldAlpha?: number;
  /** Weights pairs by how likely the policy is to write both answers (WPO). Default false. */
  readonly useWeighting?: boolean;
  /** τ of "discopop". Default 0.05. */
  readonly discopopTau?: number;
  /** Compares with no reference at all: rewards are beta·log-prob. Default false. */
  readonly referenceFree?: boolean;
  /**
   * Measures the reference on all data before the first step, so that no model has to be kept for it, and keeps the result in
   * `outputDir/reference`. Default false: examples are measured as they come, each once.
   */
  readonly precomputeRefLogProbs?: boolean;
}

export interface DPOTrainerOptions extends PairTrainerOptions<DPOConfig> {
  /** The reference. Default: the policy's starting point, which costs a copy only where all weights are trained. */
  readonly refModel?: CausalLM;
}

type DPOSettings = PairSettings &
  DPOConfig &
  ReferenceSettings &
  Required<Pick<DPOConfig, "lossType" | "referenceFree" | "precomputeRefLogProbs" | "useWeighting">>;

const DEFAULTS = {
  ...PAIR_DEFAULTS,
  ...REFERENCE_DEFAULTS,
  lossType: "sigmoid" as const,
  referenceFree: false,
  precomputeRefLogProbs: false,
  useWeighting: false,
};

const RULES: Rules<DPOConfig> = {
  ...PAIR_RULES,
  ...REFERENCE_RULES,
  lossType: oneOrMore(oneOf(...DPO_LOSSES)),
  lossWeights: listOf(nonNegative),
  labelSmoothing: labelNoise,
  fDivergence: oneOf(...F_DIVERGENCES),
  fDivergenceAlpha: finite,
  ldAlpha: fraction,
  useWeighting: flag,
  discopopTau: positive,
  referenceFree: flag,
  precomputeRefLogProbs: flag,
};

const LEARNING_RATES = { full: 5e-7, lora: 5e-6 };

function lossesOf({ lossType, lossWeights }: DPOSettings): { type: DpoLoss; weight: number }[] {
  const types = typeof lossType === "string" ? [lossType] : lossType;
  if (lossWeights && lossWeights.length !== types.length)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.lossWeights must have a weight for each of the ${types.length} losses of lossType, got ${lossWeights.length}`,
    );
  const twice = types.find((type, i) => types.indexOf(type) !== i);
  if (twice !== undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.lossType names ${twice} twice; set its weight in lossWeights`,
    );
  return types.map((type, i) => ({ type, weight: lossWeights?.[i] ?? 1 }));
}

/** Throws ERR_RLHF_ARGUMENT for settings that do not go together. */
function checkCombination(config: DPOSettings, { model, refModel }: DPOTrainerOptions): void {
  checkRefModel(model, refModel, config);
  const { referenceFree, precomputeRefLogProbs, syncRefModel, fDivergence, labelSmoothing } = config;
  const noReference = "a run without a reference has none to measure or to change";
  refuseTogether({ referenceFree, precomputeRefLogProbs }, noReference);
  refuseTogether({ referenceFree, syncRefModel }, noReference);
  refuseTogether({ referenceFree, refModel: refModel !== undefined }, noReference);
  refuseTogether(
    { precomputeRefLogProbs, syncRefModel },
    "what was measured holds for a fixed reference only",
  );
  const types = lossesOf(config).map(({ type }) => type);
  const sorts = types.find((type) => type.startsWith("aot"));
  if (sorts && config.useWeighting)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.useWeighting has no meaning with the loss ${sorts}, which compares sorted answers instead of pairs`,
    );
  if (types.includes("exo_pair") && !labelSmoothing)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "config.labelSmoothing must be over 0 with the loss exo_pair; 1e-3 is usual",
    );
  const other = types.find((type) => !DIFFERENCE_LOSSES.has(type));
  if (fDivergence !== undefined && fDivergence !== "reverse_kl" && other !== undefined)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `config.fDivergence: the loss ${other} is defined for "reverse_kl" alone; ${fDivergence} goes with ${[...DIFFERENCE_LOSSES].join(", ")}`,
    );
}

function objectiveOf(config: DPOSettings): PairObjective {
  const { beta, labelSmoothing, fDivergence, fDivergenceAlpha, discopopTau, ldAlpha, useWeighting } = config;
  const all = lossesOf(config);
  const likelihood = all.filter(({ type }) => type === "sft");
  const losses = all.filter(
    (loss): loss is typeof loss & { type: Exclude<DpoLoss, "sft"> } => loss.type !== "sft",
  );
  return {
    // Rewards are reported also where nothing but the likelihood is learnt.
    losses: losses.length > 0 ? losses : [{ type: "sigmoid", weight: 0 }],
    settings: {
      beta,
      ...(labelSmoothing === undefined ? {} : { labelSmoothing }),
      ...(fDivergence === undefined ? {} : { fDivergence }),
      ...(fDivergenceAlpha === undefined ? {} : { fAlpha: fDivergenceAlpha }),
      ...(discopopTau === undefined ? {} : { discopopTau }),
    },
    nll: {
      tokens: likelihood.length > 0 ? "completion" : "none",
      weight: likelihood.reduce((sum, { weight }) => sum + weight, 0),
    },
    ldAlpha,
    weighted: useWeighting,
  };
}

/** Direct preference optimisation (Rafailov et al. 2023) and its kin: rewards are beta·(log-prob − the reference's). */
export class DPOTrainer extends PairTrainer<DPOConfig, DPOSettings> {
  protected readonly name = "dpo";
  protected readonly objective: PairObjective;
  protected readonly watch: PreferenceWatch;
  readonly #reference: ReferenceSource<TokenizedPreference> | null;

  constructor(options: DPOTrainerOptions) {
    super(options, {
      defaults: DEFAULTS,
      rules: RULES,
      learningRates: LEARNING_RATES,
      moreOptions: { refModel: "optional" },
      check: (settings) => checkCombination(settings, options),
    });
    const { config, model, target, outputDir } = this;
    this.objective = objectiveOf(config);
    const { beta, warmupSteps, referenceFree } = config;
    const { losses, nll } = this.objective;
    const isPlain = losses.length === 1 && losses[0]?.type === "sigmoid" && nll.tokens === "none";
    this.watch = new PreferenceWatch({
      ...(referenceFree ? {} : { beta }),
      startsAtLog2: isPlain && !referenceFree,
      warmupSteps,
    });
    const examples = [...this.trainExamples, ...this.evalExamples];
    this.#reference = referenceFree
      ? null
      : new ReferenceSource({
          model,
          target,
          refModel: options.refModel,
          settings: config,
          precompute: config.precomputeRefLogProbs
            ? {
                examples,
                microBatches: (pairs) => this.microBatches(pairs),
                key: keyOf(examples, config),
                outputDir,
              }
            : undefined,
          answers: 2,
          measure: (network, pairs) => this.measure(network, pairs),
        });
  }

  protected override memoryWorkloads(): readonly TrainerWorkload[] {
    const [policy] = super.memoryWorkloads() as [TrainerWorkload];
    return this.#reference?.memoryWorkloads(policy) ?? [policy];
  }

  protected override async makeReady(options: PrepareOptions): Promise<void> {
    await this.#reference?.prepare(options);
  }

  protected override async referenceOf(
    pairs: readonly TokenizedPreference[],
  ): Promise<Float32Array | undefined> {
    return this.#reference?.of(pairs);
  }

  protected override async updated(steps: number): Promise<void> {
    await this.#reference?.updated(steps);
  }

  protected override get keptWeights(): readonly KeptWeights[] {
    return this.#reference?.keptWeights ?? [];
  }

  protected override release(): void {
    super.release();
    this.#reference?.dispose();
  }
}

/** What the reference's log-probs of pairs depend on beside the reference. */
function keyOf(pairs: readonly TokenizedPreference[], { ldAlpha = 1 }: DPOSettings): string {
  return `${hashPairs(pairs)} ${ldAlpha}`;
}
