import { encodePrompt } from "../data/encode.ts";
import { Engine } from "../engine/engine.ts";
import type { MemoryBytes } from "../engine/memory.ts";
import {
  call,
  callAsync,
  type ModelConfig,
  type NativeLinearLayer,
  type NativeModel,
  type NativeParameter,
} from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type AdapterLoadOptions, AdapterSet, type MergeOptions } from "./adapter-set.ts";
import type { AdapterInfo, AdapterOptions } from "./adapters.ts";
import { type PackedBatch, predictionsOf, valueRowsOf } from "./batch.ts";
import { type HfConfig, initializerRange, readEosTokenIds, readModelConfig } from "./config.ts";
import {
  type ForwardBackwardOptions,
  forwardBackward,
  type LossPass,
  type TokenLoss,
} from "./forward-backward.ts";
import { answerText, type GenerateOptions, type Generation, generate } from "./generation.ts";
import {
  type HeadInfo,
  type HeadOptions,
  loadAdapterHead,
  readHeads,
  saveHeads,
  toHeadInfo,
  toNativeHead,
} from "./heads.ts";
import { type ModelOrigin, readModelDirectory, writeModelDirectory } from "./model-directory.ts";
import {
  CREATE_OPTIONS,
  type CreateOptions,
  checkKeptType,
  checkWeightType,
  engineOptions,
  FORWARD_OPTIONS,
  type ForwardOptions,
  LOAD_OPTIONS,
  type LoadOptions,
  OPTIMIZER_OPTIONS,
  type OptimizerOptions,
  type Parameter,
  SAVE_OPTIONS,
  type SaveOptions,
  type WeightType,
} from "./model-options.ts";
import { Optimizer } from "./optimizer.ts";
import { Pass } from "./pass.ts";
import type { TensorSource } from "./safetensors.ts";
import { loadParameters, readGradient, readParameter } from "./weights.ts";

/** What a model is built with, beside its engine. */
type BuildOptions = Pick<LoadOptions, "trainable" | "dtype" | "recomputeLayers" | "packsBackward">;

/** A decoder-only transformer with a language-model head, named LoRA adapters and named scalar heads. */
export class CausalLM implements Disposable {
  readonly engine: Engine;
  readonly config: ModelConfig;
  readonly trainable: "all" | "none";
  /** How the matrices of the base are kept; vectors, adapters and heads are always float32. */
  readonly dtype: WeightType;
  /** Tokens that end a sequence, from generation_config.json or config.json. */
  readonly eosTokenIds: readonly number[];
  /** The addon's handle, for the package's own modules. */
  readonly native: NativeModel;
  readonly #origin: ModelOrigin;
  readonly #adapters: AdapterSet;
  readonly #heads = new Map<string, HeadInfo>();
  #recomputeLayers = false;
  #packsBackward = true;

  private constructor(
    engine: Engine,
    handle: NativeModel,
    config: ModelConfig,
    origin: ModelOrigin,
    trainable: "all" | "none",
    dtype: WeightType,
  ) {
    this.engine = engine;
    this.native = handle;
    this.#adapters = new AdapterSet(handle);
    this.config = config;
    this.trainable = trainable;
    this.dtype = dtype;
    this.#origin = origin;
    this.eosTokenIds = readEosTokenIds(origin.hfConfig, origin.generationConfig);
  }

  /**
   * Loads a Hugging Face directory: config.json, safetensors (sharded or not; F32, F16, BF16), and the heads saved beside them.
   * Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED or ERR_RLHF_WEIGHTS with the file and what is wrong in it.
   */
  static async load(path: string, options: LoadOptions = {}): Promise<CausalLM> {
    refuseUnknownOptions("CausalLM.load", options, LOAD_OPTIONS);
    const directory = await localModel(path);
    checkWeightType(options);
    const { config, origin, tensors } = await readModelDirectory(directory);
    const model = await CausalLM.#build(Engine.shared(engineOptions(options)), config, origin, options);
    try {
      await loadParameters(
        model.native,
        call(() => model.native.parameters()),
        tensors,
        directory,
      );
      await model.#loadHeads(directory);
    } catch (error) {
      model.dispose();
      throw error;
    }
    return model;
  }

  /** Makes a model with random weights from the content of a config.json (`initializer_range` is their deviation). */
  static async create(hfConfig: HfConfig, options: CreateOptions = {}): Promise<CausalLM> {
    refuseUnknownOptions("CausalLM.create", options, CREATE_OPTIONS);
    checkWeightType(options);
    const config = readModelConfig(hfConfig, "config");
    const origin = { hfConfig, generationConfig: null, directory: null };
    const model = await CausalLM.#build(Engine.shared(engineOptions(options)), config, origin, options);
    await callAsync(() => model.native.initialise(initializerRange(hfConfig), options.seed ?? 0));
    return model;
  }

