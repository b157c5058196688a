import type { CausalLM } from "../model/causal-lm.ts";
import { adamWOptions } from "../model/optimizer.ts";
import type { TrainedPart } from "./checkpoint.ts";
import type { GroupSettings } from "./group-settings.ts";
import { type Network, policyOf, ReferencePolicy } from "./reference.ts";
import type { TrainingTarget } from "./target.ts";

/** Whether the KL to the starting point counts anywhere. */
export function needsReference({
  klCoefficient,
  klLossCoefficient,
}: Pick<GroupSettings, "klCoefficient" | "klLossCoefficient">): boolean {
  return klCoefficient !== 0 || klLossCoefficient !== 0;
}

/** A policy, and its starting point where the KL to it counts. */
export class GroupNetworks implements Disposable {
  readonly policy: Network;
  readonly policyPart: TrainedPart;
  readonly #reference: ReferencePolicy | null;

  private constructor(policy: Network, policyPart: TrainedPart, reference: ReferencePolicy | null) {
    this.policy = policy;
    this.policyPart = policyPart;
    this.#reference = reference;
  }

  static async create(
    model: CausalLM,
    target: TrainingTarget,
    settings: GroupSettings,
  ): Promise<GroupNetworks> {
    const reference = needsReference(settings) ? await ReferencePolicy.startingPoint(model, target) : null;
    const optimizer = model.createOptimizer({
      ...adamWOptions(settings),
      base: target.kind === "full",
      adapter: target.adapter,
      heads: [],
    });
    return new GroupNetworks(policyOf(model, target), { name: "policy", model, optimizer }, reference);
  }

  get reference(): Network | null {
    return this.#reference?.network ?? null;
  }

  get parts(): readonly TrainedPart[] {
    return [this.policyPart];
  }

  /** Frees what was made here: the optimizer and the reference. The policy stays. */
  [Symbol.dispose](): void {
    this.policyPart.optimizer.dispose();
    this.#reference?.dispose();
  }
}
