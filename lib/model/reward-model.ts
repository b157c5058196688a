import { stat } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { planMicroBatches } from "../data/batching.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { lastTokens, packSequences } from "./batch.ts";
import { CausalLM } from "./causal-lm.ts";
import { readModelConfig } from "./config.ts";
import { readJsonIfPresent } from "./files.ts";
import { type HeadInfo, type HeadOptions, loadScore, readHeads, saveHeads } from "./heads.ts";
import { LOAD_OPTIONS, type LoadOptions } from "./model-options.ts";
import { isPeftDirectory, readPeftDirectory } from "./peft.ts";
import {
  type RewardStatistics,
  readRewardStatistics,
  statisticsOf,
  writeRewardStatistics,
} from "./reward-statistics.ts";
import { isReadable, readModelTensors, readTensor, type TensorIndex } from "./safetensors.ts";

/** The name of the head that scores, in memory and in heads.safetensors; on a model that is lent to several, "reward-2" and so on. */
export const REWARD_HEAD = "reward";
/** The name of the adapter that comes from a reward model's PEFT directory. */
const LOADED_ADAPTER = "reward-adapter";

export interface RewardLoadOptions extends LoadOptions {
  /** A model already in memory; it lends its backbone when its weights are the same, else the reward model is loaded beside it. */
  readonly backbone?: CausalLM;
}

export const REWARD_LOAD_OPTIONS: NamesOf<RewardLoadOptions> = { ...LOAD_OPTIONS, backbone: true };

export interface RewardModelOptions {
  /** Default: linear without bias, as transformers' …ForSequenceClassification has it. */
  readonly head?: HeadOptions;
  /** The adapter that scores; left out: the base alone. */
  readonly adapter?: string;
}

export interface ScoreOptions {
  /** The most tokens of one forward pass. Default 8192. Scores do not depend on it. */
  readonly microBatchTokens?: number;
  /** Subtracts the model's stored mean and divides by its deviation. Default false: the raw scores, those of transformers. */
  readonly normalize?: boolean;
}

export const SCORE_OPTIONS: NamesOf<ScoreOptions> = { microBatchTokens: true, normalize: true };

function notReward(directory: string, problem: string): RlhfError {
  return new RlhfError("ERR_RLHF_MODEL", `${directory}: ${problem}`, { directory });
}

/** Puts a directory's reward head on a model: transformers' score.weight, or the one named "reward" in heads.safetensors. */
async function loadHead(model: CausalLM, head: string, directory: string, index: TensorIndex): Promise<void> {
  const score = index.entries.get("score.weight");
  if (score) return await loadScore(model, head, score, directory);
  if (!(await stat(join(directory, "heads.safetensors")).catch(() => null)))
    throw notReward(directory, "has neither score.weight nor heads.safetensors; it is not a reward model");
  const { heads, tensors } = await readHeads(directory);
  const info = heads.get(REWARD_HEAD);
  if (!info)
    throw notReward(
      directory,
      `heads.safetensors has no head "${REWARD_HEAD}", it has ${[...heads.keys()].join(", ")}`,
    );
  model.addHead(head, info as HeadOptions);
  for (const [name, values] of tensors) {
    const [owner, part] = name.split(":");
    if (owner === REWARD_HEAD) await model.writeParameter(`${head}:${part}`, values);
  }
}

/** The name, or one with a number after it that is not taken yet. */
function freeName(name: string, taken: ReadonlyMap<string, unknown>): string {
  let free = name;
  for (let number = 2; taken.has(free); number++) free = `${name}-${number}`;
  return free;
}

/** True when the directory's configuration computes what the backbone's does, its language-model head apart. */
async function sharesConfig(backbone: CausalLM, directory: string): Promise<boolean> {
  const path = join(directory, "config.json");
  const hfConfig = await readJsonIfPresent(path, "ERR_RLHF_MODEL");
  if (!hfConfig) return false;
  const { tiedEmbeddings } = backbone.config;
  return isDeepStrictEqual({ ...readModelConfig(hfConfig, path), tiedEmbeddings }, backbone.config);
}

/** True when every backbone tensor of the index equals the model's parameter, bit for bit. */
async function sharesWeights(backbone: CausalLM, directory: string, index: TensorIndex): Promise<boolean> {
  if (!(await sharesConfig(backbone, directory))) return false;
  const parameters = backbone.parameters().filter((parameter) => parameter.group === "base");
  for (const { name, shape } of parameters) {
    const entry = index.entries.get(name);
    if (name === "lm_head.weight" && !entry) continue;
    if (!entry || !isReadable(entry) || entry.shape.join() !== shape.join()) return false;
    const [theirs, ours] = [await readTensor(entry), await backbone.readParameter(name)];
    if (Buffer.compare(Buffer.from(theirs.buffer), Buffer.from(ours.buffer)) !== 0) return false;
  }
  return true;
}

