/*
 * Names of losses, without anything that they are computed with: the pipeline's schema needs them before the engine is loaded.
 */

/** The losses of direct preference optimisation, under TRL's names; "sft" is the likelihood of chosen answers. */
export const DPO_LOSSES = [
  "sigmoid",
  "hinge",
  "ipo",
  "exo_pair",
  "nca_pair",
  "robust",
  "bco_pair",
  "sppo_hard",
  "aot",
  "aot_unpaired",
  "apo_zero",
  "apo_down",
  "discopop",
  "sigmoid_norm",
  "sft",
] as const;

export type DpoLoss = (typeof DPO_LOSSES)[number];

/** Divergences from the reference (Wang et al. 2023, f-DPO); "reverse_kl" is plain DPO. */
export const F_DIVERGENCES = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] as const;

export type FDivergence = (typeof F_DIVERGENCES)[number];

/** Losses of the reward difference of a pair, the only ones that another divergence than reverse_kl is defined for. */
export const DIFFERENCE_LOSSES: ReadonlySet<DpoLoss> = new Set([
  "sigmoid",
  "sigmoid_norm",
  "hinge",
  "ipo",
  "exo_pair",
  "robust",
  "discopop",
  "sft",
]);

/** The losses of contrastive preference optimisation. */
export const CPO_LOSSES = ["sigmoid", "hinge", "ipo"] as const;

export type CpoLoss = (typeof CPO_LOSSES)[number];
