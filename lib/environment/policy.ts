import { join } from "node:path";
import type { Random } from "../data/random.ts";
import { ENGINE_OPTIONS, Engine, type EngineOptions } from "../engine/engine.ts";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "../model/files.ts";
import { loadFlat, saveFlat } from "../model/flat-parameters.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { ActorCritic, type ActorCriticOptions } from "./actor-critic.ts";
import { checkObservation, type EnvironmentSpaces } from "./environment.ts";
import { RunningStatistics, type StatisticsState } from "./running-statistics.ts";

/** Normalised observations stay within ± this many deviations. */
const OBSERVATION_LIMIT = 10;
/** What config.json says it is of. */
const MODEL_TYPE = "environment-policy";
const CONFIG = "config.json";
const WEIGHTS = "model.safetensors";

export interface ActOptions {
  /** Draws actions from the policy; left out: the likeliest ones. */
  readonly random?: Random;
}

interface PolicyOptions extends ActorCriticOptions {
  readonly normalizeObservations: boolean;
}

const POLICY_OPTIONS: NamesOf<PolicyOptions> = {
  hidden: true,
  activation: true,
  initialLogStd: true,
  seed: true,
  normalizeObservations: true,
};

/** A policy for environments, with the statistics that its observations are normalised by. */
export class EnvironmentPolicy {
  readonly spaces: EnvironmentSpaces;
  /** The networks; the trainer updates them. */
  readonly networks: ActorCritic;
  /** undefined: observations are used as they are. */
  statistics: RunningStatistics | undefined;
  readonly #options: ActorCriticOptions;

  constructor(engine: Engine, spaces: EnvironmentSpaces, options: PolicyOptions) {
    refuseUnknownOptions("EnvironmentPolicy", options, POLICY_OPTIONS);
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
  async act(observations: readonly ArrayLike<number>[], options: ActOptions = {}): Promise<Float32Array[]> {
    refuseUnknownOptions("act", options, { random: true });
    const { random } = options;
    if (observations.length === 0) return [];
    using pass = await this.networks.forward(this.normalise(observations));
    const { distribution, logStd } = this.networks;
    return observations.map((_, row) =>
      random ? distribution.sample(pass.outputs, row, logStd, random) : distribution.mode(pass.outputs, row),
    );
  }

  /** Writes `config.json` and `model.safetensors` into a directory. Throws ERR_RLHF_IO. */
  async save(directory: string): Promise<void> {
    const { parameters, slices } = this.networks;
    await saveFlat(join(directory, WEIGHTS), parameters, slices);
    await writeJson(join(directory, CONFIG), {
      model_type: MODEL_TYPE,
      spaces: this.spaces,
      networks: this.#options,
      observations: this.statistics?.state() ?? null,
    });
  }

  /** A saved policy. Throws ERR_RLHF_MODEL where there is none, and ERR_RLHF_WEIGHTS where its weights are damaged. */
  static async load(directory: string, options: EngineOptions = {}): Promise<EnvironmentPolicy> {
    refuseUnknownOptions("EnvironmentPolicy.load", options, ENGINE_OPTIONS);
    const file = join(directory, CONFIG);
    const saved = await readJsonIfPresent(file, "ERR_RLHF_MODEL");
    if (saved?.model_type !== MODEL_TYPE)
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${file}: there is no policy of an environment here; name a directory that EnvironmentPPOTrainer saved`,
        { file },
      );
    const { spaces, networks, statistics } = checkedConfig(file, saved);
    const policy = new EnvironmentPolicy(Engine.shared(options), spaces, {
      ...networks,
      normalizeObservations: false,
    });
    await loadFlat(join(directory, WEIGHTS), policy.networks.parameters, policy.networks.slices);
    policy.statistics = statistics;
    return policy;
  }
}

/** The parts of a policy's configuration. Throws ERR_RLHF_MODEL, naming what is wrong. */
function checkedConfig(
  file: string,
  saved: Readonly<Record<string, unknown>>,
): {
  spaces: EnvironmentSpaces;
  networks: ActorCriticOptions;
  statistics: RunningStatistics | undefined;
} {
  const wrong = (what: string): RlhfError =>
    new RlhfError("ERR_RLHF_MODEL", `${file}: ${what}; the file is damaged, save the policy again`, { file });
  const isSize = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) > 0;
  const { observationSize, actionSize, actionKind } = (saved.spaces ?? {}) as EnvironmentSpaces;
  if (![observationSize, actionSize].every(isSize) || !["discrete", "continuous"].includes(actionKind))
    throw wrong("spaces must have positive sizes and an actionKind");
  const networks = (saved.networks ?? {}) as ActorCriticOptions;
  const { hidden, activation, initialLogStd, seed } = networks;
  if (!Array.isArray(hidden) || !hidden.every(isSize) || !["tanh", "relu"].includes(activation))
    throw wrong("networks must have hidden, a list of widths, and an activation, tanh or relu");
  const numbers = [initialLogStd, seed];
  if (!numbers.every(Number.isFinite)) throw wrong("networks must have initialLogStd and seed");
  const spaces = { observationSize, actionSize, actionKind };
  if (saved.observations === null) return { spaces, networks, statistics: undefined };
  const { count, mean, squares, held } = (saved.observations ?? {}) as StatisticsState;
  const isList = (values: unknown): boolean =>
    Array.isArray(values) && values.length === observationSize && values.every(Number.isFinite);
  if (!isSize(count) || !isList(mean) || !isList(squares) || typeof held !== "boolean")
    throw wrong(`observations must have a count, held, and a mean and squares of ${observationSize} numbers`);
  return { spaces, networks, statistics: RunningStatistics.restore({ count, mean, squares, held }) };
}
