import { Engine, type TransformerEngineOptions } from "../engine/engine.ts";
import type { MemoryBytes } from "../engine/memory.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import type { AdapterOptions } from "./adapters.ts";
import { type PackedBatch, packSequences } from "./batch.ts";
import { CausalLM } from "./causal-lm.ts";
import type { HfConfig } from "./config.ts";
import type { ForwardBackwardOptions } from "./forward-backward.ts";
import type { HeadOptions } from "./heads.ts";
import type { LoadOptions } from "./model-options.ts";
import type { Optimizer } from "./optimizer.ts";
import type { Pass } from "./pass.ts";

/** Sequences that are generated together. */
export interface GenerationWorkload {
  /** Number of sequences. */
  readonly prompts: number;
  /** Sequences that answer one prompt, of which they share the memory. Default 1. */
  readonly answersPerPrompt?: number;
  /** Tokens of the longest prompt. */
  readonly promptTokens: number;
  readonly maxNewTokens: number;
  /** Sequences decoded at a time. Default 64. */
  readonly maxBatch?: number;
}

/** A model and what is done with it, at its largest. */
export interface ModelWorkload
  extends Pick<LoadOptions, "dtype" | "trainable" | "recomputeLayers" | "packsBackward"> {
  /** A Hugging Face directory, the content of a config.json, or a model, whose own adapters, heads and settings count too. */
  readonly model: string | HfConfig | CausalLM;
  /** Leaves a model's own adapters and heads out, as `clone` does. Default false. */
  readonly bare?: boolean;
  /** Adapters and heads to add. */
  readonly adapters?: Readonly<Record<string, AdapterOptions>>;
  readonly heads?: Readonly<Record<string, HeadOptions>>;
  /** Tokens of the largest forward pass; left out: there is none. */
  readonly maxTokens?: number;
  /** Most sequences of the largest forward pass. Default: as few as the context allows. */
  readonly maxSequences?: number;
  /** Fewest sequences of so many tokens: they have the most predictions. Default: maxSequences. */
  readonly minSequences?: number;
  /** What forward passes run through, and with `backward` what they train. */
  readonly adapter?: string;
  readonly head?: string;
  /** Several of these, one after another, in place of `adapter` and `head`. */
  readonly networks?: readonly { readonly adapter?: string; readonly head?: string }[];
  /** False leaves the language-model head out, as reward models do. Default true. */
  readonly statistics?: boolean;
  /** Whether passes are followed by backward. Default: yes where the base is trainable, or an adapter or head is named. */
  readonly backward?: boolean;
  /** Whether there are passes without backward as well, as in evaluation. Default false. */
  readonly evaluates?: boolean;
  /** Whether passes are compared with a reference of the model's own width. Default false. */
  readonly divergence?: boolean;
  /** Whether training passes have their loss inside, as `CausalLM.forwardBackward`. Default false: forward, then backward. */
  readonly lossInside?: boolean;
  /** Whether passes with backward are given a dropoutSeed. Default false. */
  readonly dropout?: boolean;
  /** Passes that wait for backward at a time. Default 1. */
  readonly livePasses?: number;
  /** Whether AdamW updates what backward reaches. Default: as `backward`. */
  readonly optimizer?: boolean;
  readonly generation?: GenerationWorkload;
}

const GENERATION: NamesOf<GenerationWorkload> = {
  prompts: true,
  answersPerPrompt: true,
  promptTokens: true,
  maxNewTokens: true,
  maxBatch: true,
};
const WORKLOAD: NamesOf<ModelWorkload> = {
  dtype: true,
  trainable: true,
  recomputeLayers: true,
  packsBackward: true,
  model: true,
  bare: true,
  adapters: true,
  heads: true,
  maxTokens: true,
  maxSequences: true,
  minSequences: true,
  adapter: true,
  head: true,
  networks: true,
  statistics: true,
  backward: true,
  evaluates: true,
  divergence: true,
  lossInside: true,
  dropout: true,
  livePasses: true,
  optimizer: true,
  generation: true,
};

export interface MemoryEstimate {
  /** Bytes by use. */
  readonly bytes: MemoryBytes;
  /** The most that is held at once: the sum, or less where passes take the memory of generation. */
  readonly total: number;
}

/**
 * The memory that an engine will hold for one or several models and what is done with them, before any of it is taken: the engine's
 * own code runs on a device that only counts, so the estimate is what `engine.memory()` will have as `peak` and `peakTotal` after the real thing. It is
 * the largest where passes are as large as said; smaller ones take no more. Results of loss functions, one matrix while weights are
 * loaded or packed, and the process itself (Node.js, data) come on top. Throws what loading a model or a pass of that size throws.
 */
export async function estimateMemory(
  workload: ModelWorkload | readonly ModelWorkload[],
  options: TransformerEngineOptions = {},
): Promise<MemoryEstimate> {
  return Engine.whilePlanning(options, async (engine) => {
    // All of it is held to the end, as it will be: what is let go, the garbage collector's part included, counts no more.
    const held: Disposable[] = [];
    try {
      for (const each of Array.isArray(workload) ? workload : [workload]) await plan(each, engine, held);
      const { peak, peakTotal: total } = engine.memory();
      return { bytes: { ...peak, arrays: 0 }, total };
    } finally {
      for (const each of held.reverse()) each[Symbol.dispose]();
    }
  });
}

