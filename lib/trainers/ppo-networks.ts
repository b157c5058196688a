import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import { type RewardSource, rewardModels } from "../rewards/reward.ts";
import type { TrainedPart } from "./checkpoint.ts";
import { type PPOSettings, valueHeadOptions } from "./ppo-settings.ts";
import { addAdapterLike, type Network, policyOf, ReferencePolicy } from "./reference.ts";
import type { TrainingTarget } from "./target.ts";

/** The value head, and the adapter made here; adapters and heads of a model share one name space. */
export const VALUE = "value";
export const VALUE_ADAPTER = "value-adapter";

/**
 * What a separate value model is a copy of. Throws ERR_RLHF_ARGUMENT where that should be a reward model and there is none on the
 * policy's engine.
 */
export function valueStart(
  model: CausalLM,
  target: TrainingTarget,
  reward: RewardSource,
  { valueInit }: Pick<PPOSettings, "valueInit">,
): Network {
  if (valueInit === "policy") return policyOf(model, target);
  const [first] = rewardModels(reward);
  const problem = !first
    ? "needs a reward model, and the reward is a function"
    : first.model.engine !== model.engine && "needs the reward model on the policy's device and threads";
  if (!first || problem)
    throw new RlhfError("ERR_RLHF_ARGUMENT", `config.valueInit "reward" ${problem}; use "policy"`);
  return { model: first.model, ...(first.adapter === undefined ? {} : { adapter: first.adapter }) };
}

/** The networks of PPO. The reference is the policy's starting point. */
export class PpoNetworks implements Disposable {
  readonly policy: Network;
  readonly #reference: ReferencePolicy;
  readonly value: Network & { readonly head: string };
  /** True when one pass gives log-probs and values. */
  readonly sharesTrunk: boolean;
  readonly policyPart: TrainedPart;
  /** The value function's own part; null when it is trained with the policy by one optimizer. */
  readonly valuePart: TrainedPart | null;

  private constructor(
    policy: Network,
    reference: ReferencePolicy,
    value: Network & { head: string },
    settings: PPOSettings,
    full: boolean,
  ) {
    this.policy = policy;
    this.#reference = reference;
    this.value = value;
    this.sharesTrunk = value.model === policy.model && value.adapter === policy.adapter;
    const { model, adapter } = policy;
    const heads = this.sharesTrunk ? [value.head] : [];
    this.policyPart = {
      name: "policy",
      model,
      optimizer: model.createOptimizer({ ...adamWOptions(settings), base: full, adapter, heads }),
    };
    const ownBase = value.model !== model;
    this.valuePart = this.sharesTrunk
      ? null
      : {
          name: "value",
          model: value.model,
          optimizer: value.model.createOptimizer({
            ...adamWOptions(settings),
            base: ownBase,
            adapter: value.adapter,
            heads: [value.head],
          }),
        };
  }

  static async create(
    model: CausalLM,
    target: TrainingTarget,
    reward: RewardSource,
    settings: PPOSettings,
  ): Promise<PpoNetworks> {
    const policy = policyOf(model, target);
    const reference = await ReferencePolicy.startingPoint(model, target);
    const value = await PpoNetworks.#value(model, target, reward, settings);
    return new PpoNetworks(policy, reference, value, settings, target.kind === "full");
  }

  static async #value(
    model: CausalLM,
    target: TrainingTarget,
    reward: RewardSource,
    settings: PPOSettings,
  ): Promise<Network & { readonly head: string }> {
    const head = valueHeadOptions(settings);
    if (settings.valueModel === "separate") {
      const start = valueStart(model, target, reward, settings);
      const merge = start.adapter === undefined ? {} : { merge: start.adapter };
      const copy = await start.model.clone({ trainable: "all", ...merge });
      copy.addHead(VALUE, head);
      return { model: copy, head: VALUE };
    }
    if (!model.heads.has(VALUE)) model.addHead(VALUE, head);
    if (settings.valueModel === "shared") {
      return { ...policyOf(model, target), head: VALUE };
    }
    if (!model.adapters.has(VALUE_ADAPTER))
      addAdapterLike(model, target.adapter as string, VALUE_ADAPTER, settings.seed);
    return { model, adapter: VALUE_ADAPTER, head: VALUE };
  }

  get reference(): Network {
    return this.#reference.network;
  }

  get parts(): readonly TrainedPart[] {
    return this.valuePart ? [this.policyPart, this.valuePart] : [this.policyPart];
  }

  /** Frees what was made here: copies of the model, optimizers, the reference adapter. The policy stays. */
  [Symbol.dispose](): void {
    for (const part of this.parts) part.optimizer.dispose();
    this.#reference.dispose();
    if (this.value.model !== this.policy.model) this.value.model.dispose();
  }
}
