import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import type { AdapterInfo, AdapterOptions } from "./adapters.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";
import { readSafetensors, type TensorEntry, type TensorSource, writeSafetensors } from "./safetensors.ts";

/*
 * Adapters on disk, as peft keeps them: adapter_config.json and adapter_model.safetensors. A reward model's adapter (SEQ_CLS) also
 * holds its head, score.weight, which peft lists under modules_to_save.
 */

const CONFIG = "adapter_config.json";
const TENSORS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";
const SCORE = "score.weight";
/** What peft itself writes for a sequence classifier: the names that such a head has in transformers. */
const SCORE_MODULES = ["classifier", "score"];

/** Where an adapter comes from and what goes with it. */
export interface PeftOrigin {
  readonly baseModel: string | null;
  /** Whether the model keeps the weights of its linear layers as [in, out]. */
  readonly transposed: boolean;
  /** The head of a reward model, written as score.weight. */
  readonly score?: TensorSource | undefined;
}

/** Writes an adapter as a directory that peft loads. `parameters` are its lora_A and lora_B without the adapter's name. */
export async function savePeftDirectory(
  directory: string,
  info: AdapterInfo,
  { baseModel, transposed, score }: PeftOrigin,
  parameters: readonly TensorSource[],
): Promise<void> {
  await writeSafetensors(join(directory, TENSORS), [
    ...parameters.map((parameter) => ({ ...parameter, name: `${PREFIX}${parameter.name}.weight` })),
    ...(score ? [{ ...score, name: PREFIX + SCORE }] : []),
  ]);
  // In peft an expression that matches anything but linear layers is an error, so the layers it stands for are written out.
  const byExpression = typeof info.targetModules === "string";
  await writeJson(join(directory, CONFIG), {
    peft_type: "LORA",
    task_type: score ? "SEQ_CLS" : "CAUSAL_LM",
    base_model_name_or_path: baseModel,
    r: info.r,
    lora_alpha: info.alpha,
    lora_dropout: info.dropout,
    target_modules: byExpression ? [...info.layers.keys()] : info.targetModules,
    exclude_modules: info.excludeModules ?? null,
    layers_to_transform: info.layersToTransform ?? null,
    layers_pattern: null,
    rank_pattern: info.rankPattern,
    alpha_pattern: info.alphaPattern,
    fan_in_fan_out: transposed,
    bias: "none",
    inference_mode: true,
    init_lora_weights: true,
    use_rslora: info.useRslora,
    use_dora: false,
    lora_bias: false,
    modules_to_save: score ? SCORE_MODULES : null,
  });
}

/** A PEFT directory, its configuration read. */
export interface PeftAdapter {
  readonly options: AdapterOptions;
  readonly baseModel: string | null;
  /** Where its tensors lie, by the engine's names without the adapter. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The head of a reward model. */
  readonly score: TensorEntry | null;
}

/** Fields that do not change what a saved adapter computes. */
const WITHOUT_EFFECT: ReadonlySet<string> = new Set([
  "auto_mapping",
  "base_model_name_or_path",
  "fan_in_fan_out", // follows from the base's layers
  "inference_mode",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "task_type",
]);

/** How A and B may have begun: otherwise the base's weights were changed as well, and the adapter fits those only. */
const PLAIN_STARTS: ReadonlySet<unknown> = new Set([
  true,
  false,
  "gaussian",
  "orthogonal",
  "eva",
  null,
  undefined,
]);

function isOff(value: unknown): boolean {
  if (typeof value === "object" && value !== null) return Object.keys(value).length === 0;
  return value === undefined || value === null || value === false || value === "" || value === "none";
}

/** Reads the fields of an adapter_config.json; errors name the file and the field. */
class PeftConfig {
  readonly #fields: Readonly<Record<string, unknown>>;
  readonly #path: string;
  readonly #read = new Set<string>(WITHOUT_EFFECT);

  constructor(fields: Readonly<Record<string, unknown>>, path: string) {
    this.#fields = fields;
    this.#path = path;
  }

