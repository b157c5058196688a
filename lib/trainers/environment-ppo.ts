import { Engine, type EngineOptions } from "../engine/engine.ts";
import { type Environment, type EnvironmentSpaces, spacesOf } from "../environment/environment.ts";
import { type Episode, playEpisodes } from "../environment/episodes.ts";
import { EnvironmentPolicy } from "../environment/policy.ts";
import { EnvironmentRunner, type RolloutState } from "../environment/rollouts.ts";
import { RunningStatistics, type StatisticsState } from "../environment/running-statistics.ts";
import {
  ENVIRONMENT_PPO_RULES,
  type EnvironmentPPOConfig,
  type EnvironmentPPOSettings,
  environmentSettings,
} from "../environment/settings.ts";
import { computeEnvironmentAdvantages, EnvironmentUpdates } from "../environment/updates.ts";
import { RlhfError } from "../errors.ts";
import type { MemoryEstimate } from "../model/estimate-memory.ts";
import { FlatAdamW } from "../model/flat-parameters.ts";
import type { Metrics } from "../monitor/metrics.ts";
import type { CheckpointContents } from "./checkpoint.ts";
import { estimateFlatRun } from "./flat-memory.ts";
import { checkOptions, type OptionNames } from "./options.ts";
import { type RunOrigin, type StepOutcome, TrainingLoop, type TrainingStep } from "./training-loop.ts";

export interface EnvironmentPPOTrainerOptions extends EngineOptions {
  /**
   * Makes an environment of its own for each index, all of one kind: numbers from 0 for training, those from `numEnvironments` on for
   * evaluations.
   */
  readonly environment: (index: number) => Environment;
  readonly config?: EnvironmentPPOConfig;
  /** Where metrics.jsonl, checkpoints and the policy go; left out: nowhere. */
  readonly outputDir?: string;
}

/** Episodes that `episode/return` is the mean of. */
const RECENT_EPISODES = 100;
const PART = "policy";

const OPTIONS: OptionNames<EnvironmentPPOTrainerOptions> = {
  environment: "required",
  config: "optional",
  outputDir: "optional",
  device: "optional",
  threads: "optional",
  memoryBudget: "optional",
};

/** What the run keeps from iteration to iteration beside its networks. */
interface EnvironmentState {
  readonly observations: StatisticsState | null;
  readonly rollouts: RolloutState;
  readonly recent: readonly Episode[];
}

/**
 * PPO (Schulman et al. 2017) on a control task, with the engine's GAE and losses: each step runs all environments for
 * `stepsPerIteration` steps and updates a policy and a value network for `numPpoEpochs` passes. The same seed gives the same bits.
 */
export class EnvironmentPPOTrainer extends TrainingLoop<EnvironmentPPOSettings, EnvironmentState> {
  /** What is trained. */
  readonly policy: EnvironmentPolicy;
  protected readonly name = "environment-ppo";
  protected override readonly cureOfSkipped =
    "lower the learning rate, or let observations be normalised and rewards scaled";
  protected readonly shownMetrics = [
    "episode/return",
    "policy/approxkl_avg",
    "policy/entropy_avg",
    "loss/value_avg",
  ];
  readonly #engine: Engine;
  readonly #spaces: EnvironmentSpaces;
  readonly #makeEnvironment: (index: number) => Environment;
  /** Made when an evaluation needs them. */
  readonly #evaluated: Environment[] = [];
  readonly #optimizer: FlatAdamW;
  readonly #runner: EnvironmentRunner;
  readonly #updates: EnvironmentUpdates;
  #recent: readonly Episode[] = [];

  /** Throws ERR_RLHF_ARGUMENT for wrong settings and environments. */
  constructor(options: EnvironmentPPOTrainerOptions) {
    checkOptions("EnvironmentPPOTrainer", options, OPTIONS, ENVIRONMENT_PPO_RULES);
    const { environment, config = {}, outputDir, ...engineOptions } = options;
    super(environmentSettings(config), outputDir);
    this.#makeEnvironment = environment;
    this.#engine = Engine.shared(engineOptions);
    const environments = Array.from({ length: this.config.numEnvironments }, (_, index) =>
      environment(index),
    );
    this.#spaces = spacesOf(environments[0] as Environment);
    environments.forEach((other, index) => {
      this.#checkKind(other, index);
    });
    const { hidden, activation, initialLogStd, seed, normalizeObservations } = this.config;
    const shape = { hidden, activation, initialLogStd, seed, normalizeObservations };
    this.policy = new EnvironmentPolicy(this.#engine, this.#spaces, shape);
    const { networks } = this.policy;
    this.#optimizer = new FlatAdamW(this.#engine, networks.parameters);
    this.#runner = new EnvironmentRunner(environments, this.policy, this.config);
    const { observationSize } = this.#spaces;
    this.#updates = new EnvironmentUpdates(
      this.#engine,
      networks,
      this.#optimizer,
      observationSize,
      this.config,
    );
  }

  #checkKind(environment: Environment, index: number): void {
    if (JSON.stringify(spacesOf(environment)) === JSON.stringify(this.#spaces)) return;
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `environment(${index}) is of another kind than environment(0): all must have the same observations and actions`,
    );
  }

