import { join } from "node:path";
import { Random } from "../data/random.ts";
import { ENGINE_OPTIONS, Engine, type EngineOptions } from "../engine/engine.ts";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "../model/files.ts";
import { loadFlat, type ParameterSlice, saveFlat } from "../model/flat-parameters.ts";
import { Mlp } from "../model/mlp.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import {
  checkSettings,
  nonNegativeInteger,
  oneOf,
  positiveInteger,
  type Rules,
} from "../trainers/settings.ts";

const ACTIVATIONS = ["relu", "tanh", "silu", "gelu"] as const;

/** The shape of a reward model on feature vectors. */
export interface FeatureRewardConfig {
  /** Numbers in a feature vector. */
  readonly inputDim: number;
  /** Width of the hidden layers. Default 64. */
  readonly hiddenDim?: number;
  /** Hidden layers, each linear and an activation, before the last, linear one. Default 2. */
  readonly numLayers?: number;
  /** Default "relu". */
  readonly activation?: (typeof ACTIVATIONS)[number];
}

export interface FeatureRewardModelOptions extends FeatureRewardConfig, EngineOptions {
  /** The initial weights follow from it. Default 0. */
  readonly seed?: number;
}

/** Features are taken less their mean, divided by their deviation. */
export interface FeatureScale {
  readonly mean: readonly number[];
  /** Over 0. */
  readonly deviation: readonly number[];
}

const MODEL_TYPE = "feature-reward-model";
const CONFIG = "config.json";
const WEIGHTS = "model.safetensors";
/** Rows of one forward pass. A row's bits do not depend on the others. */
const ROWS_AT_ONCE = 4096;

const RULES: Rules<FeatureRewardConfig & { seed?: number }> = {
  inputDim: positiveInteger,
  hiddenDim: positiveInteger,
  numLayers: positiveInteger,
  activation: oneOf(...ACTIVATIONS),
  seed: nonNegativeInteger,
};

/** A reward model on feature vectors in place of text: r(x), a multi-layer perceptron, trained by `FeatureRewardTrainer`. */
export class FeatureRewardModel {
  /** Its shape, defaults filled in. */
  readonly config: Required<FeatureRewardConfig>;
  readonly engine: Engine;
  /** null: features are used as they are. */
  scale: FeatureScale | null = null;
  /** The network; the trainer updates it. */
  readonly network: Mlp;
  /** What the network's parameters are called in files. */
  readonly slices: readonly ParameterSlice[];

  private constructor(engine: Engine, config: Required<FeatureRewardConfig>) {
    const { inputDim, hiddenDim, numLayers, activation } = config;
    this.config = { inputDim, hiddenDim, numLayers, activation };
    this.engine = engine;
    const hidden = Array.from({ length: numLayers }, () => hiddenDim);
    this.network = new Mlp(engine, { sizes: [inputDim, ...hidden, 1], activation });
    this.slices = this.network.slices();
  }

