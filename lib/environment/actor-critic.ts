import { Random } from "../data/random.ts";
import type { DeviceArray } from "../engine/array.ts";
import type { Engine } from "../engine/engine.ts";
import { adamW, type MlpShape, mlpBackward, mlpForward, mlpParameterCount } from "../engine/mlp.ts";
import { RlhfError } from "../errors.ts";
import { type ActionDistribution, Categorical, DiagonalGaussian } from "./distribution.ts";
import type { EnvironmentSpaces } from "./environment.ts";

export interface ActorCriticOptions {
  /** Widths of the hidden layers, of policy and value network alike. */
  readonly hidden: readonly number[];
  readonly activation: "tanh" | "relu";
  /** Of continuous actions, at the start. */
  readonly initialLogStd: number;
  readonly seed: number;
}

export interface AdamWSettings {
  readonly learningRate: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** null: gradients are not clipped. */
  readonly maxGradNorm: number | null;
}

/** What AdamW keeps. */
export interface OptimizerState {
  readonly m: Float32Array;
  readonly v: Float32Array;
  readonly step: number;
}

/** Outputs of a pass over a minibatch, and what its backward needs. */
interface NetworkPass {
  readonly y: Float32Array;
  readonly kept: DeviceArray;
}

/** A forward pass of both networks; `dispose` frees what the engine holds for it. */
export interface ActorCriticPass extends Disposable {
  readonly observations: Float32Array;
  /** [N, actionSize] */
  readonly outputs: Float32Array;
  /** [N] */
  readonly value: Float32Array;
  readonly actor: NetworkPass;
  readonly critic: NetworkPass;
}

/**
 * Policy and value function of a control task: two networks of the same hidden widths on the engine. Their parameters are one flat array,
 * the policy's, then the value function's, then the log deviations of continuous actions.
 */
export class ActorCritic {
  readonly distribution: ActionDistribution;
  readonly parameters: Float32Array;
  optimizer: OptimizerState;
  readonly #engine: Engine;
  readonly #actor: MlpShape;
  readonly #critic: MlpShape;
  readonly #actorCount: number;
  readonly #criticCount: number;

  constructor(engine: Engine, spaces: EnvironmentSpaces, options: ActorCriticOptions) {
    const { observationSize, actionSize, actionKind } = spaces;
    const { hidden, activation } = options;
    this.#engine = engine;
    this.distribution =
      actionKind === "discrete" ? new Categorical(actionSize) : new DiagonalGaussian(actionSize);
    this.#actor = { sizes: [observationSize, ...hidden, actionSize], activation };
    this.#critic = { sizes: [observationSize, ...hidden, 1], activation };
    this.#actorCount = mlpParameterCount(this.#actor);
    this.#criticCount = mlpParameterCount(this.#critic);
    const logStdCount = actionKind === "continuous" ? actionSize : 0;
    const count = this.#actorCount + this.#criticCount + logStdCount;
    this.parameters = new Float32Array(count).fill(options.initialLogStd, count - logStdCount);
    this.optimizer = { m: new Float32Array(count), v: new Float32Array(count), step: 0 };
    // A first policy that is nearly the same everywhere explores; values begin near 0.
    initialise(this.#actorParameters, this.#actor, 0.01, new Random(options.seed, "actor"));
    initialise(this.#criticParameters, this.#critic, 1, new Random(options.seed, "critic"));
  }

  get #actorParameters(): Float32Array {
    return this.parameters.subarray(0, this.#actorCount);
  }
  get #criticParameters(): Float32Array {
    return this.parameters.subarray(this.#actorCount, this.#actorCount + this.#criticCount);
  }
  /** [actionSize] of continuous actions; empty for discrete ones. */
  get logStd(): Float32Array {
    return this.parameters.subarray(this.#actorCount + this.#criticCount);
  }

  /** Policy outputs and values of normalised observations [N, observationSize]. */
  async forward(observations: Float32Array): Promise<ActorCriticPass> {
    const [actor, critic] = await Promise.all([
      this.#network(this.#actor, this.#actorParameters, observations),
      this.#network(this.#critic, this.#criticParameters, observations),
    ]);
    return {
      observations,
      outputs: actor.y,
      value: critic.y,
      actor,
      critic,
      [Symbol.dispose]() {
        actor.kept.dispose();
        critic.kept.dispose();
      },
    };
  }

  async #network(shape: MlpShape, parameters: Float32Array, x: Float32Array): Promise<NetworkPass> {
    const { y, kept } = await mlpForward(this.#engine, { ...shape, parameters, x });
    const values = await y.read();
    y.dispose();
    return { y: values, kept };
  }

  /** The gradient of all parameters, from those of a pass's outputs. */
  async backward(
    pass: ActorCriticPass,
    gradients: { dOutputs: Float32Array; dLogStd: Float32Array; dValue: Float32Array },
  ): Promise<Float32Array> {
    const x = pass.observations;
    const backward = async (
      shape: MlpShape,
      parameters: Float32Array,
      kept: DeviceArray,
      dy: Float32Array,
    ) => {
      const { gradient } = await mlpBackward(this.#engine, { ...shape, parameters, x, kept, dy });
      const values = await gradient.read();
      gradient.dispose();
      return values;
    };
    const [actor, critic] = await Promise.all([
      backward(this.#actor, this.#actorParameters, pass.actor.kept, gradients.dOutputs),
      backward(this.#critic, this.#criticParameters, pass.critic.kept, gradients.dValue),
    ]);
    const gradient = new Float32Array(this.parameters.length);
    gradient.set(actor);
    gradient.set(critic, this.#actorCount);
    gradient.set(gradients.dLogStd, this.#actorCount + this.#criticCount);
    return gradient;
  }

  /** One AdamW update. Returns the gradient's norm before clipping; throws ERR_RLHF_NON_FINITE when that is not finite. */
  async update(gradient: Float32Array, settings: AdamWSettings): Promise<number> {
    const { learningRate, eps, weightDecay, maxGradNorm } = settings;
    const [beta1, beta2] = settings.betas;
    const norm = Math.sqrt(gradient.reduce((sum, value) => sum + value * value, 0));
    if (!Number.isFinite(norm)) {
      throw new RlhfError(
        "ERR_RLHF_NON_FINITE",
        "the gradient is not finite: lower the learning rate, or let observations be normalised and rewards scaled",
      );
    }
    const { m, v, step } = this.optimizer;
    const result = await adamW(this.#engine, {
      parameters: this.parameters,
      gradient,
      m,
      v,
      step: step + 1,
      learningRate,
      beta1,
      beta2,
      eps,
      weightDecay,
      gradientScale: maxGradNorm === null ? 1 : Math.min(1, maxGradNorm / (norm + 1e-6)),
    });
    this.parameters.set(await result.parameters.read());
    this.optimizer = { m: await result.m.read(), v: await result.v.read(), step: step + 1 };
    for (const array of [result.parameters, result.m, result.v]) array.dispose();
    return norm;
  }
}

/** Normal weights that keep the size of what passes through (deviation 1/√inputs), the last layer's times `lastGain`; no biases. */
function initialise(parameters: Float32Array, { sizes }: MlpShape, lastGain: number, random: Random): void {
  let at = 0;
  for (let layer = 0; layer + 1 < sizes.length; layer++) {
    const [inputs, outputs] = [sizes[layer] as number, sizes[layer + 1] as number];
    const gain = layer + 2 === sizes.length ? lastGain : Math.SQRT2;
    for (let i = 0; i < inputs * outputs; i++)
      parameters[at++] = (gain * random.normal()) / Math.sqrt(inputs);
    at += outputs;
  }
}
