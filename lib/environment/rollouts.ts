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

/** One of `rows` equally long rows of an array. */
function rowOf(values: Float32Array, row: number, rows: number): Float32Array {
  const width = values.length / rows;
  return values.subarray(row * width, (row + 1) * width);
}

/** One environment's step. */
interface RecordedStep {
  readonly observation: Float32Array;
  readonly action: Float32Array;
  readonly logProb: number;
  readonly value: number;
  readonly reward: number;
  /** The state it led to; null where that is worth nothing more. */
  readonly last: Float64Array | null;
  readonly ended: boolean;
}

/** A rollout as it is written, time by time. */
class Recording {
  readonly episodes: { readonly return: number; readonly length: number }[] = [];
  readonly #observations: Float32Array;
  readonly #actions: Float32Array;
  readonly #logProb: Float32Array;
  readonly #value: Float32Array;
  readonly #reward: Float32Array;
  readonly #steps: number;
  /** First rows of the segments that are being written, by environment. */
  readonly #starts: number[];
  readonly #segments: { start: number; length: number; last: Float64Array | null }[] = [];

  constructor(environments: number, steps: number, observationSize: number, width: number) {
    const rows = environments * steps;
    this.#steps = steps;
    this.#observations = new Float32Array(rows * observationSize);
    this.#actions = new Float32Array(rows * width);
    this.#logProb = new Float32Array(rows);
    this.#value = new Float32Array(rows);
    this.#reward = new Float32Array(rows);
    this.#starts = Array.from({ length: environments }, (_, index) => index * steps);
  }

  write(environment: number, time: number, step: RecordedStep): void {
    const row = environment * this.#steps + time;
    this.#observations.set(step.observation, row * step.observation.length);
    this.#actions.set(step.action, row * step.action.length);
    this.#logProb[row] = step.logProb;
    this.#value[row] = step.value;
    this.#reward[row] = step.reward;
    if (!step.ended && time < this.#steps - 1) return;
    const start = this.#starts[environment] as number;
    this.#segments.push({ start, length: row + 1 - start, last: step.last });
    this.#starts[environment] = row + 1;
  }

  /** The states that segments were cut off at. */
  get openEnds(): Float64Array[] {
    return this.#segments.flatMap(({ last }) => (last ? [last] : []));
  }

  /** @param values those of `openEnds` */
  finish(values: Float32Array): EnvironmentRollouts {
    let next = 0;
    return {
      observations: this.#observations,
      actions: this.#actions,
      logProb: this.#logProb,
      value: this.#value,
      reward: this.#reward,
      episodes: this.episodes,
      segments: this.#segments.map(({ start, length, last }) => ({
        start,
        length,
        bootstrap: last ? (values[next++] as number) : 0,
      })),
    };
  }
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
    const random = new Random(seed, `actions of iteration ${iteration}`);
    const recording = new Recording(
      this.#slots.length,
      stepsPerIteration,
      spaces.observationSize,
      networks.distribution.width,
    );
    for (let time = 0; time < stepsPerIteration; time++) await this.#stepAll(recording, time, random);
    // An origin that followed the policy would move under the networks: what the policy drifts to would look like standing still.
    statistics?.holdMean();
    return recording.finish(await this.#valuesOf(recording.openEnds));
  }

  /** One step of every environment, with actions drawn from the policy. */
  async #stepAll(recording: Recording, time: number, random: Random): Promise<void> {
    const { networks, statistics } = this.#policy;
    const { distribution, logStd } = networks;
    for (const { observation } of this.#slots) statistics?.add(observation);
    const observations = this.#policy.normalise(this.#slots.map(({ observation }) => observation));
    using pass = await networks.forward(observations);
    const chosen = this.#slots.map((_, row) => distribution.sample(pass.outputs, row, logStd, random));
    const steps = await Promise.all(
      this.#slots.map(({ environment }, row) => stepEnvironment(environment, chosen[row]!.slice())),
    );
    const actions = Float32Array.from(chosen.flatMap((action) => [...action]));
    const { logProb } = distribution.statistics(pass.outputs, actions, logStd);
    for (const [index, slot] of this.#slots.entries()) {
      const step = steps[index] as EnvironmentStep;
      const reward = this.#take(slot, step);
      recording.write(index, time, {
        observation: rowOf(observations, index, this.#slots.length),
        action: chosen[index] as Float32Array,
        logProb: logProb[index] as number,
        value: pass.value[index] as number,
        reward,
        last: step.terminated ? null : slot.observation,
        ended: step.terminated || step.truncated,
      });
      if (!step.terminated && !step.truncated) continue;
      recording.episodes.push({ return: slot.episodeReturn, length: slot.episodeLength });
      await this.#reset(slot);
    }
  }

  /** Moves a slot on to where a step led, and returns the step's reward as it is learned from. */
  #take(slot: Slot, { observation, reward }: EnvironmentStep): number {
    slot.observation = checkObservation(observation, this.#policy.spaces.observationSize);
    slot.episodeReturn += reward;
    slot.episodeLength++;
    return this.#scaled(slot, reward);
  }

  /** The values of some states, in one pass. */
  async #valuesOf(observations: readonly Float64Array[]): Promise<Float32Array> {
    if (observations.length === 0) return new Float32Array(0);
    using pass = await this.#policy.networks.forward(this.#policy.normalise(observations));
    return pass.value;
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