/** Whether a model is the base that an adapter names. A base that is not here to be compared is taken on the caller's word. */
async function isBase(backbone: CausalLM, baseModel: string | null): Promise<boolean> {
  if (baseModel === null || !(await stat(join(baseModel, "config.json")).catch(() => null))) return true;
  return await sharesWeights(backbone, baseModel, await readModelTensors(baseModel));
}

/** What goes when a reward model is disposed of: its model, its head on a lent one, or that and the adapter loaded with it. */
type Owned = "model" | "head" | "head and adapter";

interface Parts {
  readonly adapter?: string | undefined;
  readonly statistics?: RewardStatistics | null;
  readonly owns?: Owned;
}

/** A transformer with a scalar head: the score of a sequence is the head's output at its last token. */
export class RewardModel implements Disposable {
  readonly model: CausalLM;
  readonly adapter: string | undefined;
  /** The head's name on the model. */
  readonly head: string;
  /** Mean and deviation of its raw scores; null where they were never measured. */
  statistics: RewardStatistics | null;
  readonly #owns: Owned;

  private constructor(
    model: CausalLM,
    head: string,
    { adapter, statistics = null, owns = "head" }: Parts = {},
  ) {
    this.model = model;
    this.head = head;
    this.adapter = adapter;
    this.statistics = statistics;
    this.#owns = owns;
  }

  /** Puts a reward head on a model, to be trained. A model may be lent to several, each with a head of its own. */
  static create(model: CausalLM, options: RewardModelOptions = {}): RewardModel {
    refuseUnknownOptions("RewardModel.create", options, { head: true, adapter: true });
    const head = freeName(REWARD_HEAD, model.heads);
    model.addHead(head, { bias: false, ...options.head });
    return new RewardModel(model, head, { adapter: options.adapter });
  }

  /** This reward model through another adapter. The two share all they hold: dispose of this one only. */
  with(options: Pick<RewardModelOptions, "adapter">): RewardModel {
    refuseUnknownOptions("with", options, { adapter: true });
    if (options.adapter === this.adapter) return this;
    return new RewardModel(this.model, this.head, { adapter: options.adapter });
  }

  /**
   * Loads a directory with one label: transformers' …ForSequenceClassification (score.weight), or a model with heads.safetensors.
   * Throws ERR_RLHF_MODEL when it has no reward head.
   */
  static async load(path: string, options: RewardLoadOptions = {}): Promise<RewardModel> {
    refuseUnknownOptions("RewardModel.load", options, REWARD_LOAD_OPTIONS);
    const directory = await localModel(path);
    if (await isPeftDirectory(directory)) return RewardModel.#loadAdapter(directory, options);
    const { backbone, ...loadOptions } = options;
    const index = await readModelTensors(directory);
    const statistics = await readRewardStatistics(directory);
    if (backbone && (await sharesWeights(backbone, directory, index))) {
      const head = freeName(REWARD_HEAD, backbone.heads);
      await loadHead(backbone, head, directory, index);
      return new RewardModel(backbone, head, { statistics });
    }
    const model = await CausalLM.load(directory, loadOptions);
    try {
      // CausalLM has loaded what is in heads.safetensors.
      if (!model.heads.has(REWARD_HEAD)) await loadHead(model, REWARD_HEAD, directory, index);
    } catch (error) {
      model.dispose();
      throw error;
    }
    return new RewardModel(model, REWARD_HEAD, { statistics, owns: "model" });
  }

