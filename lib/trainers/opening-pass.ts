import type { PackedBatch } from "../model/batch.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import {
  type ForwardBackwardOptions,
  type LossSums,
  lossBackward,
  type TokenLoss,
} from "../model/forward-backward.ts";
import type { Pass } from "../model/pass.ts";
import type { RolloutBatch } from "./rollouts.ts";

/**
 * The forward pass that an iteration's updates begin with. It has the weights that rollouts are measured with, so it measures its own,
 * and the first update goes on from it: the same bits as another pass, without its time.
 */
export class OpeningPass implements Disposable {
  /** The rollouts of the first micro-batch, in its order. */
  readonly rolloutsOf: (batch: RolloutBatch) => readonly number[];
  #pass: Pass | null = null;

  constructor(rolloutsOf: (batch: RolloutBatch) => readonly number[]) {
    this.rolloutsOf = rolloutsOf;
  }

  /** Holds the pass, which has `grad`, until it is taken. */
  keep(pass: Pass): void {
    this.#pass = pass;
  }

  /** For the first micro-batch; null for all after it. */
  take(): Pass | null {
    const pass = this.#pass;
    this.#pass = null;
    return pass;
  }

  [Symbol.dispose](): void {
    this.take()?.dispose();
  }
}

/** `CausalLM.forwardBackward`, from `begun` on where its forward pass has been run. */
export async function trainOnLoss<Loss extends TokenLoss>(
  model: CausalLM,
  batch: PackedBatch,
  loss: Loss,
  options: ForwardBackwardOptions,
  begun: Pass | null,
): Promise<LossSums<Loss>> {
  if (begun) return lossBackward(begun, batch, loss, options.value);
  using pass = await model.forwardBackward(batch, loss, options);
  return pass;
}
