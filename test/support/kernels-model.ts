import assert from "node:assert/strict";
import { Random } from "../../lib/data/random.ts";
import { loadKernelsBinary } from "../../lib/engine/load-binary.ts";
import type {
  ModelConfig,
  NativeAdamWConfig,
  NativeAdapterConfig,
  NativeBatch,
  NativeForwardOptions,
  NativeGenerateOptions,
  NativeHeadConfig,
  NativeLinearLayer,
  NativeParameter,
} from "../../lib/engine/native.ts";
import { type AdapterOptions, resolveAdapter, toNativeAdapter } from "../../lib/model/adapters.ts";
import { plainFrequencies } from "../../lib/model/rotary.ts";
import type { KernelType } from "./kernels.ts";

export interface Statistics {
  /** Names the pass in backward() and disposePass(). */
  readonly pass: number;
  readonly logProb: Float64Array | null;
  readonly lse: Float64Array | null;
  readonly entropy: Float64Array | null;
  readonly value: Float64Array | null;
  readonly kl: Float64Array | null;
}

export interface Upstream {
  readonly dLogProb?: Float64Array;
  readonly dLse?: Float64Array;
  readonly dEntropy?: Float64Array;
  readonly dValue?: Float64Array;
  readonly dKl?: Float64Array;
}

/**
 * csrc/node/kernels_model.cc: a whole model on any backend and type, run synchronously. In complex128 every array holds real
 * and imaginary parts in turn.
 */
export interface KernelsModel {
  parameters(): NativeParameter[];
  read(name: string): Float64Array;
  gradient(name: string): Float64Array | null;
  write(name: string, values: Float64Array): void;
  /** As a weight file would write it: float32, whatever the parameter is kept as. */
  setParameter(name: string, values: Float64Array): void;
  initialise(std: number, seed: number): void;
  addAdapter(name: string, config: TestAdapterConfig): void;
  removeAdapter(name: string): void;
  copyAdapter(from: string, to: string, trainable: boolean): void;
  mergeAdapter(name: string, reversible?: boolean): void;
  unmergeAdapter(name: string): void;
  linearLayers(): NativeLinearLayer[];
  addHead(name: string, config: NativeHeadConfig): void;
  zeroGradients(group: string): void;
  setMaxLivePasses(count: number): void;
  /** Lets so many allocations of the model succeed and no more, for want of memory or for a device's reason; −1: all of them again. */
  failAllocationsAfter(count: number, reason?: string): void;
  setLogitsBudget(bytes: number): void;
  setRecomputeLayers(recompute: boolean): void;
  memory(): Record<string, number>;
  forward(batch: NativeBatch, options: TestForwardOptions): Statistics;
  backward(pass: number, upstream: Upstream): void;
  disposePass(pass: number): void;
  generate(
    prompts: readonly Int32Array[],
    options: Partial<NativeGenerateOptions>,
  ): { tokens: Int32Array; stopped: boolean }[];
  createOptimizer(groups: readonly string[], config: Partial<NativeAdamWConfig>): void;
  optimizerStep(
    learningRate: number,
    maxGradNorm: number,
    gradientScale: number,
  ): { gradientNorm: number; skipped: boolean; steps: number };
}

export interface TestForwardOptions extends Partial<Omit<NativeForwardOptions, "reference">> {
  /** The number of the reference pass, and the model that it is of; by default the same one. */
  readonly reference?: number;
  readonly referenceModel?: KernelsModel;
}

export interface KernelsModelOptions {
  readonly backend: string;
  readonly type: KernelType;
  readonly threads?: number;
  readonly trainable?: boolean;
  /** How the matrices of a frozen base are kept: "float16" or "bfloat16". Default: as `type`. */
  readonly storage?: string;
  /** A model whose engine this one shares, as models do that refer to each other. */
  readonly beside?: KernelsModel;
}

/** An adapter by the names of its layers, which lib/model/adapters.ts resolves, as for users. */
export type TestAdapterConfig = Omit<AdapterOptions, "r"> & { readonly rank: number };

type NativeKernelsModel = Omit<KernelsModel, "addAdapter"> & {
  addAdapter(name: string, config: NativeAdapterConfig): void;
};

interface ModelBinding {
  readonly Model: new (config: ModelConfig, options: KernelsModelOptions) => NativeKernelsModel;
}

/** Throws ERR_RLHF_NO_BINARY where the tests' addon has not been built. */
export function createModel(config: ModelConfig, options: KernelsModelOptions): KernelsModel {
  const { Model } = loadKernelsBinary() as ModelBinding;
  const model = new Model(config, options);
  const addNative = model.addAdapter.bind(model);
  const addAdapter = (name: string, { rank, ...adapter }: TestAdapterConfig): void => {
    const info = resolveAdapter({ ...adapter, r: rank }, model.linearLayers());
    addNative(name, toNativeAdapter(info, adapter.seed));
  };
  return Object.defineProperty<unknown>(model, "addAdapter", { value: addAdapter }) as KernelsModel;
}

/** Odd widths, so that no size divides another by chance: a few hundred parameters per matrix at most. */
export const MICRO_LLAMA: ModelConfig = {
  family: "llama",
  layers: 2,
  hidden: 10,
  heads: 4,
  kvHeads: 2,
  headDim: 6,
  intermediate: 7,
  vocab: 13,
  maxPositions: 24,
  normEps: 1e-5,
  inverseFrequencies: plainFrequencies(100, 6),
  rotaryScale: 1,
  windows: [],
  activation: "silu",
  tiedEmbeddings: false,
  attentionBias: false,
  attentionOutBias: false,
  mlpBias: false,
  headNorm: false,
  parallelResidual: false,
};

