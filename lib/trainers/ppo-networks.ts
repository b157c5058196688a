import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { TrainedPart } from "./checkpoint.ts";
import { type PPOSettings, valueHeadOptions } from "./ppo-settings.ts";
import type { TrainingTarget } from "./target.ts";

/** What a forward pass runs on: a model, and which of its adapters and heads. */
export interface Network {
  readonly model: CausalLM;
  readonly adapter?: string;
  readonly head?: string;
}

/** The value head, and the adapters made here; adapters and heads of a model share one name space. */
const VALUE = "value";
const VALUE_ADAPTER = "value-adapter";
const REFERENCE = "reference";

/** An adapter does nothing while all its B are zero. */
async function isUntrained(model: CausalLM, adapter: string): Promise<boolean> {
  for (const { name, group } of model.parameters()) {
    if (group !== `adapter:${adapter}` || !name.endsWith("lora_B")) continue;
    if ((await model.readParameter(name)).some((value) => value !== 0)) return false;
  }
  return true;
}

function addAdapterLike(model: CausalLM, adapter: string, name: string, seed: number): void {
  const info = model.adapters.get(adapter);
  if (!info) throw new RlhfError("ERR_RLHF_UNKNOWN_NAME", `the model has no adapter "${adapter}"`);
  model.addAdapter(name, { ...info, seed });
}

async function copyAdapter(model: CausalLM, from: string, to: string): Promise<void> {
  addAdapterLike(model, from, to, 0);
  for (const { name, group } of model.parameters()) {
    if (group !== `adapter:${from}`) continue;
    await model.writeParameter(`${to}${name.slice(from.length)}`, await model.readParameter(name));
  }
}

/**
 * The networks of PPO. The reference is the policy's starting point, whatever that is: a frozen copy of the weights, the base
 * under a new adapter, or a frozen copy of an adapter that had been trained before.
 */
export class PpoNetworks implements Disposable {
  readonly policy: Network;
  readonly reference: Network;
  readonly value: Network & { readonly head: string };
  /** True when one pass gives log-probs and values. */
  readonly sharesTrunk: boolean;
  readonly policyPart: TrainedPart;
  /** The value function's own part; null when it is trained with the policy by one optimizer. */
  readonly valuePart: TrainedPart | null;

  private constructor(
    policy: Network,
    reference: Network,
    value: Network & { head: string },
    settings: PPOSettings,
    full: boolean,
  ) {
    this.policy = policy;
    this.reference = reference;
    this.value = value;
    this.sharesTrunk = value.model === policy.model && value.adapter === policy.adapter;
    const { model, adapter } = policy;
    const heads = this.sharesTrunk ? [value.head] : [];
    this.policyPart = {
      name: "policy",
      model,
      optimizer: model.createOptimizer({ ...settings, base: full, adapter, heads }),
    };
    const ownBase = value.model !== model;
    this.valuePart = this.sharesTrunk
      ? null
      : {
          name: "value",
          model: value.model,
          optimizer: value.model.createOptimizer({
            ...settings,
            base: ownBase,
            adapter: value.adapter,
            heads: [value.head],
          }),
        };
  }

  static async create(model: CausalLM, target: TrainingTarget, settings: PPOSettings): Promise<PpoNetworks> {
    const policy = { model, ...(target.adapter === undefined ? {} : { adapter: target.adapter }) };
    const reference = await PpoNetworks.#reference(model, target);
    const value = await PpoNetworks.#value(model, target, settings);
    return new PpoNetworks(policy, reference, value, settings, target.kind === "full");
  }

  static async #reference(model: CausalLM, target: TrainingTarget): Promise<Network> {
    if (target.kind !== "lora") return { model: await model.clone() };
    if (await isUntrained(model, target.adapter)) return { model };
    await copyAdapter(model, target.adapter, REFERENCE);
    return { model, adapter: REFERENCE };
  }

  static async #value(
    model: CausalLM,
    target: TrainingTarget,
    settings: PPOSettings,
  ): Promise<Network & { readonly head: string }> {
    const head = valueHeadOptions(settings);
    if (settings.valueModel === "separate") {
      const copy = await model.clone({
        trainable: "all",
        ...(target.adapter === undefined ? {} : { merge: target.adapter }),
      });
      copy.addHead(VALUE, head);
      return { model: copy, head: VALUE };
    }
    if (!model.heads.has(VALUE)) model.addHead(VALUE, head);
    if (settings.valueModel === "shared") {
      return { model, head: VALUE, ...(target.adapter === undefined ? {} : { adapter: target.adapter }) };
    }
    if (!model.adapters.has(VALUE_ADAPTER))
      addAdapterLike(model, target.adapter as string, VALUE_ADAPTER, settings.seed);
    return { model, adapter: VALUE_ADAPTER, head: VALUE };
  }

  get parts(): readonly TrainedPart[] {
    return this.valuePart ? [this.policyPart, this.valuePart] : [this.policyPart];
  }

  /** Frees what was made here: copies of the model, optimizers, the reference adapter. The policy stays. */
  dispose(): void {
    for (const part of this.parts) part.optimizer.dispose();
    const { model } = this.policy;
    if (this.reference.adapter !== undefined) model.removeAdapter(this.reference.adapter);
    for (const network of [this.reference, this.value]) if (network.model !== model) network.model.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
