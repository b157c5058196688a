import { RlhfError } from "../errors.ts";
import type { AdapterOptions } from "../model/adapters.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { LoraSettings } from "./settings.ts";

/** What of a model is trained: an adapter, all weights, or (by the trainers that allow it) only what is put on top. */
export type TrainingTarget =
  | { readonly kind: "lora"; readonly adapter: string; readonly added?: AdapterOptions }
  | { readonly kind: "full"; readonly adapter: undefined }
  | { readonly kind: "frozen"; readonly adapter: undefined };

type TargetConfig = { readonly lora?: LoraSettings; readonly adapter?: string; readonly seed: number };

/**
 * Decides what is trained: the adapter that `lora` describes (`addNewAdapter` adds it), the one named, the model's only one, or
 * all its weights when it was loaded with trainable "all". Throws ERR_RLHF_ARGUMENT for an adapter on weights that are trained too.
 */
export function chooseTarget(model: CausalLM, config: TargetConfig, newAdapter: string): TrainingTarget {
  const frozenBase = model.trainable === "none";
  if (!frozenBase && (config.lora || model.adapters.size > 0)) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      'an adapter is trained on a frozen base, but this model was loaded with { trainable: "all" }: leave that out',
    );
  }
  if (config.lora) {
    const { r = 16, alpha = 32, ...more } = config.lora;
    return { kind: "lora", adapter: newAdapter, added: { ...more, r, alpha, seed: config.seed } };
  }
  // Frozen adapters are others' references and rewards.
  const names = [...model.adapters].filter(([, info]) => info.trainable).map(([name]) => name);
  const adapter = config.adapter ?? (names.length === 1 ? names[0] : undefined);
  if (adapter !== undefined) {
    if (model.adapters.get(adapter)?.trainable === false) {
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `config.adapter: adapter "${adapter}" is frozen; train a copy of it: await model.copyAdapter("${adapter}", "policy")`,
      );
    }
    if (!names.includes(adapter)) {
      throw new RlhfError(
        "ERR_RLHF_UNKNOWN_NAME",
        `config.adapter: the model has no adapter "${adapter}"; it has: ${names.join(", ") || "none"}`,
      );
    }
    return { kind: "lora", adapter };
  }
  if (names.length > 1) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `the model has several adapters (${names.join(", ")}): name the one to train in config.adapter`,
    );
  }
  return { kind: frozenBase ? "frozen" : "full", adapter: undefined };
}

/**
 * Throws ERR_RLHF_ARGUMENT where `lora` asks for dropout. Trainers that compare log-probs of the policy with each other or with a
 * reference's train without it, as TRL does: its noise would be taken for a difference.
 */
export function requireNoDropout({ lora }: Pick<TargetConfig, "lora">): void {
  if (!lora?.dropout) return;
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    "config.lora.dropout: this trainer compares log-probs and trains without dropout; leave it out",
  );
}

/** Adds the adapter that `lora` describes. Done when all else has been checked, so that a mistake leaves the model as it was. */
export function addNewAdapter(model: CausalLM, target: TrainingTarget): void {
  if (target.kind === "lora" && target.added) model.addAdapter(target.adapter, target.added);
}

/** The error of a trainer that was given a model of which nothing can be trained. */
export function nothingToTrain(): RlhfError {
  return new RlhfError(
    "ERR_RLHF_ARGUMENT",
    'the model\'s weights are frozen: set config.lora to train an adapter, or load it with { trainable: "all" }',
  );
}

/** The learning rate of what is trained, when none is given. */
export function defaultLearningRate(
  target: TrainingTarget,
  rates: { readonly full: number; readonly lora: number; readonly frozen?: number },
): number {
  return target.kind === "frozen" ? (rates.frozen ?? rates.full) : rates[target.kind];
}

/**
 * Writes model and tokenizer as a directory that transformers loads. An adapter is merged into the weights, or with `saveMerged`
 * false written alone, as peft does. Heads go with the weights: all of the model's, or those named.
 */
export async function saveTarget(
  model: CausalLM,
  tokenizer: Tokenizer,
  target: TrainingTarget,
  directory: string,
  { saveMerged = true, heads }: { saveMerged?: boolean | undefined; heads?: readonly string[] } = {},
): Promise<void> {
  const merge = target.kind === "lora" ? { merge: target.adapter } : {};
  if (target.kind === "lora" && !saveMerged) await model.saveAdapter(target.adapter, directory);
  else await model.save(directory, { ...merge, ...(heads ? { heads } : {}) });
  await tokenizer.save(directory);
}
