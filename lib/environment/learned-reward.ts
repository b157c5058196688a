import { RlhfError } from "../errors.ts";
import type { FeatureRewardModel } from "../rewards/feature-reward-model.ts";
import type { Environment, EnvironmentStep } from "./environment.ts";

/** One step of an environment. */
export interface Transition {
  /** Before the action. */
  readonly observation: ArrayLike<number>;
  /** An index of discrete actions, else their coordinates. */
  readonly action: number | Float32Array;
  /** After it, with the environment's own reward. */
  readonly step: EnvironmentStep;
}

/** What the reward model is to see of a step. */
export type TransitionFeatures = (transition: Transition) => ArrayLike<number>;

interface SavedState {
  readonly observation: readonly number[];
  readonly environment: unknown;
}

/**
 * An environment whose rewards are a model's in place of its own. `features` says what the model sees of a step; left out: the
 * observation that the step led to. Throws ERR_RLHF_ARGUMENT where the model takes vectors of another length than that.
 */
export function withRewardModel(
  environment: Environment,
  model: FeatureRewardModel,
  features?: TransitionFeatures,
): Environment {
  const { observationSize, actionSize, actionKind } = environment;
  const { inputDim } = model.config;
  if (features === undefined && inputDim !== observationSize)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `withRewardModel: the model takes vectors of ${inputDim} numbers, observations have ${observationSize}; say with features what it is to see`,
    );
  const seen = features ?? (({ step }: Transition) => step.observation);
  // Both kinds of environments take what their policy gives.
  const inner = environment as { step(action: number | Float32Array): ReturnType<Environment["step"]> };
  let observation: ArrayLike<number> = [];
  return {
    observationSize,
    actionSize,
    actionKind,
    async reset(seed: number) {
      observation = await environment.reset(seed);
      return observation;
    },
    async step(action: number | Float32Array) {
      const step = await inner.step(action);
      const [reward] = await model.predict([seen({ observation, action, step })]);
      observation = step.observation;
      return { ...step, reward };
    },
    ...(environment.state && environment.restore
      ? {
          state: (): SavedState => ({
            observation: Array.from(observation),
            environment: environment.state?.(),
          }),
          restore: (state: unknown) => {
            const saved = state as SavedState;
            observation = saved.observation;
            environment.restore?.(saved.environment);
          },
        }
      : {}),
  } as Environment;
}
