import type { PackedBatch } from "./batch.ts";
import type { CausalLM } from "./causal-lm.ts";
import type { HeadOptions } from "./heads.ts";
import type { ForwardOptions, Parameter } from "./model-options.ts";

/** A scalar head on a model's final hidden states; by default hidden → hidden → 1 with tanh, as PPO uses it. */
export class ValueHead implements Disposable {
  readonly model: CausalLM;
  readonly name: string;

  /** Adds the head to the model. Throws ERR_RLHF_ARGUMENT when the model has one of this name. */
  constructor(model: CausalLM, options: HeadOptions & { readonly name?: string } = {}) {
    const { name = "value", ...head } = options;
    model.addHead(name, { kind: "mlp", ...head });
    this.model = model;
    this.name = name;
  }

  /** Its value on every hidden state, Float32Array[N]: V before token t stands at t − 1. */
  async forward(batch: PackedBatch, options: Pick<ForwardOptions, "adapter"> = {}): Promise<Float32Array> {
    using pass = await this.model.forward(batch, { ...options, head: this.name, statistics: false });
    return await pass.value();
  }

  /** The head's own parameters. */
  get parameters(): Parameter[] {
    return this.model.parameters().filter((parameter) => parameter.group === `head:${this.name}`);
  }

  /** Takes the head off the model. */
  dispose(): void {
    this.model.removeHead(this.name);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
