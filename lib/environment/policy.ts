import { join } from "node:path";
import type { Random } from "../data/random.ts";
import { Engine, type EngineOptions } from "../engine/engine.ts";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "../model/files.ts";
import { ActorCritic, type ActorCriticOptions } from "./actor-critic.ts";
import { checkObservation, type EnvironmentSpaces } from "./environment.ts";
import { RunningStatistics, type StatisticsState } from "./running-statistics.ts";

/** Normalised observations stay within ± this many deviations. */
const OBSERVATION_LIMIT = 10;
const FILE = "policy.json";

/** Float32 numbers as text, bit for bit. */
export function encodeFloats(values: Float32Array): string {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
}

/** Puts encoded numbers into `target`. Throws ERR_RLHF_CHECKPOINT when they are not as many. */
export function decodeFloats(text: unknown, target: Float32Array, where: string): void {
  const bytes = Buffer.from(typeof text === "string" ? text : "", "base64");
  if (bytes.byteLength !== target.byteLength) {
    throw new RlhfError(
      "ERR_RLHF_CHECKPOINT",
      `${where}: holds ${bytes.byteLength} bytes, expected ${target.byteLength}; it is cut off or of another network`,
    );
  }
  for (let i = 0; i < target.length; i++) target[i] = bytes.readFloatLE(4 * i);
}

export interface ActOptions {
  /** Draws actions from the policy; left out: the likeliest ones. */
  readonly random?: Random;
}

/** A policy for environments, with the statistics that its observations are normalised by. */
export class EnvironmentPolicy {
  readonly spaces: EnvironmentSpaces;
  /** The networks; the trainer updates them. */
  readonly networks: ActorCritic;
  /** undefined: observations are used as they are. */
  statistics: RunningStatistics | undefined;
  readonly #options: ActorCriticOptions;

  constructor(
    engine: Engine,
    spaces: EnvironmentSpaces,
    options: ActorCriticOptions & { readonly normalizeObservations: boolean },
  ) {
    const { hidden, activation, initialLogStd, seed, normalizeObservations } = options;
    this.spaces = spaces;
    this.#options = { hidden, activation, initialLogStd, seed };
    this.networks = new ActorCritic(engine, spaces, this.#options);
    if (normalizeObservations) this.statistics = new RunningStatistics(spaces.observationSize);
  }

  /** Observations as the networks take them, row after row. Throws ERR_RLHF_SHAPE and ERR_RLHF_NON_FINITE. */
  normalise(observations: readonly ArrayLike<number>[]): Float32Array {
    const size = this.spaces.observationSize;
    const rows = new Float32Array(observations.length * size);
    observations.forEach((observation, row) => {
      const values = checkObservation(observation, size);
      rows.set(this.statistics?.normalise(values, OBSERVATION_LIMIT) ?? values, row * size);
    });
    return rows;
  }

  /** One action for each observation: [index] of a discrete policy, else its coordinates. */
  async act(
    observations: readonly ArrayLike<number>[],
    { random }: ActOptions = {},
  ): Promise<Float32Array[]> {
    if (observations.length === 0) return [];
    using pass = await this.networks.forward(this.normalise(observations));
    const { distribution, logStd } = this.networks;
    return observations.map((_, row) =>
      random ? distribution.sample(pass.outputs, row, logStd, random) : distribution.mode(pass.outputs, row),
    );
  }

  /** Writes `policy.json` into a directory. Throws ERR_RLHF_IO. */
  async save(directory: string): Promise<void> {
    await writeJson(join(directory, FILE), {
      version: 1,
      spaces: this.spaces,
      networks: this.#options,
      parameters: encodeFloats(this.networks.parameters),
      observations: this.statistics?.state() ?? null,
    });
  }

  /** A saved policy. Throws ERR_RLHF_CHECKPOINT. */
  static async load(directory: string, options: EngineOptions = {}): Promise<EnvironmentPolicy> {
    const file = join(directory, FILE);
    const saved = await readJsonIfPresent(file, "ERR_RLHF_CHECKPOINT");
    if (saved?.version !== 1 || !saved.spaces || !saved.networks) {
      throw new RlhfError("ERR_RLHF_CHECKPOINT", `${file}: there is no policy of an environment here`);
    }
    const policy = new EnvironmentPolicy(Engine.shared(options), saved.spaces as EnvironmentSpaces, {
      ...(saved.networks as ActorCriticOptions),
      normalizeObservations: false,
    });
    decodeFloats(saved.parameters, policy.networks.parameters, file);
    if (saved.observations)
      policy.statistics = RunningStatistics.restore(saved.observations as StatisticsState);
    return policy;
  }
}