  /** A new model with random weights. Throws ERR_RLHF_ARGUMENT. */
  static create(options: FeatureRewardModelOptions): FeatureRewardModel {
    const { device, threads, ...given } = options;
    checkSettings(given, RULES);
    if (given.inputDim === undefined)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        "config.inputDim is required: how many numbers a feature vector has",
      );
    const { inputDim, hiddenDim = 64, numLayers = 2, activation = "relu", seed = 0 } = given;
    const model = new FeatureRewardModel(Engine.shared({ device, threads }), {
      inputDim,
      hiddenDim,
      numLayers,
      activation,
    });
    model.network.initialise(new Random(seed, "feature reward model"), 1);
    return model;
  }

  /** Feature vectors as the network takes them, row after row. Throws ERR_RLHF_SHAPE and ERR_RLHF_NON_FINITE. */
  normalise(features: readonly ArrayLike<number>[]): Float32Array {
    const { inputDim } = this.config;
    const rows = new Float32Array(features.length * inputDim);
    features.forEach((vector, row) => {
      this.checkFeatures(vector, `features[${row}]`);
      for (let i = 0; i < inputDim; i++) rows[row * inputDim + i] = this.#scaled(vector[i] as number, i);
    });
    return rows;
  }

  #scaled(value: number, i: number): number {
    if (this.scale === null) return value;
    return (value - (this.scale.mean[i] as number)) / (this.scale.deviation[i] as number);
  }

  /** Throws ERR_RLHF_SHAPE or ERR_RLHF_NON_FINITE, beginning with `where`, for what is no feature vector of this model. */
  checkFeatures(vector: ArrayLike<number>, where: string): void {
    const size = this.config.inputDim;
    if (typeof vector !== "object" || vector === null || vector.length !== size)
      throw new RlhfError(
        "ERR_RLHF_SHAPE",
        `${where} has ${vector?.length ?? "no"} numbers; the model's inputDim is ${size}`,
      );
    for (let i = 0; i < size; i++) {
      if (typeof vector[i] === "number" && Number.isFinite(Math.fround(vector[i] as number))) continue;
      throw new RlhfError(
        "ERR_RLHF_NON_FINITE",
        `${where}[${i}] is ${vector[i]}, expected a number that float32 holds`,
      );
    }
  }

  /** The rewards of feature vectors; a vector's does not depend on the others. Throws ERR_RLHF_SHAPE and ERR_RLHF_NON_FINITE. */
  async predict(features: readonly ArrayLike<number>[]): Promise<Float32Array> {
    const x = this.normalise(features);
    const rewards = new Float32Array(features.length);
    const { inputDim } = this.config;
    for (let row = 0; row < features.length; row += ROWS_AT_ONCE) {
      using pass = await this.network.forward(x.subarray(row * inputDim, (row + ROWS_AT_ONCE) * inputDim));
      rewards.set(pass.y, row);
    }
    return rewards;
  }

  /** Measures the mean and deviation that features are scaled by; a feature that never changes keeps its scale. */
  measureScale(features: readonly ArrayLike<number>[]): void {
    const { inputDim } = this.config;
    const columns = Array.from({ length: inputDim }, (_, i) => features.map((vector) => vector[i] as number));
    const mean = columns.map((column) => column.reduce((sum, value) => sum + value, 0) / column.length);
    const deviation = columns.map((column, i) => {
      const squares = column.reduce((sum, value) => sum + (value - (mean[i] as number)) ** 2, 0);
      const found = Math.sqrt(squares / column.length);
      // Less than this is what rounding makes of equal numbers.
      return found > 1e-12 * Math.abs(mean[i] as number) ? found : 1;
    });
    this.scale = { mean, deviation };
  }

  /** Writes `config.json` and `model.safetensors` into a directory. Throws ERR_RLHF_IO. */
  async save(directory: string): Promise<void> {
    const { inputDim, hiddenDim, numLayers, activation } = this.config;
    await saveFlat(join(directory, WEIGHTS), this.network.parameters, this.slices);
    await writeJson(join(directory, CONFIG), {
      model_type: MODEL_TYPE,
      input_dim: inputDim,
      hidden_dim: hiddenDim,
      num_layers: numLayers,
      activation,
      feature_mean: this.scale?.mean ?? null,
      feature_deviation: this.scale?.deviation ?? null,
    });
  }

  /** A saved model. Throws ERR_RLHF_MODEL where there is none, and ERR_RLHF_WEIGHTS where its weights do not fit it. */
  static async load(directory: string, options: EngineOptions = {}): Promise<FeatureRewardModel> {
    refuseUnknownOptions("FeatureRewardModel.load", options, ENGINE_OPTIONS);
    const file = join(directory, CONFIG);
    const saved = await readJsonIfPresent(file, "ERR_RLHF_MODEL");
    if (saved?.model_type !== MODEL_TYPE)
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${file}: there is no reward model on features here; name a directory that FeatureRewardModel saved`,
        { file },
      );
    const { config, scale } = checkedConfig(file, saved);
    const model = new FeatureRewardModel(Engine.shared(options), config);
    await loadFlat(join(directory, WEIGHTS), model.network.parameters, model.slices);
    model.scale = scale;
    return model;
  }
}

/** The parts of a saved configuration. Throws ERR_RLHF_MODEL, naming what is wrong. */
function checkedConfig(
  file: string,
  saved: Readonly<Record<string, unknown>>,
): { config: Required<FeatureRewardConfig>; scale: FeatureScale | null } {
  const wrong = (what: string): RlhfError =>
    new RlhfError("ERR_RLHF_MODEL", `${file}: ${what}; the file is damaged, save the model again`, { file });
  const { input_dim: inputDim, hidden_dim: hiddenDim, num_layers: numLayers, activation } = saved;
  const config = { inputDim, hiddenDim, numLayers, activation } as Required<FeatureRewardConfig>;
  for (const [key, name] of [
    ["inputDim", "input_dim"],
    ["hiddenDim", "hidden_dim"],
    ["numLayers", "num_layers"],
    ["activation", "activation"],
  ] as const) {
    const [description, holds] = RULES[key];
    if (!holds(config[key])) throw wrong(`${name} must be ${description}`);
  }
  const { feature_mean: mean, feature_deviation: deviation } = saved as Record<string, unknown>;
  if (mean === null && deviation === null) return { config, scale: null };
  const isList = (values: unknown): values is number[] =>
    Array.isArray(values) && values.length === inputDim && values.every(Number.isFinite);
  if (!isList(mean) || !isList(deviation) || deviation.some((value) => value <= 0))
    throw wrong(`feature_mean and feature_deviation must be lists of ${inputDim} numbers, deviations over 0`);
  return { config, scale: { mean, deviation } };
}
