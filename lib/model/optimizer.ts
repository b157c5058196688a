import { call, callAsync, type NativeModel, type NativeOptimizer, native } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";

/** Settings of AdamW; the defaults are torch.optim.AdamW's, but for weight decay. */
export interface AdamWOptions {
  /** Default [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** Default 1e-8. */
  readonly eps?: number;
  /** Decoupled, on every parameter of the groups. Default 0. */
  readonly weightDecay?: number;
  /** Of the stochastic rounding of weights that train in bfloat16, with the number of the step: trainers give theirs. Default 0. */
  readonly seed?: number;
}

export interface StepOptions {
  readonly learningRate: number;
  /** Gradients are scaled so that their global norm is at most this. Default 0: not clipped. */
  readonly maxGradNorm?: number;
  /** Multiplies the gradients first. Default 1. */
  readonly gradientScale?: number;
}

const STEP_OPTIONS: NamesOf<StepOptions> = { learningRate: true, maxGradNorm: true, gradientScale: true };

export interface StepResult {
  /** The global norm over all groups, before clipping. */
  readonly gradNorm: number;
  /** True when the norm was not finite: nothing was updated. */
  readonly skipped: boolean;
  /** What the gradients had been multiplied by on their way; 1 but for products in float16. */
  readonly lossScale: number;
}

/** The moments of one parameter, for checkpoints. */
export interface Moments {
  readonly m: Float32Array;
  readonly v: Float32Array;
}

/** The optimizer's part of a trainer's settings. */
export function adamWOptions({ betas, eps, weightDecay, seed }: AdamWOptions): AdamWOptions {
  return { betas, eps, weightDecay, seed };
}

/** AdamW (Loshchilov & Hutter 2017) over some of a model's parameter groups. */
export class Optimizer implements Disposable {
  readonly #native: NativeOptimizer;
  readonly #sizes: ReadonlyMap<string, number>;
  /** "base", "adapter:<name>", "head:<name>". */
  readonly groups: readonly string[];

  constructor(model: NativeModel, groups: readonly string[], options: AdamWOptions) {
    const [beta1, beta2] = options.betas ?? [0.9, 0.999];
    this.groups = groups;
    this.#native = call(
      () =>
        new (native().Optimizer)(model, groups, {
          beta1,
          beta2,
          eps: options.eps ?? 1e-8,
          weightDecay: options.weightDecay ?? 0,
          seed: options.seed ?? 0,
        }),
    );
    this.#sizes = new Map(
      call(() => model.parameters())
        .filter((parameter) => groups.includes(parameter.group))
        .map((parameter) => [parameter.name, parameter.shape.reduce((product, size) => product * size, 1)]),
    );
  }

  /** Names of the parameters that it updates. */
  get parameters(): string[] {
    return [...this.#sizes.keys()];
  }

  /** Updates done so far. */
  get stepCount(): number {
    return call(() => this.#native.stepCount());
  }

  setStepCount(steps: number): Promise<void> {
    return callAsync(() => this.#native.setStepCount(steps));
  }

  /**
   * The model's loss scale and the steps with finite gradients since it changed, of products in float16; else null. A step whose
   * gradients are not finite halves it, 2000 others in a row double it.
   */
  get lossScale(): readonly [scale: number, steps: number] | null {
    return call(() => this.#native.lossScale());
  }

  setLossScale(scale: number, steps: number): Promise<void> {
    return callAsync(() => this.#native.setLossScale(scale, steps));
  }

  /** Clips, updates and zeroes the gradients of its groups. */
  step(options: StepOptions): Promise<StepResult> {
    refuseUnknownOptions("step", options, STEP_OPTIONS);
    return callAsync(() =>
      this.#native.step({
        learningRate: options.learningRate,
        maxGradNorm: options.maxGradNorm ?? 0,
        gradientScale: options.gradientScale ?? 1,
      }),
    );
  }

  #size(parameter: string): number {
    const size = this.#sizes.get(parameter);
    if (size === undefined)
      throw new RlhfError("ERR_RLHF_UNKNOWN_NAME", `this optimizer does not update "${parameter}"`, {
        parameter,
      });
    return size;
  }

  async exportMoments(parameter: string): Promise<Moments> {
    const size = this.#size(parameter);
    const moments = { m: new Float32Array(size), v: new Float32Array(size) };
    await callAsync(() => this.#native.exportMoments(parameter, moments.m, moments.v));
    return moments;
  }

  async importMoments(parameter: string, moments: Moments): Promise<void> {
    this.#size(parameter);
    await callAsync(() => this.#native.importMoments(parameter, moments.m, moments.v));
  }

  dispose(): void {
    this.#native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
