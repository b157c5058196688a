import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { type FloatArray, type Outputs, runOnArrays } from "./array.ts";
import type { Engine } from "./engine.ts";
import { type Activation, native } from "./native.ts";

/*
 * Small networks without state: parameters are one flat array, layer by layer W [out, in] row-major, then b [out]. All throw
 * ERR_RLHF_SHAPE when lengths do not fit the sizes, and ERR_RLHF_ARGUMENT for values outside their range.
 */

export interface MlpShape {
  /** Widths from the inputs over the hidden layers to the outputs. */
  readonly sizes: readonly number[];
  /** After every layer but the last. Default "tanh". */
  readonly activation?: Activation;
}

/** The length of the flat array of parameters. */
export function mlpParameterCount({ sizes }: MlpShape): number {
  return sizes.slice(1).reduce((sum, size, layer) => sum + ((sizes[layer] as number) + 1) * size, 0);
}

export interface MlpForwardArgs extends MlpShape {
  /** [N, inputs]. */
  readonly x: FloatArray;
  readonly parameters: FloatArray;
}

const MLP_FORWARD: NamesOf<MlpForwardArgs> = { sizes: true, activation: true, x: true, parameters: true };

/** y [N, outputs] of a multi-layer perceptron; `kept` is for `mlpBackward`. A row of y depends on its row of x alone, bit for bit. */
export function mlpForward(engine: Engine, args: MlpForwardArgs): Promise<Outputs<"y" | "kept">> {
  refuseUnknownOptions("mlpForward", args, MLP_FORWARD);
  return runOnArrays(engine, native().mlpForward, { ...args });
}

export interface MlpBackwardArgs extends MlpForwardArgs {
  readonly kept: FloatArray;
  /** The gradient of the outputs, [N, outputs]. */
  readonly dy: FloatArray;
}

const MLP_BACKWARD: NamesOf<MlpBackwardArgs> = {
  sizes: true,
  activation: true,
  x: true,
  parameters: true,
  kept: true,
  dy: true,
};

/** The gradient of the parameters, summed over the rows. */
export function mlpBackward(engine: Engine, args: MlpBackwardArgs): Promise<Outputs<"gradient">> {
  refuseUnknownOptions("mlpBackward", args, MLP_BACKWARD);
  return runOnArrays(engine, native().mlpBackward, { ...args });
}

export interface AdamWArgs {
  readonly parameters: FloatArray;
  readonly gradient: FloatArray;
  /** Moments; zeros before the first update. */
  readonly m: FloatArray;
  readonly v: FloatArray;
  /** 1 at the first update. */
  readonly step: number;
  readonly learningRate: number;
  /** Default 0.9. */
  readonly beta1?: number;
  /** Default 0.999. */
  readonly beta2?: number;
  /** Default 1e-8. */
  readonly eps?: number;
  /** Default 0. */
  readonly weightDecay?: number;
  /** Multiplies the gradient: the clipping factor. Default 1. */
  readonly gradientScale?: number;
}

const ADAM_W: NamesOf<AdamWArgs> = {
  parameters: true,
  gradient: true,
  m: true,
  v: true,
  step: true,
  learningRate: true,
  beta1: true,
  beta2: true,
  eps: true,
  weightDecay: true,
  gradientScale: true,
};

/** One AdamW update (Loshchilov & Hutter 2017) of one array; the inputs stay as they are. */
export function adamW(engine: Engine, args: AdamWArgs): Promise<Outputs<"parameters" | "m" | "v">> {
  refuseUnknownOptions("adamW", args, ADAM_W);
  return runOnArrays(engine, native().adamW, { ...args });
}
