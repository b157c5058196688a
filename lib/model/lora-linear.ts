import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { mergeLora } from "./adapters.ts";
import type { CausalLM } from "./causal-lm.ts";

/** The matrices of one adapted layer. */
export interface LoRALinearOptions {
  /** Float32Array[out·in]: the frozen weight W. */
  readonly weight: Float32Array;
  /** Float32Array[out], or left out: no bias. */
  readonly bias?: Float32Array;
  /** Float32Array[r·in]. */
  readonly loraA: Float32Array;
  /** Float32Array[out·r]. */
  readonly loraB: Float32Array;
  readonly r: number;
  readonly alpha: number;
  /** Scales by alpha/√r in place of alpha/r. Default false. */
  readonly useRslora?: boolean;
}

const LORA_LINEAR_OPTIONS: NamesOf<LoRALinearOptions> = {
  weight: true,
  bias: true,
  loraA: true,
  loraB: true,
  r: true,
  alpha: true,
  useRslora: true,
};

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  return Float32Array.from(values, (_, i) => values[(i % rows) * columns + Math.floor(i / rows)] as number);
}

/** x·Wᵀ for x [rows, inputs] and W [outputs, inputs]. */
function product(x: Float32Array, weight: Float32Array, inputs: number): Float64Array {
  const [rows, outputs] = [x.length / inputs, weight.length / inputs];
  const y = new Float64Array(rows * outputs);
  for (let row = 0; row < rows; row++)
    for (let o = 0; o < outputs; o++)
      for (let i = 0; i < inputs; i++)
        y[row * outputs + o]! += (x[row * inputs + i] as number) * (weight[o * inputs + i] as number);
  return y;
}

/**
 * What one adapted layer computes: y = x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ, scale = alpha/r (Hu et al. 2021). In plain TypeScript, to look inside and to
 * check against; models run the engine's fused kernel.
 */
export class LoRALinear {
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Of B·A. */
  readonly scale: number;
  readonly #options: LoRALinearOptions;

  /** Throws ERR_RLHF_SHAPE when the matrices do not fit each other. */
  constructor(options: LoRALinearOptions) {
    refuseUnknownOptions("LoRALinear", options, LORA_LINEAR_OPTIONS);
    const { weight, bias, loraA, loraB, r, alpha, useRslora = false } = options;
    this.scale = alpha / (useRslora ? Math.sqrt(r) : r);
    this.inFeatures = loraA.length / r;
    this.outFeatures = loraB.length / r;
    const fits =
      Number.isInteger(this.inFeatures) &&
      Number.isInteger(this.outFeatures) &&
      weight.length === this.inFeatures * this.outFeatures &&
      (bias === undefined || bias.length === this.outFeatures);
    if (!fits)
      throw new RlhfError(
        "ERR_RLHF_SHAPE",
        `LoRALinear: weight has ${weight.length} elements, A ${loraA.length}, B ${loraB.length}, bias ${bias?.length ?? "none"}; with r ${r} expected [out, in], [r, in], [out, r], [out]`,
      );
    this.#options = options;
  }

  /**
   * A copy of one adapted layer of a model.
   *
   * @param module the layer's full name, e.g. "model.layers.0.self_attn.q_proj"; throws ERR_RLHF_UNKNOWN_NAME for one that the
   * adapter does not cover
   */
  static async of(model: CausalLM, adapter: string, module: string): Promise<LoRALinear> {
    const info = model.adapters.get(adapter);
    const layer = info?.layers.get(module);
    const place = model.linearLayers.find((linear) => linear.module === module);
    if (!info || !layer || !place)
      throw new RlhfError(
        "ERR_RLHF_UNKNOWN_NAME",
        `LoRALinear: adapter "${adapter}" does not cover "${module}"`,
        {
          adapter,
          module,
        },
      );
    const { rank: r, scale } = layer;
    const { useRslora } = info;
    const alpha = scale * (useRslora ? Math.sqrt(r) : r);
    const loraA = await model.readParameter(`${adapter}:${module}.lora_A`);
    const loraB = await model.readParameter(`${adapter}:${module}.lora_B`);
    const stored = await model.readParameter(`${module}.weight`);
    const weight = place.transposed ? transpose(stored, place.inputs, place.outputs) : stored;
    const names = new Set(model.parameters().map((parameter) => parameter.name));
    const bias = names.has(`${module}.bias`) ? { bias: await model.readParameter(`${module}.bias`) } : {};
    return new LoRALinear({ weight, loraA, loraB, r, alpha, useRslora, ...bias });
  }

  /** y for x, Float32Array[rows·in] → Float32Array[rows·out]. Throws ERR_RLHF_SHAPE when x is no whole number of rows. */
  forward(x: Float32Array): Float32Array {
    const { weight, bias, loraA, loraB, r } = this.#options;
    if (x.length % this.inFeatures !== 0)
      throw new RlhfError(
        "ERR_RLHF_SHAPE",
        `LoRALinear: x has ${x.length} elements, expected rows of ${this.inFeatures}`,
      );
    const y = product(x, weight, this.inFeatures);
    const low = product(Float32Array.from(product(x, loraA, this.inFeatures)), loraB, r);
    return Float32Array.from(
      y,
      (value, i) => value + (bias?.[i % this.outFeatures] ?? 0) + this.scale * (low[i] as number),
    );
  }

  /** W + scale·B·A, Float32Array[out·in]: the weight of a plain layer that computes the same. */
  mergedWeight(): Promise<Float32Array> {
    const { weight, loraA, loraB, r } = this.#options;
    return mergeLora(weight, loraA, loraB, { rank: r, scale: this.scale }, false);
  }
}