  /** The adapter goes onto the backbone given, where that is the base it names, else onto that base, loaded beside it. */
  static async #loadAdapter(directory: string, options: RewardLoadOptions): Promise<RewardModel> {
    const { backbone, ...loadOptions } = options;
    const { baseModel } = await readPeftDirectory(directory);
    if (!backbone && baseModel === null)
      throw new RlhfError("ERR_RLHF_MODEL", `${directory}: names no base model; pass it as backbone`, {
        directory,
      });
    const lent = backbone && (await isBase(backbone, baseModel)) ? backbone : undefined;
    const model = lent ?? (await CausalLM.load(baseModel as string, loadOptions));
    const adapter = freeName(LOADED_ADAPTER, model.adapters);
    const head = freeName(REWARD_HEAD, model.heads);
    const owns = lent ? "head and adapter" : "model";
    try {
      const statistics = await readRewardStatistics(directory);
      // On a backbone that is lent it is there to score; no trainer of the backbone should take it for its own.
      await model.loadAdapter(adapter, directory, { head, trainable: !lent });
      return new RewardModel(model, head, { adapter, statistics, owns });
    } catch (error) {
      if (!lent) model.dispose();
      throw error;
    }
  }

  /**
   * Scores of token sequences (prompt and answer together). A score does not depend on what else is scored with it.
   * Throws ERR_RLHF_ARGUMENT when they are to be normalised and the model has no statistics.
   *
   * @returns Float32Array, one score per sequence
   */
  async score(sequences: readonly Int32Array[], options: ScoreOptions = {}): Promise<Float32Array> {
    refuseUnknownOptions("score", options, SCORE_OPTIONS);
    const { statistics } = this;
    if (options.normalize && !statistics)
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        "score: this reward model has no statistics to normalise with; measureStatistics() makes them",
      );
    const scores = new Float32Array(sequences.length);
    if (sequences.length === 0) return scores;
    const plan = planMicroBatches(
      sequences.map((tokens) => tokens.length),
      options.microBatchTokens ?? 8192,
    );
    for (const indices of plan) {
      const batch = packSequences(indices.map((index) => ({ tokens: sequences[index] as Int32Array })));
      using pass = await this.model.forward(batch, {
        head: this.head,
        statistics: false,
        values: "last",
        ...(this.adapter === undefined ? {} : { adapter: this.adapter }),
      });
      const values = await pass.value();
      lastTokens(batch).forEach((row, i) => {
        scores[indices[i] as number] = values[row] as number;
      });
    }
    if (!options.normalize || !statistics) return scores;
    return scores.map((score) => (score - statistics.mean) / statistics.deviation);
  }

  /**
   * Measures mean and deviation of the raw scores of some sequences and keeps them in `statistics`; `save` writes them. They become
   * null where all scores are alike.
   */
  async measureStatistics(
    sequences: readonly Int32Array[],
    options: Pick<ScoreOptions, "microBatchTokens"> = {},
  ): Promise<RewardStatistics | null> {
    refuseUnknownOptions("measureStatistics", options, { microBatchTokens: true });
    this.statistics = statisticsOf(await this.score(sequences, options));
    return this.statistics;
  }

  /**
   * Writes the model as a directory that transformers' AutoModelForSequenceClassification loads (linear head without bias), or with
   * heads.safetensors beside the language model (other heads). An adapter is merged into the saved weights. The statistics
   * go beside them and change no weight: what transformers loads gives the raw scores.
   */
  async save(directory: string): Promise<void> {
    const merge = this.adapter === undefined ? {} : { merge: this.adapter };
    const info = this.model.heads.get(this.head);
    if (info?.kind === "linear" && !info.bias)
      await this.model.saveForSequenceClassification(directory, this.head, merge);
    else {
      await this.model.save(directory, { ...merge, heads: [] });
      await this.#saveHead(directory);
    }
    await writeRewardStatistics(directory, this.statistics);
  }

  /** heads.safetensors with this head alone, under the name that `load` looks for. */
  async #saveHead(directory: string): Promise<void> {
    const info = this.model.heads.get(this.head) as HeadInfo;
    const own = this.model.parameters().filter((parameter) => parameter.group === `head:${this.head}`);
    const tensors = own.map(({ name, shape }) => ({
      name: `${REWARD_HEAD}:${name.slice(this.head.length + 1)}`,
      shape,
      read: () => this.model.readParameter(name),
    }));
    await saveHeads(directory, new Map([[REWARD_HEAD, info]]), tensors);
  }

  /**
   * Writes the adapter and the head alone, as a directory that peft loads onto a sequence classifier of the same base, and the
   * statistics beside them.
   */
  async saveAdapter(directory: string): Promise<void> {
    if (this.adapter === undefined)
      throw new RlhfError("ERR_RLHF_ARGUMENT", "saveAdapter: this reward model has no adapter; use save");
    await this.model.saveAdapter(this.adapter, directory, { head: this.head });
    await writeRewardStatistics(directory, this.statistics);
  }

  /** Frees the model, or takes its head, and an adapter loaded with it, off a backbone that somebody else lent. */
  dispose(): void {
    if (this.#owns === "model") {
      this.model.dispose();
      return;
    }
    if (this.model.heads.has(this.head)) this.model.removeHead(this.head);
    const { adapter } = this;
    if (this.#owns === "head and adapter" && adapter !== undefined && this.model.adapters.has(adapter))
      this.model.removeAdapter(adapter);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
