import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";
import { readSafetensors, type TensorEntry, type TensorSource, writeSafetensors } from "./safetensors.ts";

/** A LoRA adapter (Hu et al. 2021): y += (alpha/r)·(x·Aᵀ)·Bᵀ on the linear layers named. */
export interface AdapterOptions {
  readonly r: number;
  readonly alpha: number;
  /** Last parts of module names ("q_proj", "c_attn", …), or "all-linear". Default: the attention's projections. */
  readonly targetModules?: readonly string[] | "all-linear";
  /** Seed of A's initial values; B begins at zero. Default 0. */
  readonly seed?: number;
}

/** An adapter as a model holds it. */
export interface AdapterInfo {
  readonly r: number;
  readonly alpha: number;
  readonly targetModules: readonly string[];
}

const PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"] as const;

const ATTENTION_MODULES: Readonly<Record<string, readonly string[]>> = {
  gpt2: ["c_attn"],
  llama: PROJECTIONS,
  mistral: PROJECTIONS,
  qwen2: PROJECTIONS,
  qwen3: PROJECTIONS,
  gpt_neox: ["query_key_value", "dense"],
};

/** The modules that an adapter's options name. Throws ERR_RLHF_UNKNOWN_NAME for one that the family does not have. */
export function resolveTargetModules(
  targetModules: AdapterOptions["targetModules"],
  family: string,
  known: readonly string[],
): string[] {
  if (targetModules === "all-linear") return [...known];
  const modules = targetModules ?? ATTENTION_MODULES[family] ?? known;
  for (const module of modules)
    if (!known.includes(module))
      throw new RlhfError(
        "ERR_RLHF_UNKNOWN_NAME",
        `targetModules: "${module}" is not a linear layer of this model; it has ${known.join(", ")}`,
        { module, known },
      );
  return [...modules];
}

const PEFT_PREFIX = "base_model.model.";

/** "model.layers.0.self_attn.q_proj.lora_A" as the engine names it, without the adapter → PEFT's tensor name. */
function toPeftName(parameter: string): string {
  return `${PEFT_PREFIX}${parameter}.weight`;
}

/** Writes an adapter as a directory that peft loads. `parameters` are its lora_A and lora_B without the adapter's name. */
export async function savePeftDirectory(
  directory: string,
  info: AdapterInfo,
  family: string,
  baseModel: string | null,
  parameters: readonly TensorSource[],
): Promise<void> {
  await writeSafetensors(
    join(directory, "adapter_model.safetensors"),
    parameters.map((parameter) => ({ ...parameter, name: toPeftName(parameter.name) })),
  );
  await writeJson(join(directory, "adapter_config.json"), {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: baseModel,
    r: info.r,
    lora_alpha: info.alpha,
    lora_dropout: 0,
    target_modules: info.targetModules,
    fan_in_fan_out: family === "gpt2",
    bias: "none",
    inference_mode: true,
    init_lora_weights: true,
    use_rslora: false,
    use_dora: false,
    modules_to_save: null,
  });
}

/** A PEFT directory, its configuration read. */
export interface PeftAdapter {
  readonly info: AdapterInfo;
  /** Where its tensors lie, by the engine's names without the adapter. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
}

/** Settings of a PEFT configuration that would change what the adapter computes. */
const PLAIN_LORA: Readonly<Record<string, readonly unknown[]>> = {
  peft_type: ["LORA"],
  bias: ["none"],
  use_rslora: [false],
  use_dora: [false],
};

function isEmptyPattern(value: unknown): boolean {
  return value === undefined || value === null || Object.keys(value).length === 0;
}

/** Reads a PEFT directory. Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED or ERR_RLHF_WEIGHTS. */
export async function readPeftDirectory(directory: string): Promise<PeftAdapter> {
  const path = join(directory, "adapter_config.json");
  const config = await readJsonIfPresent(path, "ERR_RLHF_MODEL");
  if (!config)
    throw new RlhfError("ERR_RLHF_MODEL", `${path}: does not exist; expected a PEFT adapter directory`, {
      path,
    });
  for (const [field, allowed] of Object.entries(PLAIN_LORA)) {
    const value = config[field];
    if (value !== undefined && value !== null && !allowed.includes(value))
      throw new RlhfError(
        "ERR_RLHF_UNSUPPORTED",
        `${path}: ${field} is ${JSON.stringify(value)}; supported is ${JSON.stringify(allowed[0])}`,
        { path, field },
      );
  }
  if (!isEmptyPattern(config.rank_pattern) || !isEmptyPattern(config.alpha_pattern))
    throw new RlhfError("ERR_RLHF_UNSUPPORTED", `${path}: rank_pattern and alpha_pattern are not supported`, {
      path,
    });
  const { r, lora_alpha: alpha, target_modules: modules } = config;
  if (typeof r !== "number" || !Number.isInteger(r) || r < 1 || typeof alpha !== "number")
    throw new RlhfError("ERR_RLHF_MODEL", `${path}: r and lora_alpha must be numbers, r a positive integer`, {
      path,
    });
  if (!Array.isArray(modules) || !modules.every((module) => typeof module === "string"))
    throw new RlhfError("ERR_RLHF_UNSUPPORTED", `${path}: target_modules must be a list of module names`, {
      path,
    });
  const { entries } = await readSafetensors(join(directory, "adapter_model.safetensors"));
  const tensors = new Map<string, TensorEntry>();
  for (const entry of entries.values()) {
    const match = /^base_model\.model\.(.+\.lora_[AB])\.weight$/.exec(entry.name);
    if (!match)
      throw new RlhfError(
        "ERR_RLHF_UNSUPPORTED",
        `${entry.path}: tensor "${entry.name}" is not a lora_A or lora_B of a linear layer`,
        { tensor: entry.name },
      );
    tensors.set(match[1] as string, entry);
  }
  return { info: { r, alpha, targetModules: modules as string[] }, tensors };
}

/** Multiply-adds between two turns of the event loop: some milliseconds. */
const WORK_PER_TURN = 4_000_000;

/**
 * What a merged layer's weight is: W + (alpha/r)·B·A, in W's own layout. Lets the event loop go on in between.
 *
 * @param weight [out, in], or [in, out] when `transposed`; a copy is returned
 * @param a lora_A, [r, in]   @param b lora_B, [out, r]
 */
export async function mergeLora(
  weight: Float32Array,
  a: Float32Array,
  b: Float32Array,
  r: number,
  alpha: number,
  transposed: boolean,
): Promise<Float32Array> {
  const inputs = a.length / r;
  const outputs = b.length / r;
  const scale = alpha / r;
  const merged = weight.slice();
  const row = new Float64Array(inputs);
  const rowsPerTurn = Math.ceil(WORK_PER_TURN / (inputs * r));
  for (let o = 0; o < outputs; o++) {
    if (o % rowsPerTurn === rowsPerTurn - 1) await nextTurn();
    row.fill(0);
    for (let k = 0; k < r; k++) {
      const factor = scale * (b[o * r + k] as number);
      for (let i = 0; i < inputs; i++) row[i] = (row[i] as number) + factor * (a[k * inputs + i] as number);
    }
    for (let i = 0; i < inputs; i++) {
      const at = transposed ? i * outputs + o : o * inputs + i;
      merged[at] = (merged[at] as number) + (row[i] as number);
    }
  }
  return merged;
}
