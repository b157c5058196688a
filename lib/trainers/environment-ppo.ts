import { join } from "node:path";
import { Random } from "../data/random.ts";
import { Engine, type EngineOptions } from "../engine/engine.ts";
import { type Environment, spacesOf } from "../environment/environment.ts";
import { decodeFloats, EnvironmentPolicy, encodeFloats } from "../environment/policy.ts";
import { EnvironmentRunner, type RolloutState, stepEnvironment } from "../environment/rollouts.ts";
import { RunningStatistics, type StatisticsState } from "../environment/running-statistics.ts";
import {
  type EnvironmentPPOConfig,
  type EnvironmentPPOSettings,
  environmentSettings,
} from "../environment/settings.ts";
import { computeEnvironmentAdvantages, EnvironmentUpdates } from "../environment/updates.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "../model/files.ts";
import { type Metrics, MetricsWriter } from "../monitor/metrics.ts";
import { ConsoleProgress, silentProgress } from "../monitor/progress.ts";
import { learningRateAt } from "./schedule.ts";
import type { TrainingStep, TrainOptions, TrainResult } from "./trainer.ts";

export interface EnvironmentPPOTrainerOptions extends EngineOptions {
  /** Makes an environment of its own for each index; all of one kind. */
  readonly environment: (index: number) => Environment;
  readonly config?: EnvironmentPPOConfig;
  /** Where metrics.jsonl, the checkpoint and the policy go; left out: nowhere. */
  readonly outputDir?: string;
}

const NAME = "environment-ppo";
const CHECKPOINT = "checkpoint.json";
/** Episodes that `episode/return` is the mean of. */
const RECENT_EPISODES = 100;

/**
 * PPO (Schulman et al. 2017) on a control task, with the engine's GAE and losses: each step runs all environments for
 * `stepsPerIteration` steps and updates a policy and a value network for `numPpoEpochs` passes. The same seed gives the same bits.
 */
export class EnvironmentPPOTrainer {
  /** All settings, defaults filled in. */
  readonly config: EnvironmentPPOSettings;
  readonly outputDir: string | undefined;
  /** What is trained. */
  readonly policy: EnvironmentPolicy;
  readonly #engine: Engine;
  readonly #makeEnvironment: (index: number) => Environment;
  readonly #runner: EnvironmentRunner;
  readonly #updates: EnvironmentUpdates;
  #step = 0;
  #recent: readonly { readonly return: number; readonly length: number }[] = [];

