import { DeviceArray, type FloatArray, toNative } from "../engine/array.ts";
import { call, callAsync, type NativePass } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";

/** Upstream gradients of a pass: arrays of N; left out means zero. */
export interface PassGradients {
  readonly dLogProb?: FloatArray;
  readonly dLse?: FloatArray;
  readonly dEntropy?: FloatArray;
  readonly dValue?: FloatArray;
  readonly dKl?: FloatArray;
}

const GRADIENTS: NamesOf<PassGradients> = {
  dLogProb: true,
  dLse: true,
  dEntropy: true,
  dValue: true,
  dKl: true,
};

/** The arrays of a pass where they were computed, each of N elements. */
export interface PassArrays {
  /** At index t the log-probability of token t given those before it; 0 at a sequence's first token. */
  readonly logProb: DeviceArray;
  /** At index t log Σ exp of the logits (divided by the temperature) that token t was predicted with. */
  readonly lse: DeviceArray;
  /** At index t the entropy in nats of the distribution that token t was predicted with. */
  readonly entropy: DeviceArray;
  /** At index t the head's output on the hidden state of token t. */
  readonly value: DeviceArray;
  /**
   * At index t the KL divergence in nats, over the whole vocabulary, between the distribution that token t was predicted with and the
   * reference pass's; 0 where nothing was predicted.
   */
  readonly kl: DeviceArray;
}

/**
 * The result of `CausalLM.forward`. One with `grad: true` holds its activations until `backward` consumes it or it is disposed of.
 */
export class Pass implements Disposable {
  /** The addon's handle, for the package's own modules. */
  readonly native: NativePass;
  readonly #arrays: DeviceArray[] = [];
  #consumed = false;
  /** N: the number of tokens of the batch. */
  readonly rows: number;
  readonly device: PassArrays;

  constructor(handle: NativePass) {
    this.native = handle;
    this.rows = handle.rows;
    const array = (which: keyof PassArrays): DeviceArray => {
      const result = new DeviceArray(call(() => this.native.array(which)));
      this.#arrays.push(result);
      return result;
    };
    this.device = {
      get logProb() {
        return array("logProb");
      },
      get lse() {
        return array("lse");
      },
      get entropy() {
        return array("entropy");
      },
      get value() {
        return array("value");
      },
      get kl() {
        return array("kl");
      },
    };
  }

  /** Float32Array[N], a copy. */
  logProb(): Promise<Float32Array> {
    return this.#read("logProb");
  }
  /** Float32Array[N], a copy. */
  lse(): Promise<Float32Array> {
    return this.#read("lse");
  }
  /** Float32Array[N], a copy. */
  entropy(): Promise<Float32Array> {
    return this.#read("entropy");
  }
  /** Float32Array[N], a copy. Throws ERR_RLHF_ARGUMENT when the pass had no head. */
  value(): Promise<Float32Array> {
    return this.#read("value");
  }
  /** Float32Array[N], a copy. Throws ERR_RLHF_ARGUMENT when the pass had no reference. */
  kl(): Promise<Float32Array> {
    return this.#read("kl");
  }

  async #read(which: keyof PassArrays): Promise<Float32Array> {
    this.#checkNotConsumed();
    using array = new DeviceArray(call(() => this.native.array(which)));
    return await array.read();
  }

  /**
   * Adds the gradients of Σ (dLogProb·logProb + dLse·lse + dEntropy·entropy + dValue·value + dKl·kl) to those of every trainable
   * parameter that took part, and consumes the pass. Throws ERR_RLHF_PASS_CONSUMED the second time and ERR_RLHF_ARGUMENT for a pass without `grad`.
   */
  async backward(gradients: PassGradients): Promise<void> {
    refuseUnknownOptions("backward", gradients, GRADIENTS);
    this.#checkNotConsumed();
    await callAsync(() =>
      this.native.backward({
        dLogProb: toNative(gradients.dLogProb),
        dLse: toNative(gradients.dLse),
        dEntropy: toNative(gradients.dEntropy),
        dValue: toNative(gradients.dValue),
        dKl: toNative(gradients.dKl),
      }),
    );
    this.#consumed = true;
    this.dispose();
  }

  #checkNotConsumed(): void {
    if (this.#consumed)
      throw new RlhfError(
        "ERR_RLHF_PASS_CONSUMED",
        "this pass was consumed by backward(), which frees its activations; read its results before, or run forward() again",
      );
  }

  dispose(): void {
    for (const array of this.#arrays) array.dispose();
    this.native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
