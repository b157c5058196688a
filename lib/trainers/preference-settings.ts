import { RlhfError } from "../errors.ts";
import { flag, oneOf, positive, positiveFraction, positiveInteger, type Rules } from "./settings.ts";
import {
  SUPERVISED_DEFAULTS,
  SUPERVISED_RULES,
  type SupervisedConfig,
  type SupervisedSettings,
} from "./supervised.ts";

/** Settings of the trainers that learn preferences without a reward model. */
export interface PreferenceConfig extends SupervisedConfig {
  /** How strongly the policy is tied to its reference, or how strongly log-probs count as rewards; see each trainer. */
  readonly beta?: number;
  /**
   * What happens to answers over maxLength: "truncate" (default) cuts their end off and leaves out those whose prompt alone fills
   * it, "drop" leaves them out whole; a pair always as a pair.
   */
  readonly overlong?: "truncate" | "drop";
  /** Whether `save` merges an adapter into the weights (default), or writes the adapter alone in PEFT's format. */
  readonly saveMerged?: boolean;
}

export type PreferenceSettings = SupervisedSettings &
  PreferenceConfig &
  Required<Pick<PreferenceConfig, "beta" | "overlong">>;

export const PREFERENCE_DEFAULTS = { ...SUPERVISED_DEFAULTS, beta: 0.1, overlong: "truncate" as const };

export const PREFERENCE_RULES: Rules<PreferenceConfig> = {
  ...SUPERVISED_RULES,
  beta: positive,
  overlong: oneOf("truncate", "drop"),
  saveMerged: flag,
};

/** Settings of the trainers that learn from pairs of answers to one prompt. */
export interface PairConfig extends PreferenceConfig {
  /** Whether a pair's prompt is computed once for both answers. Log-probs are the same bits either way. Default true. */
  readonly sharePrompts?: boolean;
}

export type PairSettings = PreferenceSettings & PairConfig & Required<Pick<PairConfig, "sharePrompts">>;

export const PAIR_DEFAULTS = { ...PREFERENCE_DEFAULTS, sharePrompts: true };

export const PAIR_RULES: Rules<PairConfig> = { ...PREFERENCE_RULES, sharePrompts: flag };

/** Settings of the trainers that compare the policy with a reference. */
export interface ReferenceConfig {
  /** Lets the reference follow the policy (TR-DPO): it becomes a model of its own, mixed with the policy from time to time. Default false. */
  readonly syncRefModel?: boolean;
  /** The policy's share when the two are mixed. Default 0.6. */
  readonly refModelMixupAlpha?: number;
  /** Steps from one mixing to the next. Default 512. */
  readonly refModelSyncSteps?: number;
}

export type ReferenceSettings = Required<ReferenceConfig>;

export const REFERENCE_DEFAULTS: ReferenceSettings = {
  syncRefModel: false,
  refModelMixupAlpha: 0.6,
  refModelSyncSteps: 512,
};

export const REFERENCE_RULES: Rules<ReferenceConfig> = {
  syncRefModel: flag,
  refModelMixupAlpha: positiveFraction,
  refModelSyncSteps: positiveInteger,
};

/** Throws ERR_RLHF_ARGUMENT when settings that exclude each other are both on. */
export function refuseTogether(settings: Readonly<Record<string, boolean>>, why: string): void {
  const on = Object.keys(settings).filter((name) => settings[name]);
  if (on.length < 2) return;
  throw new RlhfError("ERR_RLHF_ARGUMENT", `config: ${on.join(" and ")} exclude each other: ${why}`);
}
