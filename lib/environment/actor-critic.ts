import { Random } from "../data/random.ts";
import type { Engine } from "../engine/engine.ts";
import { type MlpShape, mlpParameterCount } from "../engine/mlp.ts";
import type { ParameterSlice } from "../model/flat-parameters.ts";
import { Mlp, type MlpPass } from "../model/mlp.ts";
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

/** A forward pass of both networks; `dispose` frees what the engine holds for it. */
export interface ActorCriticPass extends Disposable {
  /** [N, actionSize] */
  readonly outputs: Float32Array;
  /** [N] */
  readonly value: Float32Array;
  readonly actor: MlpPass;
  readonly critic: MlpPass;
}

/**
 * Policy and value function of a control task: two networks of the same hidden widths on the engine. Their parameters are one flat array,
 * the policy's, then the value function's, then the log deviations of continuous actions.
 */
export class ActorCritic {
  readonly distribution: ActionDistribution;
  readonly parameters: Float32Array;
  /** What the parameters are called in files. */
  readonly slices: readonly ParameterSlice[];
  /** [actionSize] of continuous actions; empty for discrete ones. */
  readonly logStd: Float32Array;
  readonly #actor: Mlp;
  readonly #critic: Mlp;

  constructor(engine: Engine, spaces: EnvironmentSpaces, options: ActorCriticOptions) {
    const { observationSize, actionSize, actionKind } = spaces;
    const { hidden, activation, seed } = options;
    const continuous = actionKind === "continuous";
    this.distribution = continuous ? new DiagonalGaussian(actionSize) : new Categorical(actionSize);
    const actor: MlpShape = { sizes: [observationSize, ...hidden, actionSize], activation };
    const critic: MlpShape = { sizes: [observationSize, ...hidden, 1], activation };
    const actorEnd = mlpParameterCount(actor);
    const criticEnd = actorEnd + mlpParameterCount(critic);
    this.parameters = new Float32Array(criticEnd + (continuous ? actionSize : 0));
    this.#actor = new Mlp(engine, actor, this.parameters.subarray(0, actorEnd));
    this.#critic = new Mlp(engine, critic, this.parameters.subarray(actorEnd, criticEnd));
    this.logStd = this.parameters.subarray(criticEnd).fill(options.initialLogStd);
    this.slices = [
      ...this.#actor.slices("actor."),
      ...this.#critic.slices("critic."),
      ...(continuous ? [{ name: "log_std", shape: [actionSize] }] : []),
    ];
    // A first policy that is nearly the same everywhere explores; values begin near 0.
    this.#actor.initialise(new Random(seed, "actor"), 0.01);
    this.#critic.initialise(new Random(seed, "critic"), 1);
  }

  /** Policy outputs and values of normalised observations [N, observationSize]. */
  async forward(observations: Float32Array): Promise<ActorCriticPass> {
    const [actor, critic] = await Promise.all([
      this.#actor.forward(observations),
      this.#critic.forward(observations),
    ]);
    return {
      outputs: actor.y,
      value: critic.y,
      actor,
      critic,
      [Symbol.dispose]() {
        actor[Symbol.dispose]();
        critic[Symbol.dispose]();
      },
    };
  }

  /** The gradient of all parameters, from those of a pass's outputs. */
  async backward(
    pass: ActorCriticPass,
    gradients: { dOutputs: Float32Array; dLogStd: Float32Array; dValue: Float32Array },
  ): Promise<Float32Array> {
    const [actor, critic] = await Promise.all([
      this.#actor.backward(pass.actor, gradients.dOutputs),
      this.#critic.backward(pass.critic, gradients.dValue),
    ]);
    const gradient = new Float32Array(this.parameters.length);
    gradient.set(actor);
    gradient.set(critic, actor.length);
    gradient.set(gradients.dLogStd, actor.length + critic.length);
    return gradient;
  }
}
