import { Random } from "../data/random.ts";
import { RlhfError } from "../errors.ts";
import { checkObservation, type Environment, type EnvironmentStep } from "./environment.ts";
import type { EnvironmentPolicy } from "./policy.ts";
import { RunningStatistics, type StatisticsState } from "./running-statistics.ts";

const REWARD_LIMIT = 10;

/** Steps of one environment in a row, up to the end of its episode or of the rollout. */
export interface Segment {
  /** Index of its first step. */
  readonly start: number;
  readonly length: number;
  /** The value of the state after its last step; 0 where the episode terminated. */
  readonly bootstrap: number;
}

/** N = environments · steps, environment by environment. */
export interface EnvironmentRollouts {
  /** [N, observationSize], normalised. */
  readonly observations: Float32Array;
  /** [N, width of an action] */
  readonly actions: Float32Array;
  readonly logProb: Float32Array;
  readonly value: Float32Array;
  /** Scaled where the settings say so. */
  readonly reward: Float32Array;
  readonly segments: readonly Segment[];
  /** Undiscounted returns and lengths of the episodes that ended, rewards as the environment gave them. */
  readonly episodes: readonly { readonly return: number; readonly length: number }[];
}

/** Where one environment stands. */
interface Slot {
  readonly environment: Environment;
  /** The next step begins an episode. */
  ended: boolean;
  episode: number;
  observation: Float64Array;
  episodeReturn: number;
  episodeLength: number;
  /** For the scale of rewards. */
  discounted: number;
}

interface SlotState {
  readonly ended: boolean;
  readonly episode: number;
  readonly observation: readonly number[];
  readonly episodeReturn: number;
  readonly episodeLength: number;
  readonly discounted: number;
  readonly environment?: unknown;
}

/** Plain data for checkpoints. */
export interface RolloutState {
  readonly slots: readonly SlotState[];
  readonly returns: StatisticsState;
}

export interface RolloutOptions {
  readonly stepsPerIteration: number;
  readonly gamma: number;
  readonly scaleRewards: boolean;
  readonly seed: number;
}

/** Steps the environment with an action as its kind wants it. Throws ERR_RLHF_REWARD for a reward that is no finite number. */
export async function stepEnvironment(
  environment: Environment,
  action: Float32Array,
): Promise<EnvironmentStep> {
  const step = await (environment.actionKind === "discrete"
    ? environment.step(action[0] as number)
    : environment.step(action));
  if (!Number.isFinite(step.reward)) {
    throw new RlhfError(
      "ERR_RLHF_REWARD",
      `the environment gave the reward ${step.reward}, expected a finite number`,
    );
  }
  return step;
}

/** A copy by way of JSON: what a checkpoint would give back, whatever becomes of the original. */
function copyOf(state: unknown): unknown {
  return state === undefined ? undefined : JSON.parse(JSON.stringify(state));
}

/** Environments side by side, whose episodes go on from one rollout to the next. */
export class EnvironmentRunner {
  readonly #policy: EnvironmentPolicy;
  readonly #options: RolloutOptions;
  readonly #slots: Slot[];
  #returns = new RunningStatistics(1);

