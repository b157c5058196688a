import { stat } from "node:fs/promises";
import { join } from "node:path";
import { type Activation, callAsync, type NativeHeadConfig } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import type { CausalLM } from "./causal-lm.ts";
import {
  readSafetensors,
  readTensor,
  type TensorEntry,
  type TensorSource,
  writeSafetensors,
} from "./safetensors.ts";

/** A scalar head on the final hidden states. */
export interface HeadOptions {
  /** "linear" (default): hidden → 1. "mlp": hidden → innerSize → 1. */
  readonly kind?: "linear" | "mlp";
  /** Width of the MLP's inner layer. Default: the hidden width. */
  readonly innerSize?: number;
  /** The MLP's activation. Default "tanh". */
  readonly activation?: "tanh" | "relu" | "gelu";
  /** Whether its layers have biases. Default true. */
  readonly bias?: boolean;
  /** Standard deviation of the last layer's initial weights. Default 0: they begin at zero, and so does the output. */
  readonly initStd?: number;
  /** Seed of the initial weights. Default 0. */
  readonly seed?: number;
}

const HEAD_OPTIONS: NamesOf<HeadOptions> = {
  kind: true,
  innerSize: true,
  activation: true,
  bias: true,
  initStd: true,
  seed: true,
};

/** A head's shape with every default filled in; what heads.safetensors keeps in its metadata. */
export interface HeadInfo {
  readonly kind: "linear" | "mlp";
  readonly innerSize: number;
  readonly activation: Activation;
  readonly bias: boolean;
}

/** A head's shape from its options. Throws ERR_RLHF_ARGUMENT for a kind or width that does not exist. */
export function toHeadInfo(options: HeadOptions, hidden: number): HeadInfo {
  refuseUnknownOptions("a head", options, HEAD_OPTIONS);
  const { kind = "linear", innerSize = hidden } = options;
  if (kind !== "linear" && kind !== "mlp")
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `a head's kind must be "linear" or "mlp", got "${String(kind)}"`,
    );
  if (kind === "mlp" && !(Number.isSafeInteger(innerSize) && innerSize > 0))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `a head's innerSize must be a positive integer, got ${innerSize}`,
    );
  return {
    kind,
    innerSize: kind === "mlp" ? innerSize : 0,
    activation: options.activation ?? "tanh",
    bias: options.bias ?? true,
  };
}

export function toNativeHead(info: HeadInfo, options: HeadOptions): NativeHeadConfig {
  return {
    inner: info.innerSize,
    activation: info.activation,
    bias: info.bias,
    initStd: options.initStd ?? 0,
    seed: options.seed ?? 0,
  };
}

/** Loads the score.weight of a sequence classifier as a linear head. Throws ERR_RLHF_WEIGHTS where it does not fit the model. */
export async function loadScore(
  model: CausalLM,
  head: string,
  score: TensorEntry,
  directory: string,
): Promise<void> {
  if (score.shape.length !== 2 || score.shape[0] !== 1)
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${directory}: score.weight has shape [${score.shape.join(", ")}]; a reward model has one label, [1, hidden]`,
      { directory },
    );
  if (score.shape[1] !== model.config.hidden)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${directory}: score.weight has ${score.shape[1]} columns, the model is ${model.config.hidden} wide`,
      { directory },
    );
  model.addHead(head, { bias: false });
  const { path, offset, count, dtype } = score;
  await callAsync(() => model.native.loadParameter(`${head}:weight`, { path, offset, count, dtype }));
}

/** Loads the head that came with an adapter under the name it was given; throws where one was expected, or not expected. */
export async function loadAdapterHead(
  model: CausalLM,
  score: TensorEntry | null,
  head: string | undefined,
  directory: string,
): Promise<void> {
  if (score && head !== undefined) return loadScore(model, head, score, directory);
  if (score)
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${directory}: modules_to_save holds a reward model's head; use RewardModel.load, or name the head`,
      { directory, field: "modules_to_save" },
    );
  if (head !== undefined)
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${directory}: holds no score.weight; it is not a reward model's adapter`,
      { directory },
    );
}

const FILE = "heads.safetensors";
const METADATA_KEY = "heads";

/** Writes heads beside a model: their tensors, and their shapes in the file's metadata. */
export async function saveHeads(
  directory: string,
  heads: ReadonlyMap<string, HeadInfo>,
  tensors: readonly TensorSource[],
): Promise<void> {
  await writeSafetensors(join(directory, FILE), tensors, {
    format: "pt",
    [METADATA_KEY]: JSON.stringify(Object.fromEntries(heads)),
  });
}

/** The heads of a directory with their tensors by parameter name ("value:weight", …); none where there is no file. */
export async function readHeads(
  directory: string,
): Promise<{ heads: Map<string, HeadInfo>; tensors: Map<string, Float32Array> }> {
  const path = join(directory, FILE);
  const tensors = new Map<string, Float32Array>();
  if (!(await stat(path).catch(() => null))) return { heads: new Map(), tensors };
  const { entries, metadata } = await readSafetensors(path);
  let heads: Record<string, HeadInfo>;
  try {
    heads = JSON.parse(metadata[METADATA_KEY] ?? "") as Record<string, HeadInfo>;
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${path}: its metadata does not describe its heads; it was not written by this package`,
      { path },
      { cause: error },
    );
  }
  for (const entry of entries.values()) tensors.set(entry.name, await readTensor(entry));
  return { heads: new Map(Object.entries(heads)), tensors };
}
