import { createHash } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { RlhfError } from "../errors.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import { hashModel } from "../model/fingerprint.ts";
import type { KeptWeights } from "./checkpoint.ts";
import type { TrainingTarget } from "./target.ts";

/** What a forward pass runs on: a model, and which of its adapters and heads. */
export interface Network {
  readonly model: CausalLM;
  readonly adapter?: string;
  readonly head?: string;
}

/** The adapter that holds a frozen copy of one that training goes on from. */
export const REFERENCE = "reference";

/** Elements to work on between two turns of the event loop: some milliseconds. */
const ELEMENTS_PER_TURN = 4_000_000;

/** An adapter does nothing while all its B are zero. */
async function isUntrained(model: CausalLM, adapter: string): Promise<boolean> {
  for (const { name, group } of model.parameters()) {
    if (group !== `adapter:${adapter}` || !name.endsWith("lora_B")) continue;
    if ((await model.readParameter(name)).some((value) => value !== 0)) return false;
  }
  return true;
}

/** Adds an adapter of the same form as another one. */
export function addAdapterLike(model: CausalLM, adapter: string, name: string, seed: number): void {
  const info = model.adapters.get(adapter);
  if (!info) throw new RlhfError("ERR_RLHF_UNKNOWN_NAME", `the model has no adapter "${adapter}"`);
  model.addAdapter(name, { ...info, seed });
}

/** The policy as a training target describes it. */
export function policyOf(model: CausalLM, target: TrainingTarget): Network {
  return target.adapter === undefined ? { model } : { model, adapter: target.adapter };
}

/** A frozen policy to compare the trained one with, and what had to be made for it. */
export class ReferencePolicy implements Disposable {
  readonly network: Network;
  readonly #dispose: () => void;

  private constructor(network: Network, dispose: () => void = () => {}) {
    this.network = network;
    this.#dispose = dispose;
  }

  /** A model of the caller's, which stays. */
  static given(model: CausalLM): ReferencePolicy {
    return new ReferencePolicy({ model });
  }

  /**
   * The policy's starting point, whatever that is: a frozen copy of the weights, the base under a new adapter, or a frozen copy
   * of an adapter that had been trained before.
   */
  static async startingPoint(model: CausalLM, target: TrainingTarget): Promise<ReferencePolicy> {
    if (target.kind !== "lora") return ReferencePolicy.#owning(await model.clone());
    if (await isUntrained(model, target.adapter)) return new ReferencePolicy({ model });
    await model.copyAdapter(target.adapter, REFERENCE, { trainable: false });
    return new ReferencePolicy({ model, adapter: REFERENCE }, () => model.removeAdapter(REFERENCE));
  }

  /** The policy itself, for what is measured before its first update. */
  static async asYet(model: CausalLM, target: TrainingTarget): Promise<ReferencePolicy> {
    const untrained = target.kind !== "lora" || (await isUntrained(model, target.adapter));
    return new ReferencePolicy(untrained ? { model } : policyOf(model, target));
  }

  /**
   * A model of its own with the policy's weights now, an adapter merged into them, that can follow the policy: in float32, as a share of
   * an update may be too small for the policy's own type.
   */
  static async follower(model: CausalLM, target?: TrainingTarget): Promise<ReferencePolicy> {
    const merge = target?.kind === "lora" ? { merge: target.adapter } : {};
    return ReferencePolicy.#owning(await model.clone({ ...merge, dtype: "float32" }));
  }

  static #owning(model: CausalLM): ReferencePolicy {
    return new ReferencePolicy({ model }, () => model.dispose());
  }

  /** For checkpoints of runs in which it follows the policy. */
  get keptWeights(): KeptWeights {
    return { name: REFERENCE, model: this.network.model, groups: ["base"] };
  }

  /** reference ← alpha·policy + (1 − alpha)·reference, weight by weight (Gorbatovski et al. 2024, TR-DPO). Only for a `follower`. */
  async follow(model: CausalLM, target: TrainingTarget, alpha: number): Promise<void> {
    using merged = target.kind === "lora" ? await model.clone({ merge: target.adapter }) : null;
    const source = merged ?? model;
    for (const { name } of this.network.model.parameters().filter(({ group }) => group === "base")) {
      const policy = await source.readParameter(name);
      const weights = await this.network.model.readParameter(name);
      for (let i = 0; i < weights.length; i++) {
        if (i % ELEMENTS_PER_TURN === ELEMENTS_PER_TURN - 1) await nextTurn();
        weights[i] = alpha * (policy[i] as number) + (1 - alpha) * (weights[i] as number);
      }
      await this.network.model.writeParameter(name, weights);
    }
  }

  /** SHA-256 of all that decides what it computes: configuration, weights, and the engine that runs them. */
  async fingerprint(): Promise<string> {
    const { model, adapter } = this.network;
    const groups = ["base", ...(adapter === undefined ? [] : [`adapter:${adapter}`])];
    const info = adapter === undefined ? null : model.adapters.get(adapter);
    // The same bits come from any number of threads.
    const { threads: _, ...engine } = model.engine.info;
    const hash = createHash("sha256").update(JSON.stringify([info, engine]));
    hash.update(await hashModel(model, groups));
    return hash.digest("hex");
  }

  /** Frees what was made for it. */
  dispose(): void {
    this.#dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
