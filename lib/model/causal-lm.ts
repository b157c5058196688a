import { join } from "node:path";
import { encodePrompt } from "../data/tokenize.ts";
import { Engine, type EngineOptions } from "../engine/engine.ts";
import {
  call,
  callAsync,
  type ModelConfig,
  type NativeModel,
  type NativeParameter,
} from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import {
  type AdapterInfo,
  type AdapterOptions,
  mergeLora,
  readPeftDirectory,
  resolveTargetModules,
  savePeftDirectory,
} from "./adapters.ts";
import { type PackedBatch, predictionsOf } from "./batch.ts";
import {
  architectureOf,
  type HfConfig,
  initializerRange,
  readEosTokenIds,
  readModelConfig,
} from "./config.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";
import { type GenerateOptions, type Generation, generate } from "./generation.ts";
import { type HeadInfo, type HeadOptions, readHeads, saveHeads, toHeadInfo, toNativeHead } from "./heads.ts";
import { type AdamWOptions, Optimizer } from "./optimizer.ts";
import { Pass } from "./pass.ts";
import { readModelTensors, type TensorSource, writeSafetensors } from "./safetensors.ts";
import { loadParameters, nameInFile, readGradient, readParameter } from "./weights.ts";

export interface LoadOptions extends EngineOptions {
  /** Type of weights and arithmetic. "float32" (default) is the one there is on the CPU. */
  readonly dtype?: "float32";
  /** Whether the base's own weights get gradients. Default "none": adapters and heads train on a frozen base. */
  readonly trainable?: "all" | "none";
}

export interface CreateOptions extends LoadOptions {
  /** Seed of the initial weights. Default 0. */
  readonly seed?: number;
}

export interface ForwardOptions {
  /** Name of an adapter; left out: the base alone. */
  readonly adapter?: string;
  /** Name of a head, for `value`. */
  readonly head?: string;
  /** Divides the logits in logProb, lse and entropy. Default 1. */
  readonly temperature?: number;
  /** Keeps what `backward` needs. Default false. */
  readonly grad?: boolean;
  /** False leaves the language-model head out. Default true. */
  readonly statistics?: boolean;
  /** The tokens whose statistics are computed, "all" (default) or those in the batch's mask; the others read 0. */
  readonly predict?: "all" | "masked";
}

export interface OptimizerOptions extends AdamWOptions {
  /** Whether to update the base. Default: yes if it is trainable and no adapter is named. */
  readonly base?: boolean;
  readonly adapter?: string;
  readonly heads?: readonly string[];
}

export interface SaveOptions {
  /** Merges this adapter into the saved weights; the model in memory stays as it is. */
  readonly merge?: string;
  /** Heads to save. Default: all. */
  readonly heads?: readonly string[];
}

/** One parameter of a model; names and shapes are those of transformers' named_parameters(). */
export interface Parameter extends NativeParameter {
  readonly dtype: "float32";
}

interface Origin {
  readonly hfConfig: HfConfig;
  readonly generationConfig: HfConfig | null;
  readonly directory: string | null;
}

function checkDtype(dtype: string | undefined): void {
  if (dtype !== undefined && dtype !== "float32")
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `dtype "${dtype}" is not supported on the CPU; use "float32"`,
      {
        dtype,
      },
    );
}

/** A decoder-only transformer with a language-model head, named LoRA adapters and named scalar heads. */
export class CausalLM implements Disposable {
  readonly engine: Engine;
  readonly config: ModelConfig;
  readonly hfConfig: HfConfig;
  /** Where it was loaded from; null for a model made from a configuration. */
  readonly directory: string | null;
  readonly trainable: "all" | "none";
  /** Tokens that end a sequence, from generation_config.json or config.json. */
  readonly eosTokenIds: readonly number[];
  /** The addon's handle, for the package's own modules. */
  readonly native: NativeModel;
  readonly #generationConfig: HfConfig | null;
  readonly #adapters = new Map<string, AdapterInfo>();
  readonly #heads = new Map<string, HeadInfo>();

