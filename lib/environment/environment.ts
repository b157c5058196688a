import { RlhfError } from "../errors.ts";

/** What an action led to. */
export interface EnvironmentStep {
  /** `observationSize` numbers. */
  readonly observation: ArrayLike<number>;
  readonly reward: number;
  /** The episode ended in a state that is worth nothing more. */
  readonly terminated: boolean;
  /** The episode was cut off, by a limit of time for instance: its last state keeps its value. */
  readonly truncated: boolean;
}

type Awaitable<Value> = Value | Promise<Value>;

interface EnvironmentBase {
  /** Numbers in an observation. */
  readonly observationSize: number;
  /** Begins an episode that follows from the seed; resolves to its first observation. */
  reset(seed: number): Awaitable<ArrayLike<number>>;
  /** Where the episode stands, as JSON can hold it. With `restore`, a resumed run is exact; without, it begins a new episode. */
  state?(): unknown;
  restore?(state: unknown): void;
}

/** Actions are 0 … actionSize − 1. */
export interface DiscreteEnvironment extends EnvironmentBase {
  readonly actionKind: "discrete";
  readonly actionSize: number;
  step(action: number): Awaitable<EnvironmentStep>;
}

/** Actions are `actionSize` real numbers without bounds; the environment clips them to what it allows. */
export interface ContinuousEnvironment extends EnvironmentBase {
  readonly actionKind: "continuous";
  readonly actionSize: number;
  step(action: Float32Array): Awaitable<EnvironmentStep>;
}

/** A control task. */
export type Environment = DiscreteEnvironment | ContinuousEnvironment;

/** What a policy has to know of its environment. */
export type EnvironmentSpaces = Pick<Environment, "observationSize" | "actionSize" | "actionKind">;

/** Throws ERR_RLHF_ARGUMENT for what is no environment, and for sizes that make no sense. */
export function spacesOf(environment: Environment): EnvironmentSpaces {
  const isObject = typeof environment === "object" && environment !== null;
  if (!isObject || typeof environment.reset !== "function" || typeof environment.step !== "function")
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `environment(index) must give an object with observationSize, actionSize, actionKind, reset and step; it gave ${isObject ? "one without reset or step" : String(environment)}`,
    );
  const { observationSize, actionSize, actionKind } = environment;
  for (const [name, size] of Object.entries({ observationSize, actionSize })) {
    if (!Number.isSafeInteger(size) || size < 1)
      throw new RlhfError("ERR_RLHF_ARGUMENT", `environment.${name} must be a positive integer, got ${size}`);
  }
  if (actionKind !== "discrete" && actionKind !== "continuous") {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `environment.actionKind must be "discrete" or "continuous", got ${JSON.stringify(actionKind)}`,
    );
  }
  return { observationSize, actionSize, actionKind };
}

/** A checked copy of an observation. Throws ERR_RLHF_SHAPE or ERR_RLHF_NON_FINITE. */
export function checkObservation(observation: ArrayLike<number>, size: number): Float64Array {
  if (observation.length !== size) {
    throw new RlhfError(
      "ERR_RLHF_SHAPE",
      `the environment gave an observation of ${observation.length} numbers; its observationSize is ${size}`,
    );
  }
  const copy = Float64Array.from(observation);
  const position = copy.findIndex((value) => !Number.isFinite(value));
  if (position >= 0) {
    throw new RlhfError(
      "ERR_RLHF_NON_FINITE",
      `the environment gave an observation whose element ${position} is ${copy[position]}`,
    );
  }
  return copy;
}