async function plan(workload: ModelWorkload, engine: Engine, held: Disposable[]): Promise<void> {
  refuseUnknownOptions("estimateMemory", workload, WORKLOAD);
  if (workload.generation)
    refuseUnknownOptions("estimateMemory's generation", workload.generation, GENERATION);
  const model = await planModel(workload, engine);
  held.push(model);
  for (const [name, adapter] of Object.entries(workload.adapters ?? {})) model.addAdapter(name, adapter);
  for (const [name, head] of Object.entries(workload.heads ?? {})) model.addHead(name, head);
  const networks = workload.networks ?? [workload];
  if (workload.generation) await planGeneration(model, workload.generation, networks[0]?.adapter);
  for (const { adapter, head } of networks) await planNetwork(model, { ...workload, adapter, head }, held);
}

async function planNetwork(model: CausalLM, workload: ModelWorkload, held: Disposable[]): Promise<void> {
  const { adapter, head, maxTokens = 0 } = workload;
  const trains = model.trainable === "all" || adapter !== undefined || head !== undefined;
  const backward = workload.backward ?? trains;
  const { maxSequences = 1, minSequences = maxSequences } = workload;
  for (const sequences of maxTokens > 0 ? new Set([minSequences, maxSequences]) : [])
    await planPasses(model, workload, batchOf(maxTokens, sequences, model.maxLength), backward);
  if (workload.optimizer ?? backward) held.push(await planUpdate(model, workload));
}

async function planModel(workload: ModelWorkload, engine: Engine): Promise<CausalLM> {
  const { model, bare = false, trainable, dtype, recomputeLayers, packsBackward } = workload;
  const options = { trainable, dtype, recomputeLayers, packsBackward };
  if (typeof model === "string") return CausalLM.load(model, options);
  if (model instanceof CausalLM) return model.emptyCopyOn(engine, { ...options, bare });
  return CausalLM.create(model, options);
}

async function planPasses(
  model: CausalLM,
  workload: ModelWorkload,
  batch: PackedBatch,
  backward: boolean,
): Promise<void> {
  const {
    adapter,
    head,
    statistics = true,
    evaluates = false,
    lossInside = false,
    livePasses = 1,
  } = workload;
  const dropoutSeed = backward && workload.dropout ? 0 : undefined;
  const predict = "masked" as const;
  using reference = workload.divergence
    ? await model.forward(batch, { predict, keepDistribution: true })
    : undefined;
  const settings = { adapter, head, statistics, grad: backward, dropoutSeed, predict, reference };
  // The logits of a pass with more predictions than this are not kept, so a smaller one can need more memory for them.
  const mostKept = model.native.mostKeptPredictions();
  const tokens = batch.tokens.length;
  const keepsLogits = statistics && backward && !lossInside;
  if (keepsLogits && tokens - batch.sequences > mostKept && mostKept > 0)
    (await model.forward(withPredictions(batch, mostKept), { ...settings, reference: undefined })).dispose();
  if (evaluates) (await model.forward(batch, { ...settings, grad: false, dropoutSeed: undefined })).dispose();
  if (backward && lossInside) return planLossInside(model, batch, { adapter, head, dropoutSeed, predict });
  model.native.setMaxLivePasses(livePasses);
  const passes: Pass[] = [];
  for (let i = 0; i < livePasses; i++) passes.push(await model.forward(batch, settings));
  const upstream = new Float32Array(tokens);
  for (const pass of passes) {
    if (backward)
      await pass.backward({
        ...(statistics ? { dLogProb: upstream } : {}),
        ...(reference ? { dKl: upstream } : {}),
        ...(head === undefined ? {} : { dValue: upstream }),
      });
    pass.dispose();
  }
}

async function planLossInside(
  model: CausalLM,
  batch: PackedBatch,
  options: ForwardBackwardOptions,
): Promise<void> {
  const zeros = new Float32Array(batch.tokens.length);
  const value = { oldValue: zeros, returns: zeros, clipRange: 0, scale: 0 };
  const loss = { kind: "nll", weight: zeros, scale: 0 } as const;
  const given = { ...options, ...(options.head === undefined ? {} : { value }) };
  (await model.forwardBackward(batch, loss, given)).dispose();
}

/** A batch of so many tokens, in sequences of about the same length, at least so many of them and none over the context. */
function batchOf(tokens: number, sequences: number, context: number): PackedBatch {
  const count = Math.min(tokens, Math.max(sequences, Math.ceil(tokens / context)));
  const end = (index: number): number => Math.floor((index * tokens) / count);
  return packSequences(
    Array.from({ length: count }, (_, i) => ({ tokens: new Int32Array(end(i + 1) - end(i)) })),
  );
}

function withPredictions(batch: PackedBatch, predictions: number): PackedBatch {
  let left = predictions;
  return { ...batch, mask: batch.mask.map((bit) => (bit > 0 && left-- > 0 ? 1 : 0)) };
}

/** A prompt for each number, as many different ones as there are of that length. */
function numberedPrompt(number: number, length: number, vocabulary: number): Int32Array {
  let rest = number;
  return Int32Array.from({ length }, () => {
    const token = rest % vocabulary;
    rest = Math.floor(rest / vocabulary);
    return token;
  });
}

async function planGeneration(
  model: CausalLM,
  { prompts, promptTokens, maxNewTokens, maxBatch, answersPerPrompt = 1 }: GenerationWorkload,
  adapter: string | undefined,
): Promise<void> {
  await model.generate(
    Array.from({ length: prompts }, (_, i) =>
      numberedPrompt(Math.floor(i / answersPerPrompt), promptTokens, model.vocabSize),
    ),
    { maxNewTokens, maxBatch, adapter, stop: [0] },
  );
}

/** A step of AdamW over what the workload trains. */
async function planUpdate(model: CausalLM, { adapter, head }: ModelWorkload): Promise<Optimizer> {
  const optimizer = model.createOptimizer({ adapter, heads: head === undefined ? [] : [head] });
  await optimizer.step({ learningRate: 0 });
  return optimizer;
}