  private constructor(
    engine: Engine,
    handle: NativeModel,
    config: ModelConfig,
    origin: Origin,
    trainable: "all" | "none",
  ) {
    this.engine = engine;
    this.native = handle;
    this.config = config;
    this.hfConfig = origin.hfConfig;
    this.directory = origin.directory;
    this.trainable = trainable;
    this.#generationConfig = origin.generationConfig;
    this.eosTokenIds = readEosTokenIds(origin.hfConfig, origin.generationConfig);
  }

  /**
   * Loads a Hugging Face directory: config.json, safetensors (sharded or not; F32, F16, BF16), and the heads saved beside them.
   * Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED or ERR_RLHF_WEIGHTS with the file and what is wrong in it.
   */
  static async load(path: string, options: LoadOptions = {}): Promise<CausalLM> {
    const directory = await localModel(path);
    checkDtype(options.dtype);
    const configPath = join(directory, "config.json");
    const hfConfig = await readJsonIfPresent(configPath, "ERR_RLHF_MODEL");
    if (!hfConfig)
      throw new RlhfError("ERR_RLHF_MODEL", `${configPath}: does not exist; expected a model directory`, {
        directory,
      });
    const generationConfig = await readJsonIfPresent(
      join(directory, "generation_config.json"),
      "ERR_RLHF_MODEL",
    );
    const tensors = await readModelTensors(directory);
    let config = readModelConfig(hfConfig, configPath);
    // A reward model's directory has no language-model head; tying it to the embeddings needs no weights.
    if (tensors.entries.has("score.weight") && !tensors.entries.has("lm_head.weight"))
      config = { ...config, tiedEmbeddings: true };
    const model = await CausalLM.#build(config, { hfConfig, generationConfig, directory }, options);
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
    checkDtype(options.dtype);
    const config = readModelConfig(hfConfig, "config");
    const model = await CausalLM.#build(
      config,
      { hfConfig, generationConfig: null, directory: null },
      options,
    );
    await callAsync(() => model.native.initialise(initializerRange(hfConfig), options.seed ?? 0));
    return model;
  }

  static async #build(config: ModelConfig, origin: Origin, options: LoadOptions): Promise<CausalLM> {
    const engine = Engine.shared(options);
    const trainable = options.trainable ?? "none";
    const handle = await callAsync(() => engine.native.createModel(config, trainable === "all"));
    return new CausalLM(engine, handle, config, origin, trainable);
  }

  /**
   * A second model with the same weights as this one now, adapters left out: a frozen reference policy.
   * With `merge`, that adapter is part of its weights.
   */
  async clone(options: { trainable?: "all" | "none"; merge?: string } = {}): Promise<CausalLM> {
    const trainable = options.trainable ?? "none";
    const handle = await callAsync(() => this.engine.native.createModel(this.config, trainable === "all"));
    const origin = {
      hfConfig: this.hfConfig,
      generationConfig: this.#generationConfig,
      directory: this.directory,
    };
    const copy = new CausalLM(this.engine, handle, this.config, origin, trainable);
    for (const source of this.#baseTensors(options.merge)) {
      const values = await source.read();
      await copy.writeParameter(source.name, values);
    }
    return copy;
  }

  async #loadHeads(directory: string): Promise<void> {
    const { heads, tensors } = await readHeads(directory);
    for (const [name, info] of heads) this.addHead(name, info as HeadOptions);
    for (const [name, values] of tensors) await this.writeParameter(name, values);
  }

  get vocabSize(): number {
    return this.config.vocab;
  }

  /** The longest sequence in tokens. */
  get maxLength(): number {
    return this.config.maxPositions;
  }

  get adapters(): ReadonlyMap<string, AdapterInfo> {
    return this.#adapters;
  }

  get heads(): ReadonlyMap<string, HeadInfo> {
    return this.#heads;
  }

  /** What `targetModules` of an adapter may name. */
  get linearModules(): string[] {
    return call(() => this.native.linearModuleNames());
  }

  parameters(): Parameter[] {
    return call(() => this.native.parameters()).map((parameter) => ({ ...parameter, dtype: "float32" }));
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

  /** Adds a LoRA adapter, B zero: until it is trained the model computes as before. */
  addAdapter(name: string, options: AdapterOptions): void {
    const targetModules = resolveTargetModules(options.targetModules, this.config.family, this.linearModules);
    const { r, alpha, seed } = options;
    call(() => this.native.addAdapter(name, { rank: r, alpha, targetModules, seed: seed ?? 0 }));
    this.#adapters.set(name, { r, alpha, targetModules });
  }

  removeAdapter(name: string): void {
    call(() => this.native.removeAdapter(name));
    this.#adapters.delete(name);
  }

  /** Adds an adapter to the base's weights for good and removes it. */
  async mergeAdapter(name: string): Promise<void> {
    this.#adapter(name);
    await callAsync(() => this.native.mergeAdapter(name));
    this.#adapters.delete(name);
  }

  #adapter(name: string): AdapterInfo {
    const info = this.#adapters.get(name);
    if (!info)
      throw new RlhfError(
        "ERR_RLHF_UNKNOWN_NAME",
        `the model has no adapter "${name}"; it has ${[...this.#adapters.keys()].join(", ") || "none"}`,
        { name },
      );
    return info;
  }

  /** Loads a PEFT directory as an adapter. Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED or ERR_RLHF_WEIGHTS. */
  async loadAdapter(name: string, directory: string): Promise<void> {
    const { info, tensors } = await readPeftDirectory(directory);
    this.addAdapter(name, info);
    try {
      const entries = new Map([...tensors].map(([parameter, entry]) => [`${name}:${parameter}`, entry]));
      const expected = this.parameters().filter((parameter) => parameter.group === `adapter:${name}`);
      const names = new Set(expected.map((parameter) => parameter.name));
      const surplus = [...entries].find(([parameter]) => !names.has(parameter))?.[1];
      if (surplus)
        throw new RlhfError(
          "ERR_RLHF_WEIGHTS",
          `${surplus.path}: tensor "${surplus.name}" belongs to no layer that target_modules names in this model; it is an adapter of another one`,
          { tensor: surplus.name },
        );
      await loadParameters(this.native, expected, { entries, metadata: {} }, directory);
    } catch (error) {
      this.removeAdapter(name);
      throw error;
    }
  }

  /** Writes an adapter as a directory that peft loads. */
  async saveAdapter(name: string, directory: string): Promise<void> {
    const info = this.#adapter(name);
    const sources = this.#sources(`adapter:${name}`).map((source) => ({
      ...source,
      name: source.name.slice(name.length + 1),
    }));
    await savePeftDirectory(directory, info, this.config.family, this.directory, sources);
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
   * Runs a packed batch. Throws ERR_RLHF_TOKEN_RANGE, ERR_RLHF_CONTEXT_LENGTH, ERR_RLHF_UNKNOWN_NAME, and ERR_RLHF_PASS_LIVE when
   * too many passes with gradients are waiting for backward.
   */
  async forward(batch: PackedBatch, options: ForwardOptions = {}): Promise<Pass> {
    const statistics = options.statistics ?? true;
    const predictions = statistics ? predictionsOf(batch, options.predict ?? "all") : new Int32Array(0);
    const handle = await callAsync(() =>
      this.native.forward(
        { tokens: batch.tokens, offsets: batch.offsets, predictions },
        {
          adapter: options.adapter ?? "",
          head: options.head ?? "",
          temperature: options.temperature ?? 1,
          grad: options.grad ?? false,
          statistics,
        },
      ),
    );
    return new Pass(handle);
  }

  /** AdamW over the base, an adapter and heads, as the options name them. Throws ERR_RLHF_ARGUMENT when they name nothing. */
  createOptimizer(options: OptimizerOptions = {}): Optimizer {
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
   * Continues prompts. Strings need a tokenizer, and then each result has its text. The prompt is not part of the result.
   * Throws ERR_RLHF_ARGUMENT for settings out of range, ERR_RLHF_CONTEXT_LENGTH for a prompt that fills the context.
   */
  generate(prompts: readonly Int32Array[], options: GenerateOptions): Promise<Generation[]>;
  generate(
    prompts: readonly string[],
    options: GenerateOptions & { tokenizer: Tokenizer },
  ): Promise<(Generation & { text: string })[]>;
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
    const generations = await generate(this.native, tokens, settings, this.eosTokenIds);
    if (!tokenizer) return generations;
    return generations.map((generation, i) => ({
      ...generation,
      text: tokenizer.decodeContinuation(tokens[i] as Int32Array, generation.tokens),
    }));
  }

  #sources(group: string): TensorSource[] {
    return this.parameters()
      .filter((parameter) => parameter.group === group)
      .map((parameter) => ({
        name: parameter.name,
        shape: parameter.shape,
        read: () => readParameter(this.native, parameter),
      }));
  }

  /** The base's tensors, with an adapter merged in as they are read. */
  #baseTensors(merge: string | undefined): TensorSource[] {
    const sources = this.#sources("base");
    if (merge === undefined) return sources;
    const { r, alpha } = this.#adapter(merge);
    const factors = new Map(this.#sources(`adapter:${merge}`).map((source) => [source.name, source]));
    return sources.map((source) => {
      const module = `${merge}:${source.name.replace(/\.weight$/, "")}`;
      const a = factors.get(`${module}.lora_A`);
      const b = factors.get(`${module}.lora_B`);
      if (!a || !b) return source;
      const transposed = this.config.family === "gpt2";
      const read = async (): Promise<Float32Array> =>
        mergeLora(await source.read(), await a.read(), await b.read(), r, alpha, transposed);
      return { ...source, read };
    });
  }

  /**
   * Writes a directory that transformers loads: config.json, generation_config.json, model.safetensors; heads go to
   * heads.safetensors beside them. Every file is written aside and renamed into place. Throws ERR_RLHF_IO.
   */
  async save(directory: string, options: SaveOptions = {}): Promise<void> {
    const tensors = this.#baseTensors(options.merge);
    await writeSafetensors(
      join(directory, "model.safetensors"),
      tensors.map((tensor) => ({ ...tensor, name: nameInFile(this.config.family, tensor.name) })),
    );
    await this.#saveConfig(directory, architectureOf(this.config.family, "CausalLM"), {});
    if (this.#generationConfig)
      await writeJson(join(directory, "generation_config.json"), this.#generationConfig);
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
    const [score] = this.#sources(`head:${head}`);
    if (!score || this.#heads.get(head)?.kind !== "linear" || this.#heads.get(head)?.bias)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `saveForSequenceClassification: head "${head}" must be linear without bias`,
        { head },
      );
    const backbone = this.#baseTensors(options.merge).filter((source) => source.name !== "lm_head.weight");
    await writeSafetensors(join(directory, "model.safetensors"), [
      ...backbone,
      { ...score, name: "score.weight" },
    ]);
    const configured = this.hfConfig.pad_token_id;
    const padTokenId = options.padTokenId ?? configured ?? this.eosTokenIds[0] ?? 0;
    await this.#saveConfig(directory, architectureOf(this.config.family, "SequenceClassification"), {
      id2label: { 0: "reward" },
      label2id: { reward: 0 },
      pad_token_id: padTokenId,
    });
  }

  async #saveConfig(directory: string, architecture: string, more: Record<string, unknown>): Promise<void> {
    const { torch_dtype: _old, ...config } = this.hfConfig;
    await writeJson(join(directory, "config.json"), {
      ...config,
      architectures: [architecture],
      dtype: "float32",
      ...more,
    });
  }

  /** Bytes that the model holds now, by category. */
  memory(): Record<string, number> {
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