  /** Iterations of the whole run. */
  get totalSteps(): number {
    return this.config.numIterations;
  }

  /** One iteration: rollouts and updates. */
  async trainStep(): Promise<TrainingStep> {
    const { metrics } = await this.countedStep((learningRate) => this.runStep(learningRate));
    return { step: this.step, metrics };
  }

  protected async runStep(learningRate: number): Promise<StepOutcome> {
    const rollouts = await this.#runner.collect(this.step);
    const advantages = await computeEnvironmentAdvantages(this.#engine, rollouts, this.config);
    const { metrics, skipped } = await this.#updates.run(rollouts, advantages, this.step, learningRate);
    for (let i = 0; i < skipped; i++) this.countSkipped();
    this.#recent = [...this.#recent, ...rollouts.episodes].slice(-RECENT_EPISODES);
    return { metrics: { ...this.#episodeMetrics(), ...metrics } };
  }

  #episodeMetrics(): Metrics {
    const { numEnvironments, stepsPerIteration } = this.config;
    const environmentSteps = (this.step + 1) * numEnvironments * stepsPerIteration;
    if (this.#recent.length === 0) return { environmentSteps };
    const { mean: episodeReturn, meanLength } = summarise(this.#recent);
    return { "episode/return": episodeReturn, "episode/length": meanLength, environmentSteps };
  }

  /**
   * The memory of the engine, of the networks and of an iteration's rollouts, by use, as if every step ended an episode. What the
   * environments hold is not known; none of them is stepped.
   */
  override estimateMemory(): Promise<MemoryEstimate> {
    const { numEnvironments, stepsPerIteration } = this.config;
    const { parameters, distribution } = this.policy.networks;
    const spaces = this.#spaces;
    return estimateFlatRun(this.#engine, parameters.length, async () => {
      const config = { ...this.config, numIterations: 1, numPpoEpochs: 1 };
      using trainer = new EnvironmentPPOTrainer({ environment: () => idleEnvironment(spaces), config });
      await trainer.trainStep();
      await trainer.evaluate();
      // Observations, actions, log-prob, value, reward, advantage and return of each step.
      const perStep = spaces.observationSize + distribution.width + 5;
      return Float32Array.BYTES_PER_ELEMENT * numEnvironments * stepsPerIteration * perStep;
    });
  }

  /**
   * Plays `evalEpisodes` whole episodes with the policy's likeliest actions, each in an environment of its own. Their first
   * observations follow from the seed and are none of training's.
   */
  async evaluate(signal?: AbortSignal): Promise<Metrics> {
    const { evalEpisodes, evalEpisodeSteps: maxSteps, numEnvironments, seed } = this.config;
    while (this.#evaluated.length < evalEpisodes) {
      const index = numEnvironments + this.#evaluated.length;
      const environment = this.#makeEnvironment(index);
      this.#checkKind(environment, index);
      this.#evaluated.push(environment);
    }
    const episodes = await playEpisodes(this.policy, this.#evaluated, { seed, maxSteps, signal });
    const { mean, deviation, meanLength } = summarise(episodes);
    return { "eval/return": mean, "eval/return_std": deviation, "eval/length": meanLength };
  }

  /** Writes the policy, for `EnvironmentPolicy.load` to read, by default into `final` in `outputDir`. */
  async save(directory?: string): Promise<void> {
    await this.policy.save(this.saveDirectory(directory));
  }

  protected origin(): Promise<RunOrigin> {
    return Promise.resolve({ data: "", models: [], settings: { ...this.#spaces } });
  }

  protected checkpointContents(): CheckpointContents {
    const { slices } = this.policy.networks;
    const optimizer = this.#optimizer;
    return {
      tensors: optimizer.tensors(PART, slices),
      optimizerSteps: { [PART]: optimizer.stepCount },
      restore: (read, steps) => optimizer.restore(PART, slices, read, steps[PART] ?? 0),
    };
  }

  protected algorithmState(): EnvironmentState {
    return {
      observations: this.policy.statistics?.state() ?? null,
      rollouts: this.#runner.state(),
      recent: this.#recent,
    };
  }

  protected restoreAlgorithmState({ observations, rollouts, recent }: EnvironmentState): void {
    if (observations) this.policy.statistics = RunningStatistics.restore(observations);
    this.#runner.restore(rollouts);
    this.#recent = recent;
  }
}

/** Means of some episodes, and the deviation of their returns. */
function summarise(episodes: readonly Episode[]): { mean: number; deviation: number; meanLength: number } {
  const meanOf = (value: (episode: Episode) => number): number =>
    episodes.reduce((sum, episode) => sum + value(episode), 0) / episodes.length;
  const mean = meanOf((episode) => episode.return);
  const variance = meanOf((episode) => (episode.return - mean) ** 2);
  return { mean, deviation: Math.sqrt(variance), meanLength: meanOf((episode) => episode.length) };
}

/** An environment of these sizes in which nothing happens. */
function idleEnvironment(spaces: EnvironmentSpaces): Environment {
  const observation = new Float32Array(spaces.observationSize);
  return {
    ...spaces,
    reset: () => observation,
    step: () => ({ observation, reward: 0, terminated: false, truncated: true }),
  } as Environment;
}