  static async #build(
    engine: Engine,
    config: ModelConfig,
    origin: ModelOrigin,
    { trainable = "none", dtype = "float32", recomputeLayers = false, packsBackward = true }: BuildOptions,
  ): Promise<CausalLM> {
    checkKeptType(engine, dtype);
    const handle = await callAsync(() => engine.native.createModel(config, trainable === "all", dtype));
    const model = new CausalLM(engine, handle, config, origin, trainable, dtype);
    model.recomputeLayers = recomputeLayers;
    model.packsBackward = packsBackward;
    return model;
  }

  /**
   * A second model with the same weights as this one now, adapters left out: a frozen reference policy.
   * With `merge`, that adapter is part of its weights. Left out, `dtype` is this model's; a copy of a frozen one that trains, or with
   * an adapter merged, is float32.
   */
  async clone(
    options: { trainable?: "all" | "none"; merge?: string; dtype?: WeightType } = {},
  ): Promise<CausalLM> {
    refuseUnknownOptions("clone", options, { trainable: true, merge: true, dtype: true });
    const trainable = options.trainable ?? "none";
    // A merged matrix is no sum of numbers of 16 bits: rounded, it would be another one.
    const dtype = options.dtype ?? (options.merge === undefined ? this.#copyType(trainable) : "float32");
    const { recomputeLayers, packsBackward } = this;
    const shape = { trainable, dtype, recomputeLayers, packsBackward };
    const copy = await CausalLM.#build(this.engine, this.config, this.#origin, shape);
    if (this.engine.plans) return copy;
    for (const source of this.#baseTensors(options.merge)) {
      const values = await source.read();
      await copy.writeParameter(source.name, values);
    }
    return copy;
  }

  /** How a copy is kept. Whoever freezes weights in 16 bits has not asked to train them so. */
  #copyType(trainable: "all" | "none"): WeightType {
    return trainable === "all" && this.trainable === "none" ? "float32" : this.dtype;
  }

  /**
   * A model of the same shape on another engine, its weights zero: for estimates. `bare` leaves adapters and heads out; the other
   * options are this model's where they are left out.
   */
  async emptyCopyOn(
    engine: Engine,
    options: BuildOptions & { readonly bare?: boolean } = {},
  ): Promise<CausalLM> {
    const { trainable = this.trainable, bare = false } = options;
    const { recomputeLayers = this.recomputeLayers, packsBackward = this.packsBackward } = options;
    const dtype = options.dtype ?? this.#copyType(trainable);
    const shape = { trainable, dtype, recomputeLayers, packsBackward };
    const copy = await CausalLM.#build(engine, this.config, this.#origin, shape);
    if (bare) return copy;
    copy.#adapters.addAllOf(this.#adapters);
    for (const [name, info] of this.#heads) copy.addHead(name, info as HeadOptions);
    return copy;
  }

  /** See LoadOptions; it holds for the passes that begin from now on. */
  get recomputeLayers(): boolean {
    return this.#recomputeLayers;
  }

  set recomputeLayers(recompute: boolean) {
    call(() => this.native.setRecomputeLayers(recompute));
    this.#recomputeLayers = recompute;
  }

  /** See LoadOptions; it holds for the passes that begin from now on. */
  get packsBackward(): boolean {
    return this.#packsBackward;
  }

  set packsBackward(packs: boolean) {
    call(() => this.native.setPacksBackward(packs));
    this.#packsBackward = packs;
  }

  async #loadHeads(directory: string): Promise<void> {
    const { heads, tensors } = await readHeads(directory);
    for (const [name, info] of heads) this.addHead(name, info as HeadOptions);
    for (const [name, values] of tensors) await this.writeParameter(name, values);
  }

  /** The content of its config.json. */
  get hfConfig(): HfConfig {
    return this.#origin.hfConfig;
  }

  /** Where it was loaded from; null for a model made from a configuration. */
  get directory(): string | null {
    return this.#origin.directory;
  }

  get vocabSize(): number {
    return this.config.vocab;
  }

  /** The longest sequence in tokens. */
  get maxLength(): number {
    return this.config.maxPositions;
  }

  get adapters(): ReadonlyMap<string, AdapterInfo> {
    return this.#adapters.infos;
  }

  get heads(): ReadonlyMap<string, HeadInfo> {
    return this.#heads;
  }

  /** What `targetModules` of an adapter may name in short. */
  get linearModules(): string[] {
    return this.#adapters.moduleNames;
  }

  /** All layers that an adapter can have, by their full names. */
  get linearLayers(): readonly NativeLinearLayer[] {
    return this.#adapters.layers;
  }

  parameters(): Parameter[] {
    const narrow = ({ group, shape }: NativeParameter): boolean => group === "base" && shape.length > 1;
    return call(() => this.native.parameters()).map((parameter) => ({
      ...parameter,
      dtype: narrow(parameter) ? this.dtype : "float32",
    }));
  }

  #parameter(name: string): NativeParameter {
    const found = this.parameters().find((parameter) => parameter.name === name);
    if (!found)
      throw new RlhfError(
        "ERR_RLHF_UNKNOWN_NAME",
        `the model has no parameter "${name}"; parameters() lists them`,
        { name },
      );
    return found;
  }

  /** A copy of a parameter, in the layout of transformers. Throws ERR_RLHF_UNKNOWN_NAME. */
  readParameter(name: string): Promise<Float32Array> {
    return readParameter(this.native, this.#parameter(name));
  }

  /** A copy of a parameter's accumulated gradient. Throws ERR_RLHF_ARGUMENT when it is frozen. */
  readGradient(name: string): Promise<Float32Array> {
    return readGradient(this.native, this.#parameter(name));
  }

  /** Throws ERR_RLHF_SHAPE when the number of values is not the parameter's. */
  writeParameter(name: string, values: Float32Array): Promise<void> {
    return callAsync(() => this.native.writeParameter(name, values));
  }

  /**
   * Adds a LoRA adapter, B zero: until it is trained the model computes as before. Throws ERR_RLHF_UNKNOWN_NAME for layers that the
   * model does not have, ERR_RLHF_ARGUMENT for settings out of range and names that are taken.
   */
  addAdapter(name: string, options: AdapterOptions): void {
    this.#adapters.add(name, options);
  }

  removeAdapter(name: string): void {
    this.#adapters.remove(name);
  }

  /** Adds an adapter `to` with the form and the weights that `from` has now; frozen with `trainable: false`. */
  async copyAdapter(from: string, to: string, options: { trainable?: boolean } = {}): Promise<void> {
    refuseUnknownOptions("copyAdapter", options, { trainable: true });
    await this.#adapters.copy(from, to, options.trainable ?? true);
  }

  /**
   * Adds an adapter to the base's weights and removes it: for good, or with `reversible` until `unmergeAdapter`. It happens to all
   * layers or, when it fails, to none; a copy of the weights that change is held meanwhile. Only one adapter at a time can be merged
   * reversibly, into a frozen base.
   */
  async mergeAdapter(name: string, options: MergeOptions = {}): Promise<void> {
    refuseUnknownOptions("mergeAdapter", options, { reversible: true });
    await this.#adapters.merge(name, options);
  }

  /** Brings a reversibly merged adapter back, and the exact bits that the weights had. */
  unmergeAdapter(name: string): Promise<void> {
    return this.#adapters.unmerge(name);
  }

  /**
   * Loads a PEFT directory as an adapter. Throws ERR_RLHF_MODEL, ERR_RLHF_WEIGHTS, or ERR_RLHF_UNSUPPORTED, with the field, for what
   * other than LoRA on linear layers it holds. The head of a reward model's adapter needs a name, `head`.
   */
  async loadAdapter(name: string, path: string, options: AdapterLoadOptions = {}): Promise<void> {
    refuseUnknownOptions("loadAdapter", options, { trainable: true, head: true });
    const directory = await localModel(path);
    const score = await this.#adapters.load(name, directory, options);
    try {
      await loadAdapterHead(this, score, options.head, directory);
    } catch (error) {
      this.removeAdapter(name);
      throw error;
    }
  }

  /** Writes an adapter as a directory that peft loads; with a linear `head` without bias as one of a sequence classifier. */
  async saveAdapter(name: string, directory: string, options: { head?: string } = {}): Promise<void> {
    refuseUnknownOptions("saveAdapter", options, { head: true });
    const { head } = options;
    const score = head === undefined ? undefined : this.#linearHead(head, "saveAdapter");
    await this.#adapters.save(name, directory, { baseModel: this.directory, score });
  }

  /** Adds a scalar head on the final hidden states. */
  addHead(name: string, options: HeadOptions = {}): void {
    const info = toHeadInfo(options, this.config.hidden);
    call(() => this.native.addHead(name, toNativeHead(info, options)));
    this.#heads.set(name, info);
  }

  removeHead(name: string): void {
    call(() => this.native.removeHead(name));
    this.#heads.delete(name);
  }

  /**
   * Runs a packed batch. Throws ERR_RLHF_TOKEN_RANGE, ERR_RLHF_CONTEXT_LENGTH, ERR_RLHF_UNKNOWN_NAME, ERR_RLHF_ARGUMENT for a
   * reference that does not fit, and ERR_RLHF_PASS_LIVE when too many passes with gradients are waiting for backward.
   */
  async forward(batch: PackedBatch, options: ForwardOptions = {}): Promise<Pass> {
    refuseUnknownOptions("forward", options, FORWARD_OPTIONS);
    const statistics = options.statistics ?? true;
    const predictions = statistics ? predictionsOf(batch, options.predict ?? "all") : new Int32Array(0);
    const valueRows = valueRowsOf(batch, options.values ?? "all");
    const handle = await callAsync(() =>
      this.native.forward(
        {
          tokens: batch.tokens,
          offsets: batch.offsets,
          ...(batch.parents && { parents: batch.parents }),
          predictions,
          ...(valueRows && { valueRows }),
        },
        {
          adapter: options.adapter ?? "",
          head: options.head ?? "",
          temperature: options.temperature ?? 1,
          grad: options.grad ?? false,
          keepLogits: options.keepLogits ?? true,
          statistics,
          dropoutSeed: options.dropoutSeed,
          keepDistribution: options.keepDistribution ?? false,
          reference: options.reference?.native,
          klDirection: options.klDirection ?? "reverse",
        },
      ),
    );
    return new Pass(handle);
  }

  /**
   * A training pass with its losses inside: `forward`, the loss's own function and `backward` in one, for losses whose gradient at a
   * token depends on that token alone. The language-model head is gone through once, or twice where that is faster, and no logits are kept: less memory than the
   * three take, and less time where the logits would not fit their budget and are computed twice; log-probs and sums are the same bits, and gradients too, up to the order in which the head's own is
   * summed over more than 256 predictions. Gradients are added to those of every trainable parameter that took part. Throws as they do.
   */
  forwardBackward<Loss extends TokenLoss>(
    batch: PackedBatch,
    loss: Loss,
    options: ForwardBackwardOptions = {},
  ): Promise<LossPass<Loss>> {
    return forwardBackward(this.native, batch, loss, options);
  }

  /** AdamW over the base, an adapter and heads, as the options name them. Throws ERR_RLHF_ARGUMENT when they name nothing. */
  createOptimizer(options: OptimizerOptions = {}): Optimizer {
    refuseUnknownOptions("createOptimizer", options, OPTIMIZER_OPTIONS);
    const base = options.base ?? (this.trainable === "all" && options.adapter === undefined);
    const groups = [
      ...(base ? ["base"] : []),
      ...(options.adapter === undefined ? [] : [`adapter:${options.adapter}`]),
      ...(options.heads ?? []).map((head) => `head:${head}`),
    ];
    if (groups.length === 0)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        'createOptimizer: nothing to train; load the model with trainable: "all", or name an adapter or heads',
      );
    return new Optimizer(this.native, groups, options);
  }

  /** Zeroes accumulated gradients: of the groups named ("base", "adapter:<name>", "head:<name>"), or of all. */
  async zeroGradients(groups?: readonly string[]): Promise<void> {
    const trainable = this.parameters().filter((parameter) => parameter.trainable);
    const wanted = groups ?? [...new Set(trainable.map((parameter) => parameter.group))];
    for (const group of wanted) await callAsync(() => this.native.zeroGradients(group));
  }

  /**
   * Continues prompts. Strings need a tokenizer, and with one each result has its text, without the stop string that ended it. The
   * prompt is not part of the result.
   * Throws ERR_RLHF_ARGUMENT for settings out of range, ERR_RLHF_CONTEXT_LENGTH for a prompt that fills the context.
   */
  generate(
    prompts: readonly Int32Array[] | readonly string[],
    options: GenerateOptions & { tokenizer: Tokenizer },
  ): Promise<(Generation & { text: string })[]>;
  generate(prompts: readonly Int32Array[], options: GenerateOptions): Promise<Generation[]>;
  async generate(
    prompts: readonly Int32Array[] | readonly string[],
    options: GenerateOptions & { tokenizer?: Tokenizer },
  ): Promise<Generation[]> {
    if (!Array.isArray(prompts))
      throw new RlhfError("ERR_RLHF_ARGUMENT", "generate: prompts must be a list of Int32Arrays or strings");
    const { tokenizer, ...settings } = options ?? {};
    const tokens = prompts.map((prompt) => {
      if (typeof prompt !== "string") return prompt;
      if (!tokenizer)
        throw new RlhfError("ERR_RLHF_ARGUMENT", "generate: prompts that are strings need a tokenizer");
      return encodePrompt(tokenizer, prompt);
    });
    const generations = await generate(this.native, tokens, settings, this.eosTokenIds, tokenizer);
    if (!tokenizer) return generations;
    return generations.map((generation, i) => ({
      ...generation,
      text: answerText(tokenizer, tokens[i] as Int32Array, generation, settings.stopStrings),
    }));
  }

  #sources(group: string): TensorSource[] {
    return this.parameters()
      .filter((parameter) => parameter.group === group)
      .map((parameter) => ({
        name: parameter.name,
        shape: parameter.shape,
        dtype: parameter.dtype === "bfloat16" ? "BF16" : "F32",
        read: () => readParameter(this.native, parameter),
      }));
  }

  /** What transformers is told to load the saved weights as: nothing that they have to be rounded to but for vectors. */
  #savedType({ merge }: SaveOptions): "float32" | "bfloat16" {
    return merge === undefined && this.dtype === "bfloat16" ? "bfloat16" : "float32";
  }

  /** The base's tensors, with an adapter merged in as they are read. */
  #baseTensors(merge: string | undefined): TensorSource[] {
    const sources = this.#sources("base");
    return merge === undefined ? sources : this.#adapters.mergedInto(sources, merge);
  }

  /**
   * Writes a directory that transformers loads: config.json, generation_config.json, model.safetensors; heads go to
   * heads.safetensors beside them. What is kept as bfloat16 is saved so, all else as float32, and so is what an adapter is merged into.
   * Every file is written aside and renamed into place. Throws ERR_RLHF_IO.
   */
  async save(directory: string, options: SaveOptions = {}): Promise<void> {
    refuseUnknownOptions("save", options, SAVE_OPTIONS);
    const tensors = this.#baseTensors(options.merge);
    const saved = { kind: "CausalLM", tensors, dtype: this.#savedType(options) } as const;
    await writeModelDirectory(directory, this.config.family, this.#origin, saved);
    const heads = new Map([...this.#heads].filter(([name]) => options.heads?.includes(name) ?? true));
    if (heads.size > 0) {
      const sources = [...heads.keys()].flatMap((name) => this.#sources(`head:${name}`));
      await saveHeads(directory, heads, sources);
    }
  }

  /**
   * Writes a `…ForSequenceClassification` directory with one label: the backbone without its language-model head, and the linear
   * head `name` as score.weight.
   */
  async saveForSequenceClassification(
    directory: string,
    head: string,
    options: SaveOptions & { padTokenId?: number } = {},
  ): Promise<void> {
    refuseUnknownOptions("saveForSequenceClassification", options, { ...SAVE_OPTIONS, padTokenId: true });
    const score = this.#linearHead(head, "saveForSequenceClassification");
    const backbone = this.#baseTensors(options.merge).filter((source) => source.name !== "lm_head.weight");
    const padTokenId = options.padTokenId ?? this.hfConfig.pad_token_id ?? this.eosTokenIds[0] ?? 0;
    await writeModelDirectory(directory, this.config.family, this.#origin, {
      kind: "SequenceClassification",
      tensors: [...backbone, { ...score, name: "score.weight" }],
      dtype: this.#savedType(options),
      config: { id2label: { 0: "reward" }, label2id: { reward: 0 }, pad_token_id: padTokenId },
    });
  }

  /** The weight of a head that transformers' sequence classifiers can have. */
  #linearHead(head: string, what: string): TensorSource {
    const [score] = this.#sources(`head:${head}`);
    if (score && this.#heads.get(head)?.kind === "linear" && !this.#heads.get(head)?.bias) return score;
    throw new RlhfError("ERR_RLHF_ARGUMENT", `${what}: head "${head}" must be linear without bias`, { head });
  }

  /** Bytes that the model holds now, by use; what optimizers and operators hold is counted by `engine.memory()`. */
  memory(): MemoryBytes {
    return call(() => this.native.memory());
  }

  /** Frees the model once the commands already queued have run. */
  dispose(): void {
    this.native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
