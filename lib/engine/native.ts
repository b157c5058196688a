import { RlhfError, type RlhfErrorCode } from "../errors.ts";
import type { ComputeType } from "./compute-type.ts";
import { loadBinary } from "./load-binary.ts";
import type { EngineCopies, EngineMemory, MemoryBytes } from "./memory.ts";

/**
 * The native addon's whole surface, typed in one place. Nothing outside lib/engine and lib/model calls it. Every method that
 * returns a promise queues a command on the engine's thread; commands run in the order of the calls. The others are short.
 */
export interface NativeBinding {
  readonly Engine: new (options: NativeEngineOptions) => NativeEngine;
  /** Throws unless models can run on CUDA device 0, with the reason and the cure. */
  requireCuda(): void;
  readonly Optimizer: new (
    model: NativeModel,
    groups: readonly string[],
    config: NativeAdamWConfig,
  ) => NativeOptimizer;
  readonly defaultThreadCount: number;
  readonly whiten: NativeLoss;
  readonly klReward: NativeLoss;
  readonly gae: NativeLoss;
  readonly ppoPolicyLoss: NativeLoss;
  readonly groupPolicyLoss: NativeLoss;
  readonly ppoValueLoss: NativeLoss;
  readonly tokenNllLoss: NativeLoss;
  readonly rewardLoss: NativeLoss;
  readonly sequenceSum: NativeLoss;
  readonly sequenceSumBackward: NativeLoss;
  readonly wpoWeight: NativeLoss;
  readonly preferenceLoss: NativeLoss;
  readonly ktoLoss: NativeLoss;
  readonly mlpForward: NativeLoss;
  readonly mlpBackward: NativeLoss;
  readonly adamW: NativeLoss;
}

export interface NativeEngineOptions {
  /** Default "cpu". */
  readonly device?: "cpu" | "cuda";
  /** Of the CPU. */
  readonly threads?: number;
  readonly instructionSet?: string;
  readonly compute?: string;
  readonly planning?: boolean;
}

export type NativeLoss = (
  engine: NativeEngine,
  args: Readonly<Record<string, unknown>>,
) => Promise<Record<string, NativeArray> & { stats: Record<string, number> }>;

export interface NativeEngineInfo {
  readonly device: string;
  readonly backend: string;
  readonly instructionSet: string;
  readonly threads: number;
  readonly compute: ComputeType;
  /** What products in bfloat16 use: AMX tiles, AVX-512 dot products, or conversion to float32. */
  readonly bfloat16Kernel: "amx" | "dot" | "convert";
}

/** What a device's driver states of it; "" and 0 where it states nothing. */
export interface NativeDeviceLimits {
  readonly model: string;
  /** 10 × major + minor. */
  readonly computeCapability: number;
  /** Of the device's own; 0 where it has none, or does not tell. */
  readonly memoryBytes: number;
  /** Of them, what no process holds now. */
  readonly freeBytes: number;
}

export interface NativeEngine {
  readonly info: NativeEngineInfo;
  limits(): NativeDeviceLimits;
  /** `dtype`: how the base's matrices are kept, "float32" (default), "bfloat16", or, where they are frozen, "float16". */
  createModel(config: ModelConfig, trainable: boolean, dtype?: string): Promise<NativeModel>;
  memory(): EngineMemory;
  copies(): EngineCopies;
  setMemoryBudget(bytes: number): void;
  dispose(): void;
}

/** The shape of a transformer as the engine wants it; lib/model/config.ts makes it from a config.json. */
export interface ModelConfig {
  readonly family: "gpt2" | "llama" | "mistral" | "qwen2" | "qwen3" | "gpt_neox";
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly intermediate: number;
  readonly vocab: number;
  readonly maxPositions: number;
  readonly normEps: number;
  /** Radians per position of each pair of a head that turns; empty: learned positions. */
  readonly inverseFrequencies: readonly number[];
  /** Multiplies rotary sines and cosines. */
  readonly rotaryScale: number;
  /** By layer, how many keys a query sees, its own included; 0: all. Empty: all in every layer. */
  readonly windows: readonly number[];
  readonly activation: Activation;
  readonly tiedEmbeddings: boolean;
  /** Biases on q, k and v. */
  readonly attentionBias: boolean;
  readonly attentionOutBias: boolean;
  readonly mlpBias: boolean;
  /** RMSNorm of each query and key head. */
  readonly headNorm: boolean;
  /** Attention and MLP read the same residual stream. */
  readonly parallelResidual: boolean;
}