  constructor(environments: readonly Environment[], policy: EnvironmentPolicy, options: RolloutOptions) {
    this.#policy = policy;
    this.#options = options;
    this.#slots = environments.map((environment) => ({
      environment,
      ended: true,
      episode: -1,
      observation: new Float64Array(0),
      episodeReturn: 0,
      episodeLength: 0,
      discounted: 0,
    }));
  }

  async #reset(slot: Slot): Promise<void> {
    const { seed } = this.#options;
    const episode = slot.episode + 1;
    const stream = `episode ${episode} of environment ${this.#slots.indexOf(slot)}`;
    const first = await slot.environment.reset(new Random(seed, stream).integer(2 ** 31));
    slot.ended = false;
    slot.episode = episode;
    slot.observation = checkObservation(first, this.#policy.spaces.observationSize);
    slot.episodeReturn = 0;
    slot.episodeLength = 0;
    slot.discounted = 0;
  }

  #scaled(slot: Slot, reward: number): number {
    const { gamma, scaleRewards } = this.#options;
    if (!scaleRewards) return reward;
    slot.discounted = slot.discounted * gamma + reward;
    this.#returns.add([slot.discounted]);
    return Math.max(-REWARD_LIMIT, Math.min(REWARD_LIMIT, reward / this.#returns.deviation(0)));
  }

  /** Steps every environment `stepsPerIteration` times; what is random follows from the seed and the iteration. */
  async collect(iteration: number): Promise<EnvironmentRollouts> {
    for (const slot of this.#slots) if (slot.ended) await this.#reset(slot);
    const { stepsPerIteration, seed } = this.#options;
    const { networks, spaces, statistics } = this.#policy;
    const { distribution } = networks;
    const random = new Random(seed, `actions of iteration ${iteration}`);
    const rows = this.#slots.length * stepsPerIteration;
    const [observations, actions] = [spaces.observationSize, distribution.width].map(
      (width) => new Float32Array(rows * width),
    ) as [Float32Array, Float32Array];
    const [logProb, value, reward] = [0, 1, 2].map(() => new Float32Array(rows)) as [
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    const episodes: { return: number; length: number }[] = [];
    const segments: { start: number; length: number; last: Float64Array | null }[] = [];
    const starts = this.#slots.map((_, index) => index * stepsPerIteration);

    for (let time = 0; time < stepsPerIteration; time++) {
      for (const { observation } of this.#slots) statistics?.add(observation);
      const normalised = this.#policy.normalise(this.#slots.map(({ observation }) => observation));
      using pass = await networks.forward(normalised);
      const chosen = this.#slots.map((_, row) =>
        distribution.sample(pass.outputs, row, networks.logStd, random),
      );
      const steps = await Promise.all(
        this.#slots.map(({ environment }, row) => stepEnvironment(environment, chosen[row]!.slice())),
      );
      const sampled = Float32Array.from(chosen.flatMap((action) => [...action]));
      const statisticsOfActions = distribution.statistics(pass.outputs, sampled, networks.logStd);
      for (const [index, slot] of this.#slots.entries()) {
        const { observation, reward: given, terminated, truncated } = steps[index] as EnvironmentStep;
        const row = index * stepsPerIteration + time;
        const size = spaces.observationSize;
        observations.set(normalised.subarray(index * size, (index + 1) * size), row * size);
        actions.set(chosen[index] as Float32Array, row * distribution.width);
        logProb[row] = statisticsOfActions.logProb[index] as number;
        value[row] = pass.value[index] as number;
        reward[row] = this.#scaled(slot, given);
        slot.observation = checkObservation(observation, size);
        slot.episodeReturn += given;
        slot.episodeLength++;
        const ended = terminated || truncated;
        if (ended || time === stepsPerIteration - 1) {
          const start = starts[index] as number;
          segments.push({ start, length: row + 1 - start, last: terminated ? null : slot.observation });
          starts[index] = row + 1;
        }
        if (ended) {
          episodes.push({ return: slot.episodeReturn, length: slot.episodeLength });
          await this.#reset(slot);
        }
      }
    }
    // An origin that followed the policy would move under the networks: what the policy drifts to would look like standing still.
    statistics?.holdMean();
    return {
      observations,
      actions,
      logProb,
      value,
      reward,
      segments: await this.#bootstrapped(segments),
      episodes,
    };
  }

  /** The values of the states that segments were cut off at, in one pass. */
  async #bootstrapped(
    segments: readonly { start: number; length: number; last: Float64Array | null }[],
  ): Promise<Segment[]> {
    const open = segments.flatMap(({ last }) => (last ? [last] : []));
    let values = new Float32Array(0);
    if (open.length > 0) {
      using pass = await this.#policy.networks.forward(this.#policy.normalise(open));
      values = pass.value.slice();
    }
    let next = 0;
    return segments.map(({ start, length, last }) => ({
      start,
      length,
      bootstrap: last ? (values[next++] as number) : 0,
    }));
  }

  /** Where the environments stand, between two rollouts. */
  state(): RolloutState {
    return {
      returns: this.#returns.state(),
      slots: this.#slots.map(({ environment, observation, ...slot }) => ({
        ...slot,
        observation: [...observation],
        ...(slot.ended ? {} : { environment: copyOf(environment.state?.()) }),
      })),
    };
  }

  /** The next rollout goes on where `state` was taken; environments that cannot be restored begin their next episode. */
  restore({ slots, returns }: RolloutState): void {
    this.#returns = RunningStatistics.restore(returns);
    for (const [index, slot] of this.#slots.entries()) {
      const { environment, observation, ...saved } = slots[index] as SlotState;
      Object.assign(slot, saved, { observation: Float64Array.from(observation) });
      if (slot.ended) continue;
      if (slot.environment.restore && environment !== undefined) slot.environment.restore(environment);
      else slot.ended = true;
    }
  }
}
