import type { Random } from "../data/random.ts";
import type { DeviceArray } from "../engine/array.ts";
import type { Engine } from "../engine/engine.ts";
import { type MlpShape, mlpBackward, mlpForward, mlpParameterCount } from "../engine/mlp.ts";
import type { ParameterSlice } from "./flat-parameters.ts";

/** A forward pass, and what its backward needs; `dispose` frees what the engine holds for it. */
export interface MlpPass extends Disposable {
  readonly x: Float32Array;
  /** [N, outputs] */
  readonly y: Float32Array;
  readonly kept: DeviceArray;
}

/** A small network on the engine: a multi-layer perceptron over a flat array of parameters, its own or a part of a larger one. */
export class Mlp {
  readonly shape: MlpShape;
  readonly parameters: Float32Array;
  readonly #engine: Engine;

  constructor(
    engine: Engine,
    shape: MlpShape,
    parameters: Float32Array = new Float32Array(mlpParameterCount(shape)),
  ) {
    this.#engine = engine;
    this.shape = shape;
    this.parameters = parameters;
  }

  /** Outputs of the rows of x. */
  async forward(x: Float32Array): Promise<MlpPass> {
    const { y, kept } = await mlpForward(this.#engine, { ...this.shape, parameters: this.parameters, x });
    const values = await y.read();
    y.dispose();
    return { x, y: values, kept, [Symbol.dispose]: () => kept.dispose() };
  }

  /** The gradient of the parameters, from that of a pass's outputs. */
  async backward({ x, kept }: MlpPass, dy: Float32Array): Promise<Float32Array> {
    const args = { ...this.shape, parameters: this.parameters, x, kept, dy };
    const { gradient } = await mlpBackward(this.#engine, args);
    const values = await gradient.read();
    gradient.dispose();
    return values;
  }

  /** Normal weights that keep the size of what passes through (deviation 1/√inputs), the last layer's times `lastGain`; no biases. */
  initialise(random: Random, lastGain: number): void {
    const { sizes } = this.shape;
    let at = 0;
    for (let layer = 0; layer + 1 < sizes.length; layer++) {
      const [inputs, outputs] = [sizes[layer] as number, sizes[layer + 1] as number];
      const gain = layer + 2 === sizes.length ? lastGain : Math.SQRT2;
      for (let i = 0; i < inputs * outputs; i++)
        this.parameters[at++] = (gain * random.normal()) / Math.sqrt(inputs);
      this.parameters.fill(0, at, at + outputs);
      at += outputs;
    }
  }

  /** Names and shapes of the parameters as PyTorch's `nn.Linear` has them: layers.0.weight [out, in], layers.0.bias, … */
  slices(prefix = ""): ParameterSlice[] {
    const { sizes } = this.shape;
    return sizes.slice(1).flatMap((outputs, layer) => [
      { name: `${prefix}layers.${layer}.weight`, shape: [outputs, sizes[layer] as number] },
      { name: `${prefix}layers.${layer}.bias`, shape: [outputs] },
    ]);
  }
}