export type Activation = "none" | "gelu_tanh" | "gelu" | "tanh" | "relu" | "silu";

export interface NativeParameter {
  readonly name: string;
  readonly shape: readonly number[];
  /** "base", "adapter:<name>" or "head:<name>". */
  readonly group: string;
  readonly trainable: boolean;
}

/** One linear layer that an adapter can name. */
export interface NativeLinearLayer {
  /** Full path, "model.layers.0.self_attn.q_proj". */
  readonly module: string;
  readonly inputs: number;
  readonly outputs: number;
  /** Its weight is stored [inputs, outputs]. */
  readonly transposed: boolean;
  /** A projection of the attention; else of the MLP. */
  readonly attention: boolean;
}

export interface NativeAdapterConfig {
  /** `scale` is that of B·A. */
  readonly layers: readonly { readonly module: string; readonly rank: number; readonly scale: number }[];
  readonly dropout: number;
  readonly trainable: boolean;
  readonly seed: number;
}

export interface NativeHeadConfig {
  readonly inner: number;
  readonly activation: Activation;
  readonly bias: boolean;
  readonly initStd: number;
  readonly seed: number;
}

export interface NativeAdamWConfig {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  readonly seed: number;
}

export interface NativeBatch {
  readonly tokens: Int32Array;
  readonly offsets: Int32Array;
  /** Per sequence the earlier one that it continues, -1 for none. */
  readonly parents?: Int32Array;
  /** Indices of the tokens whose statistics are wanted, ascending. */
  readonly predictions: Int32Array;
  /** Rows whose values are wanted, ascending; left out: all. */
  readonly valueRows?: Int32Array;
}

export interface NativeForwardOptions {
  readonly adapter: string;
  readonly head: string;
  readonly temperature: number;
  readonly grad: boolean;
  readonly keepLogits?: boolean;
  readonly statistics: boolean;
  /** Switches the adapter's dropout on. */
  readonly dropoutSeed?: number | undefined;
  readonly keepDistribution?: boolean | undefined;
  readonly reference?: NativePass | undefined;
  readonly klDirection?: string | undefined;
}

export interface NativeGenerateOptions {
  readonly maxNewTokens: number;
  readonly minNewTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: number;
  readonly firstStream: number;
  readonly stopTokens: Int32Array;
  /** Bytes of all tokens, and the strings that end a sequence. */
  readonly stopStrings?: {
    readonly bytes: Uint8Array;
    readonly offsets: Int32Array;
    readonly strings: readonly string[];
  };
  readonly maxBatch: number;
  readonly adapter: string;
}

export interface NativeTensorSource {
  readonly path: string;
  /** First byte of the tensor in the file. */
  readonly offset: number;
  /** Number of elements. */
  readonly count: number;
  readonly dtype: string;
}

