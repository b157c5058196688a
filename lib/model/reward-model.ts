import { stat } from "node:fs/promises";
import { join } from "node:path";
import { planMicroBatches } from "../data/batching.ts";
import { callAsync } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { localModel } from "../hub/hub.ts";
import { lastTokens, packSequences } from "./batch.ts";
import { CausalLM, type LoadOptions } from "./causal-lm.ts";
import type { HeadOptions } from "./heads.ts";
import { readModelTensors, readTensor, type TensorIndex } from "./safetensors.ts";

/** The name of the head that scores. */
export const REWARD_HEAD = "reward";

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
    const index = await readModelTensors(directory);
    const score = index.entries.get("score.weight");
    const hasHeads = await stat(join(directory, "heads.safetensors")).catch(() => null);
    if (!score && !hasHeads)
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: has neither score.weight nor heads.safetensors; it is not a reward model`,
        { directory },
      );
    if (score && (score.shape.length !== 2 || score.shape[0] !== 1))
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: score.weight has shape [${score.shape.join(", ")}]; a reward model has one label, [1, hidden]`,
        { directory },
      );
    const { backbone, ...loadOptions } = options;
    const shared =
      backbone && score && !backbone.heads.has(REWARD_HEAD) && (await sharesWeights(backbone, index));
    const model = shared ? backbone : await CausalLM.load(directory, loadOptions);
    if (score) {
      if (score.shape[1] !== model.config.hidden)
        throw new RlhfError(
          "ERR_RLHF_WEIGHTS",
          `${directory}: score.weight has ${score.shape[1]} columns, the model is ${model.config.hidden} wide`,
          { directory },
        );
      model.addHead(REWARD_HEAD, { bias: false });
      const { path, offset, count, dtype } = score;
      await callAsync(() =>
        model.native.loadParameter(`${REWARD_HEAD}:weight`, { path, offset, count, dtype }),
      );
    }
    if (!model.heads.has(REWARD_HEAD))
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: heads.safetensors has no head "${REWARD_HEAD}", it has ${[...model.heads.keys()].join(", ")}`,
        { directory },
      );
    return new RewardModel(model, undefined, !shared);
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

  /** Frees the model, unless it is a backbone that somebody else lent. */
  dispose(): void {
    if (this.#ownsModel) this.model.dispose();
    else if (this.model.heads.has(this.head)) this.model.removeHead(this.head);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