  get<Value>(field: string, expected: string, holds: (value: unknown) => value is Value): Value | undefined {
    this.#read.add(field);
    const value = this.#fields[field];
    if (value === undefined || value === null) return undefined;
    if (holds(value)) return value;
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${this.#path}: ${field} is ${JSON.stringify(value)}, expected ${expected}`,
      { path: this.#path, field },
    );
  }

  require<Value>(field: string, expected: string, holds: (value: unknown) => value is Value): Value {
    const value = this.get(field, expected, holds);
    if (value !== undefined) return value;
    throw new RlhfError("ERR_RLHF_MODEL", `${this.#path}: ${field} is missing, expected ${expected}`, {
      path: this.#path,
      field,
    });
  }

  unsupported(field: string, cure: string): RlhfError {
    const value = JSON.stringify(this.#fields[field]);
    return new RlhfError("ERR_RLHF_UNSUPPORTED", `${this.#path}: ${field} is ${value}; ${cure}`, {
      path: this.#path,
      field,
    });
  }

  /** Throws for a field that was not read and is switched on: DoRA, biases, trained tokens and whatever peft adds later. */
  requireOthersOff(): void {
    for (const [field, value] of Object.entries(this.#fields))
      if (!this.#read.has(field) && !isOff(value))
        throw this.unsupported(field, "this feature of peft is not supported");
  }
}

const isNumber = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);
const isText = (value: unknown): value is string => typeof value === "string";
const isFlag = (value: unknown): value is boolean => typeof value === "boolean";
const isRank = (value: unknown): value is number =>
  isNumber(value) && Number.isSafeInteger(value) && value > 0;
const isProbability = (value: unknown): value is number => isNumber(value) && value >= 0 && value < 1;
const isModules = (value: unknown): value is string | string[] =>
  isText(value) || (Array.isArray(value) && value.every(isText));
const isBlocks = (value: unknown): value is number | number[] =>
  isNumber(value) || (Array.isArray(value) && value.every(isNumber));
const isPattern = (value: unknown): value is Record<string, number> =>
  typeof value === "object" &&
  value !== null &&
  !Array.isArray(value) &&
  Object.values(value).every(isNumber);

function readOptions(config: PeftConfig): AdapterOptions {
  const type = config.require("peft_type", '"LORA"', isText);
  if (type !== "LORA") throw config.unsupported("peft_type", 'supported is "LORA"');
  const start = config.get(
    "init_lora_weights",
    "true, false or a name",
    (value): value is boolean | string => isFlag(value) || isText(value),
  );
  if (!PLAIN_STARTS.has(start))
    throw config.unsupported(
      "init_lora_weights",
      "save it with peft's path_initial_model_for_weight_conversion, for the original base",
    );
  const blocks = config.get("layers_to_transform", "a number or a list of numbers", isBlocks);
  return {
    r: config.require("r", "a positive integer", isRank),
    alpha: config.require("lora_alpha", "a number", isNumber),
    targetModules: config.require(
      "target_modules",
      "a list of module names or a regular expression",
      isModules,
    ),
    excludeModules: config.get(
      "exclude_modules",
      "a list of module names or a regular expression",
      isModules,
    ),
    layersToTransform: typeof blocks === "number" ? [blocks] : blocks,
    rankPattern: config.get("rank_pattern", "ranks by pattern", isPattern),
    alphaPattern: config.get("alpha_pattern", "numbers by pattern", isPattern),
    useRslora: config.get("use_rslora", "true or false", isFlag),
    dropout: config.get("lora_dropout", "0 to below 1", isProbability),
  };
}

/** True where a directory holds an adapter and no model of its own. */
export async function isPeftDirectory(directory: string): Promise<boolean> {
  if (await readJsonIfPresent(join(directory, "config.json"), "ERR_RLHF_MODEL")) return false;
  return (await readJsonIfPresent(join(directory, CONFIG), "ERR_RLHF_MODEL")) !== null;
}

/** Reads a PEFT directory. Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED with the field's name, or ERR_RLHF_WEIGHTS. */
export async function readPeftDirectory(directory: string): Promise<PeftAdapter> {
  const path = join(directory, CONFIG);
  const fields = await readJsonIfPresent(path, "ERR_RLHF_MODEL");
  if (!fields)
    throw new RlhfError("ERR_RLHF_MODEL", `${path}: does not exist; expected a PEFT adapter directory`, {
      path,
    });
  const config = new PeftConfig(fields, path);
  const options = readOptions(config);
  const saved = config.get(
    "modules_to_save",
    "a list of module names",
    (value): value is string[] => Array.isArray(value) && value.every(isText),
  );
  if (saved?.some((module) => !SCORE_MODULES.includes(module)))
    throw config.unsupported("modules_to_save", 'supported is a reward model\'s head, "score"');
  config.requireOthersOff();
  const { entries } = await readSafetensors(join(directory, TENSORS));
  const tensors = new Map<string, TensorEntry>();
  let score: TensorEntry | null = null;
  for (const entry of entries.values()) {
    const match = /^base_model\.model\.(.+\.lora_[AB])\.weight$/.exec(entry.name);
    if (match) tensors.set(match[1] as string, entry);
    else if (entry.name === PREFIX + SCORE) score = entry;
    else
      throw new RlhfError(
        "ERR_RLHF_UNSUPPORTED",
        `${entry.path}: tensor "${entry.name}" is not a lora_A or lora_B of a linear layer`,
        { tensor: entry.name },
      );
  }
  const baseModel = fields.base_model_name_or_path;
  return { options, baseModel: typeof baseModel === "string" ? baseModel : null, tensors, score };
}