export const MICRO_GPT2: ModelConfig = {
  ...MICRO_LLAMA,
  family: "gpt2",
  hidden: 9,
  heads: 3,
  kvHeads: 3,
  headDim: 3,
  intermediate: 11,
  inverseFrequencies: [],
  activation: "gelu_tanh",
  tiedEmbeddings: true,
};

/** Windows shorter than the sequences that tests use, in all layers. */
export const MICRO_MISTRAL: ModelConfig = { ...MICRO_LLAMA, family: "mistral", windows: [3, 3] };

export const MICRO_QWEN2: ModelConfig = {
  ...MICRO_LLAMA,
  family: "qwen2",
  windows: [0, 4],
  attentionBias: true,
};

export const MICRO_QWEN3: ModelConfig = {
  ...MICRO_LLAMA,
  family: "qwen3",
  headNorm: true,
  rotaryScale: 1.3,
  tiedEmbeddings: true,
};

/** Heads of 5 of which 4 elements turn. */
export const MICRO_GPT_NEOX: ModelConfig = {
  ...MICRO_LLAMA,
  family: "gpt_neox",
  hidden: 15,
  heads: 3,
  kvHeads: 3,
  headDim: 5,
  intermediate: 11,
  inverseFrequencies: [1, 0.1],
  activation: "gelu",
  attentionBias: true,
  attentionOutBias: true,
  mlpBias: true,
  parallelResidual: true,
};

export const ADAPTER = { rank: 2, alpha: 3, targetModules: [], seed: 5 } satisfies TestAdapterConfig;
export const HEAD: NativeHeadConfig = { inner: 0, activation: "tanh", bias: true, initStd: 0.5, seed: 6 };

const LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/** Every linear layer that an adapter of this family can name. */
export const TARGETS: Readonly<Record<ModelConfig["family"], readonly string[]>> = {
  gpt2: ["c_attn", "c_proj", "c_fc"],
  llama: LLAMA_LAYERS,
  mistral: LLAMA_LAYERS,
  qwen2: LLAMA_LAYERS,
  qwen3: LLAMA_LAYERS,
  gpt_neox: ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
};

/** A batch in which sequences continue others, for randomBatch. */
export const SHARED_PROMPTS = { lengths: [7, 3, 1, 5, 2, 4, 6], parents: [-1, 0, -1, 0, 2, -1, 2] } as const;

/**
 * Packs random sequences; every token but the first of each without a parent is predicted, unless `skip` says otherwise.
 * `parents` holds, per sequence, the one that it continues, −1 for none.
 */
export function randomBatch(
  lengths: readonly number[],
  vocab: number,
  skip: (token: number) => boolean = () => false,
  parents?: readonly number[],
): NativeBatch {
  const random = new Random(11, "tokens");
  const offsets = [0];
  const predictions: number[] = [];
  for (const [sequence, length] of lengths.entries()) {
    const start = offsets.at(-1)!;
    const first = (parents?.[sequence] ?? -1) < 0 ? start + 1 : start;
    offsets.push(start + length);
    for (let token = first; token < start + length; token++) if (!skip(token)) predictions.push(token);
  }
  const tokens = Int32Array.from({ length: offsets.at(-1)! }, () => random.integer(vocab));
  return {
    tokens,
    offsets: Int32Array.from(offsets),
    ...(parents && { parents: Int32Array.from(parents) }),
    predictions: Int32Array.from(predictions),
  };
}

export function randomValues(length: number, stream: string): Float64Array {
  const random = new Random(12, stream);
  return Float64Array.from({ length }, () => 2 * random.uniform() - 1);
}

/** Upstream gradients that differ from token to token, first tokens included. */
export function randomUpstream(rows: number, withValue: boolean): Required<Upstream> | Upstream {
  const upstream = {
    dLogProb: randomValues(rows, "dLogProb"),
    dLse: randomValues(rows, "dLse"),
    dEntropy: randomValues(rows, "dEntropy"),
  };
  return withValue ? { ...upstream, dValue: randomValues(rows, "dValue") } : upstream;
}

export function sizeOf(parameter: NativeParameter): number {
  return parameter.shape.reduce((product, extent) => product * extent, 1);
}

/** Writes random values into every parameter: norm weights about 1, the rest about 0, matrices scaled to their inputs. */
export function randomiseParameters(model: KernelsModel, components = 1): void {
  for (const parameter of model.parameters()) {
    const values = randomValues(sizeOf(parameter), parameter.name);
    const isNorm = /(norm|ln_\w+)\.weight$/.test(parameter.name);
    const scale = parameter.shape.length === 2 ? 0.9 : 0.3;
    const written = new Float64Array(values.length * components);
    for (let i = 0; i < values.length; i++)
      written[i * components] = (isNorm ? 1 : 0) + scale * Math.fround(values[i]!);
    model.write(parameter.name, written);
  }
}

/** ‖a − b‖ / max(‖a‖, ‖b‖), 0 where both are 0. */
export function relativeDistance(a: Float64Array, b: Float64Array): number {
  assert.equal(a.length, b.length);
  let distance = 0;
  let normA = 0;
  let normB = 0;
  for (let i = 0; i < a.length; i++) {
    distance += (a[i]! - b[i]!) ** 2;
    normA += a[i]! ** 2;
    normB += b[i]! ** 2;
  }
  return distance === 0 ? 0 : Math.sqrt(distance / Math.max(normA, normB));
}
