import { stat } from "node:fs/promises";
import { join } from "node:path";
import { planMicroBatches } from "../data/batching.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { lastTokens, packSequences } from "./batch.ts";
import { CausalLM, type LoadOptions } from "./causal-lm.ts";
import { type HeadOptions, loadScore } from "./heads.ts";
import { isPeftDirectory, readPeftDirectory } from "./peft.ts";
import { readModelTensors, readTensor, type TensorIndex } from "./safetensors.ts";

/** The name of the head that scores. */
export const REWARD_HEAD = "reward";
/** The name of the adapter that comes from a reward model's PEFT directory. */
const LOADED_ADAPTER = "reward-adapter";

export interface RewardLoadOptions extends LoadOptions {
  /** A model already in memory; it lends its backbone when its weights are the same, else the reward model is loaded beside it. */
  readonly backbone?: CausalLM;
}

export interface RewardModelOptions {
  /** Default: linear without bias, as transformers' …ForSequenceClassification has it. */
  readonly head?: HeadOptions;
  /** The adapter that scores; left out: the base alone. */
  readonly adapter?: string;
}

export interface ScoreOptions {
  /** The most tokens of one forward pass. Default 8192. Scores do not depend on it. */
  readonly microBatchTokens?: number;
}

/** True when every backbone tensor of the index equals the model's parameter, byte for byte. */
async function sharesWeights(backbone: CausalLM, index: TensorIndex): Promise<boolean> {
  const parameters = backbone.parameters().filter((parameter) => parameter.group === "base");
  for (const { name, shape } of parameters) {
    const entry = index.entries.get(name);
    if (name === "lm_head.weight" && !entry) continue;
    if (entry?.dtype !== "F32" || entry.shape.join() !== shape.join()) return false;
    const [theirs, ours] = [await readTensor(entry), await backbone.readParameter(name)];
    if (Buffer.compare(Buffer.from(theirs.buffer), Buffer.from(ours.buffer)) !== 0) return false;
  }
  return true;
}

/** A transformer with a scalar head: the score of a sequence is the head's output at its last token. */
export class RewardModel implements Disposable {
  readonly model: CausalLM;
  readonly adapter: string | undefined;
  readonly head = REWARD_HEAD;
  readonly #ownsModel: boolean;

  private constructor(model: CausalLM, adapter: string | undefined, ownsModel: boolean) {
    this.model = model;
    this.adapter = adapter;
    this.#ownsModel = ownsModel;
  }

  /** Puts a reward head on a model, to be trained. Throws ERR_RLHF_ARGUMENT when it has one already. */
  static create(model: CausalLM, options: RewardModelOptions = {}): RewardModel {
    model.addHead(REWARD_HEAD, { bias: false, ...options.head });
    return new RewardModel(model, options.adapter, false);
  }

  /** This reward model through another adapter. The two share all they hold: dispose of this one only. */
  with(options: Pick<RewardModelOptions, "adapter">): RewardModel {
    return options.adapter === this.adapter ? this : new RewardModel(this.model, options.adapter, false);
  }

  /**
   * Loads a directory with one label: transformers' …ForSequenceClassification (score.weight), or a model with heads.safetensors.
   * Throws ERR_RLHF_MODEL when it has no reward head.
   */
  static async load(path: string, options: RewardLoadOptions = {}): Promise<RewardModel> {
    const directory = await localModel(path);
    if (await isPeftDirectory(directory)) return RewardModel.#loadAdapter(directory, options);
    const index = await readModelTensors(directory);
    const score = index.entries.get("score.weight");
    const hasHeads = await stat(join(directory, "heads.safetensors")).catch(() => null);
    if (!score && !hasHeads)
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: has neither score.weight nor heads.safetensors; it is not a reward model`,
        { directory },
      );
    const { backbone, ...loadOptions } = options;
    const shared =
      backbone && score && !backbone.heads.has(REWARD_HEAD) && (await sharesWeights(backbone, index));
    const model = shared ? backbone : await CausalLM.load(directory, loadOptions);
    if (score) await loadScore(model, REWARD_HEAD, score, directory);
    if (!model.heads.has(REWARD_HEAD))
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: heads.safetensors has no head "${REWARD_HEAD}", it has ${[...model.heads.keys()].join(", ")}`,
        { directory },
      );
    return new RewardModel(model, undefined, !shared);
  }

  /** The adapter goes onto the backbone given, which it must have been trained on, or onto the base that its file names. */
  static async #loadAdapter(directory: string, options: RewardLoadOptions): Promise<RewardModel> {
    const { backbone, ...loadOptions } = options;
    const { baseModel } = await readPeftDirectory(directory);
    if (!backbone && baseModel === null)
      throw new RlhfError("ERR_RLHF_MODEL", `${directory}: names no base model; pass it as backbone`, {
        directory,
      });
    const model = backbone ?? (await CausalLM.load(baseModel as string, loadOptions));
    await model.loadAdapter(LOADED_ADAPTER, directory, { head: REWARD_HEAD });
    return new RewardModel(model, LOADED_ADAPTER, !backbone);
  }

  /**
   * Scores of token sequences (prompt and answer together). A score does not depend on what else is scored with it.
   *
   * @returns Float32Array, one score per sequence
   */
  async score(sequences: readonly Int32Array[], options: ScoreOptions = {}): Promise<Float32Array> {
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
        ...(this.adapter === undefined ? {} : { adapter: this.adapter }),
      });
      const values = await pass.value();
      lastTokens(batch).forEach((row, i) => {
        scores[indices[i] as number] = values[row] as number;
      });
    }
    return scores;
  }

  /**
   * Writes the model as a directory that transformers' AutoModelForSequenceClassification loads (linear head), or with
   * heads.safetensors beside the language model (MLP head). An adapter is merged into the saved weights.
   */
  async save(directory: string): Promise<void> {
    const merge = this.adapter === undefined ? {} : { merge: this.adapter };
    const info = this.model.heads.get(this.head);
    if (info?.kind === "linear" && !info.bias)
      await this.model.saveForSequenceClassification(directory, this.head, merge);
    else await this.model.save(directory, merge);
  }

  /** Writes the adapter and the head alone, as a directory that peft loads onto a sequence classifier of the same base. */
  async saveAdapter(directory: string): Promise<void> {
    if (this.adapter === undefined)
      throw new RlhfError("ERR_RLHF_ARGUMENT", "saveAdapter: this reward model has no adapter; use save");
    await this.model.saveAdapter(this.adapter, directory, { head: this.head });
  }

  /** Frees the model, or takes its head, and an adapter loaded with it, off a backbone that somebody else lent. */
  dispose(): void {
    if (this.#ownsModel) {
      this.model.dispose();
      return;
    }
    if (this.model.heads.has(this.head)) this.model.removeHead(this.head);
    if (this.adapter === LOADED_ADAPTER && this.model.adapters.has(LOADED_ADAPTER))
      this.model.removeAdapter(LOADED_ADAPTER);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