  /** Throws ERR_RLHF_ARGUMENT for wrong settings and environments. */
  constructor(options: EnvironmentPPOTrainerOptions) {
    const { environment, config = {}, outputDir, ...engineOptions } = options;
    this.config = environmentSettings(config);
    this.outputDir = outputDir;
    this.#makeEnvironment = environment;
    this.#engine = Engine.shared(engineOptions);
    const environments = Array.from({ length: this.config.numEnvironments }, (_, index) =>
      environment(index),
    );
    const spaces = spacesOf(environments[0] as Environment);
    for (const [index, other] of environments.entries()) {
      if (JSON.stringify(spacesOf(other)) === JSON.stringify(spaces)) continue;
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `environment(${index}) is of another kind than environment(0): all must have the same observations and actions`,
      );
    }
    this.policy = new EnvironmentPolicy(this.#engine, spaces, this.config);
    this.#runner = new EnvironmentRunner(environments, this.policy, this.config);
    this.#updates = new EnvironmentUpdates(
      this.#engine,
      this.policy.networks,
      spaces.observationSize,
      this.config,
    );
  }

  /** Iterations of the whole run. */
  get totalSteps(): number {
    return this.config.numIterations;
  }

  /** Iterations done. */
  get step(): number {
    return this.#step;
  }

  /** The learning rate of the next iteration. */
  get learningRate(): number {
    return learningRateAt(this.#step, { ...this.config, totalSteps: this.totalSteps });
  }

  /** One iteration: rollouts and updates. */
  async trainStep(): Promise<TrainingStep> {
    const iteration = this.#step;
    const { learningRate } = this;
    const rollouts = await this.#runner.collect(iteration);
    const advantages = await computeEnvironmentAdvantages(this.#engine, rollouts, this.config);
    const metrics = await this.#updates.run(rollouts, advantages, iteration, learningRate);
    this.#recent = [...this.#recent, ...rollouts.episodes].slice(-RECENT_EPISODES);
    this.#step++;
    return { step: this.#step, metrics: { ...this.#episodeMetrics(), ...metrics, lr: learningRate } };
  }

  #episodeMetrics(): Metrics {
    const count = this.#recent.length;
    const environmentSteps = this.#step * this.config.numEnvironments * this.config.stepsPerIteration;
    if (count === 0) return { environmentSteps };
    const mean = (name: "return" | "length") =>
      this.#recent.reduce((sum, episode) => sum + episode[name], 0) / count;
    return { "episode/return": mean("return"), "episode/length": mean("length"), environmentSteps };
  }

  /** Trains to the end of the run, with progress on the console; see `steps`. */
  async train(options: TrainOptions = {}): Promise<TrainResult> {
    await this.#resume(options);
    const progress =
      options.progress ??
      new ConsoleProgress({
        label: NAME,
        totalSteps: this.totalSteps,
        startStep: this.#step,
        show: ["episode/return", "policy/approxkl_avg", "policy/entropy_avg", "loss/value_avg"],
      });
    let metrics: Metrics = {};
    for await (const step of this.steps({ ...options, progress })) metrics = step.metrics;
    return { steps: this.#step, metrics };
  }

  /**
   * Trains step by step. With an `outputDir` it goes on from the checkpoint there. Throws ERR_RLHF_ABORTED after a checkpoint when the
   * signal is raised.
   */
  async *steps(options: TrainOptions = {}): AsyncGenerator<TrainingStep, void, undefined> {
    const { signal, progress = silentProgress } = options;
    throwIfAborted(signal, `${NAME} training`);
    await this.#resume(options);
    using metricsFile = this.#openMetrics();
    try {
      while (this.#step < this.totalSteps) {
        const result = await this.trainStep();
        metricsFile?.write(result.step, result.metrics);
        progress.update(result.step, result.metrics);
        const { saveSteps } = this.config;
        const due = saveSteps !== undefined && this.#step % saveSteps === 0;
        if (due || signal?.aborted || this.#step === this.totalSteps) await this.#checkpoint();
        throwIfAborted(signal, `${NAME} training after step ${this.#step} of ${this.totalSteps}`);
        yield result;
      }
    } finally {
      progress.finish();
    }
  }

  #openMetrics(): MetricsWriter | undefined {
    if (this.outputDir === undefined) return undefined;
    return new MetricsWriter(
      join(this.outputDir, "metrics.jsonl"),
      this.#step === 0 ? undefined : this.#step,
    );
  }

  /**
   * Plays whole episodes with the policy's likeliest actions, each in an environment of its own, made by `environment` with the indices
   * from `numEnvironments` on. Their seeds follow from `seed` and are none of training's.
   */
  async evaluate({ episodes = 100, seed = 0 }: { episodes?: number; seed?: number } = {}): Promise<Metrics> {
    const running = await Promise.all(
      Array.from({ length: episodes }, async (_, index) => {
        const environment = this.#makeEnvironment(this.config.numEnvironments + index);
        const first = new Random(seed, `evaluation episode ${index}`).integer(2 ** 31);
        return { environment, observation: await environment.reset(first), return: 0, length: 0 };
      }),
    );
    let active = running;
    while (active.length > 0) {
      const actions = await this.policy.act(active.map(({ observation }) => observation));
      const ended = await Promise.all(
        active.map(async (episode, row) => {
          const step = await stepEnvironment(episode.environment, actions[row] as Float32Array);
          episode.observation = step.observation;
          episode.return += step.reward;
          episode.length++;
          return step.terminated || step.truncated;
        }),
      );
      active = active.filter((_, row) => !ended[row]);
    }
    const mean = (name: "return" | "length") =>
      running.reduce((sum, episode) => sum + episode[name], 0) / running.length;
    const returnMean = mean("return");
    const variance = running.reduce((sum, { return: value }) => sum + (value - returnMean) ** 2, 0);
    return {
      "eval/return": returnMean,
      "eval/return_std": Math.sqrt(variance / running.length),
      "eval/length": mean("length"),
    };
  }

  /** Writes `policy.json`, which `EnvironmentPolicy.load` reads, by default into `final` in `outputDir`. */
  async save(directory?: string): Promise<void> {
    if (directory === undefined && this.outputDir === undefined) {
      throw new RlhfError("ERR_RLHF_ARGUMENT", "save: name a directory, or give the trainer an outputDir");
    }
    await this.policy.save(directory ?? join(this.outputDir as string, "final"));
  }

  /** What decides the run's course; a checkpoint can only be gone on from with the same. */
  #identity(): Readonly<Record<string, unknown>> {
    const { saveSteps: _, ...settings } = this.config;
    return { trainer: NAME, ...this.policy.spaces, ...settings };
  }

  /** One file, written aside and renamed: a run that is killed leaves the last one whole. */
  async #checkpoint(): Promise<void> {
    if (this.outputDir === undefined) return;
    const { networks, statistics } = this.policy;
    const { m, v, step } = networks.optimizer;
    await writeJson(join(this.outputDir, CHECKPOINT), {
      version: 1,
      identity: this.#identity(),
      step: this.#step,
      parameters: encodeFloats(networks.parameters),
      optimizer: { m: encodeFloats(m), v: encodeFloats(v), step },
      observations: statistics?.state() ?? null,
      rollouts: this.#runner.state(),
      recent: this.#recent,
    });
  }

  async #resume({ resume = "auto" }: TrainOptions): Promise<void> {
    if (this.#step > 0 || this.outputDir === undefined || resume === false) return;
    const file = join(this.outputDir, CHECKPOINT);
    const saved = (await readJsonIfPresent(file, "ERR_RLHF_CHECKPOINT")) as Checkpoint | null;
    if (!saved) return;
    checkIdentity(file, saved.identity, this.#identity());
    const { networks } = this.policy;
    decodeFloats(saved.parameters, networks.parameters, `${file}: parameters`);
    const [m, v] = [networks.optimizer.m.slice(), networks.optimizer.v.slice()];
    decodeFloats(saved.optimizer.m, m, `${file}: optimizer.m`);
    decodeFloats(saved.optimizer.v, v, `${file}: optimizer.v`);
    networks.optimizer = { m, v, step: saved.optimizer.step };
    if (saved.observations) this.policy.statistics = RunningStatistics.restore(saved.observations);
    await this.#runner.restore(saved.rollouts);
    this.#recent = saved.recent;
    this.#step = saved.step;
  }
}

interface Checkpoint {
  readonly version: 1;
  readonly identity: Readonly<Record<string, unknown>>;
  readonly step: number;
  readonly parameters: string;
  readonly optimizer: { readonly m: string; readonly v: string; readonly step: number };
  readonly observations: StatisticsState | null;
  readonly rollouts: RolloutState;
  readonly recent: readonly { readonly return: number; readonly length: number }[];
}

/** Throws ERR_RLHF_CHECKPOINT, naming what differs. */
function checkIdentity(
  file: string,
  saved: Readonly<Record<string, unknown>> | undefined,
  current: Readonly<Record<string, unknown>>,
): void {
  const names = new Set([...Object.keys(saved ?? {}), ...Object.keys(current)]);
  const differences = [...names].flatMap((name) => {
    const [before, now] = [saved?.[name], current[name]].map((value) => JSON.stringify(value));
    return before === now ? [] : [`${name} was ${before} and is ${now}`];
  });
  if (differences.length === 0) return;
  throw new RlhfError(
    "ERR_RLHF_CHECKPOINT",
    `${file}: this run cannot go on from it: ${differences.join("; ")}. Use the same settings, another outputDir, or resume: false`,
    { file },
  );
}