export interface NativeModel {
  parameters(): NativeParameter[];
  linearLayers(): NativeLinearLayer[];
  /** What this model holds; optimizers and scratch memory are counted by the engine alone. */
  memory(): MemoryBytes;
  setMaxLivePasses(count: number): void;
  setRecomputeLayers(recompute: boolean): void;
  setPacksBackward(packs: boolean): void;
  /** The most predictions of a pass whose logits are kept for backward. */
  mostKeptPredictions(): number;
  addAdapter(name: string, config: NativeAdapterConfig): void;
  removeAdapter(name: string): void;
  addHead(name: string, config: NativeHeadConfig): void;
  removeHead(name: string): void;
  initialise(std: number, seed: number): Promise<void>;
  copyAdapter(from: string, to: string, trainable: boolean): Promise<void>;
  mergeAdapter(name: string, reversible: boolean): Promise<void>;
  unmergeAdapter(name: string): Promise<void>;
  loadParameter(name: string, source: NativeTensorSource): Promise<void>;
  writeParameter(name: string, values: Float32Array): Promise<void>;
  /** Fills `values`, whose length must be the parameter's size. */
  readParameter(name: string, values: Float32Array): Promise<void>;
  readGradient(name: string, values: Float32Array): Promise<void>;
  zeroGradients(group: string): Promise<void>;
  forward(batch: NativeBatch, options: NativeForwardOptions): Promise<NativePass>;
  /** `loss` and `value` are what lib/model/forward-backward.ts describes, with handles for arrays. */
  forwardBackward(
    batch: NativeBatch,
    options: Pick<NativeForwardOptions, "adapter" | "head" | "temperature" | "dropoutSeed">,
    loss: Readonly<Record<string, unknown>>,
    value?: Readonly<Record<string, unknown>>,
  ): Promise<NativeLossSums & { pass: NativePass }>;
  generate(
    prompts: readonly Int32Array[],
    options: NativeGenerateOptions,
    onToken?: (sequence: number, token: number) => void,
  ): { promise: Promise<{ tokens: Int32Array; stopped: boolean }[]>; cancel: () => void };
  dispose(): void;
}

/** Sums of a loss over the tokens, and of a value loss where there is one. */
export interface NativeLossSums {
  readonly stats: Record<string, number>;
  readonly valueStats?: Record<string, number>;
}

export interface NativePass {
  readonly rows: number;
  array(which: "logProb" | "lse" | "entropy" | "value" | "kl"): NativeArray;
  backward(gradients: Readonly<Record<string, Float32Array | NativeArray | undefined>>): Promise<void>;
  /** `forwardBackward` from the pass on. */
  lossBackward(
    loss: Readonly<Record<string, unknown>>,
    value?: Readonly<Record<string, unknown>>,
  ): Promise<NativeLossSums>;
  dispose(): void;
}

export interface NativeArray {
  readonly length: number;
  read(): Promise<Float32Array>;
  dispose(): void;
}

export interface NativeOptimizer {
  step(options: {
    learningRate: number;
    maxGradNorm: number;
    gradientScale: number;
  }): Promise<{ gradNorm: number; skipped: boolean; lossScale: number }>;
  stepCount(): number;
  setStepCount(steps: number): Promise<void>;
  /** The loss scale and the steps since it changed; null where the loss is not scaled. */
  lossScale(): [number, number] | null;
  setLossScale(scale: number, steps: number): Promise<void>;
  /** Fills `m` and `v`, whose length must be the parameter's size. */
  exportMoments(parameter: string, m: Float32Array, v: Float32Array): Promise<void>;
  importMoments(parameter: string, m: Float32Array, v: Float32Array): Promise<void>;
  dispose(): void;
}

let binding: NativeBinding | null = null;

/** The addon, loaded at the first use. Throws ERR_RLHF_NO_BINARY. */
export function native(): NativeBinding {
  binding ??= loadBinary() as NativeBinding;
  return binding;
}

/** An error of the addon as the package's own class, with the JavaScript stack of the call. */
function graft(error: unknown): unknown {
  if (error instanceof RlhfError || !(error instanceof Error) || !("code" in error)) return error;
  return new RlhfError(error.code as RlhfErrorCode, error.message, {}, { cause: error });
}

/** Runs a call into the addon; what it throws arrives as an RlhfError. */
export function call<Result>(body: () => Result): Result {
  try {
    return body();
  } catch (error) {
    throw graft(error);
  }
}

/** Awaits a call into the addon; what it throws or rejects with arrives as an RlhfError. */
export async function callAsync<Result>(body: () => Promise<Result>): Promise<Result> {
  try {
    return await body();
  } catch (error) {
    throw graft(error);
  }
}
