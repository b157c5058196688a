import { callAsync, type NativeModel, type NativeParameter } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import type { TensorEntry, TensorIndex } from "./safetensors.ts";

const LOADABLE = new Set(["F32", "F64", "F16", "BF16"]);

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** GPT-NeoX's files name the output layer as transformers 4 did; transformers 5 renames it in memory alone. */
const NEOX_HEAD = { parameter: "lm_head.weight", file: "embed_out.weight" };

/** The name under which a parameter of transformers' named_parameters() stands in the family's files. */
export function nameInFile(family: string, parameter: string): string {
  return family === "gpt_neox" && parameter === NEOX_HEAD.parameter ? NEOX_HEAD.file : parameter;
}

/** Checkpoints of base models may lack the prefix that the language-model class adds. */
function findEntry(index: TensorIndex, name: string): TensorEntry | undefined {
  const bare = name.replace(/^(transformer|model|gpt_neox)\./, "");
  const old = name === NEOX_HEAD.parameter ? index.entries.get(NEOX_HEAD.file) : undefined;
  return index.entries.get(name) ?? index.entries.get(bare) ?? old;
}

function checkEntry(entry: TensorEntry, parameter: NativeParameter): void {
  if (!LOADABLE.has(entry.dtype))
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${entry.path}: tensor "${entry.name}" is ${entry.dtype}; supported are ${[...LOADABLE].join(", ")}`,
      { tensor: entry.name },
    );
  const same =
    entry.shape.length === parameter.shape.length &&
    entry.shape.every((size, i) => size === parameter.shape[i]);
  if (!same)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${entry.path}: tensor "${entry.name}" has shape [${entry.shape.join(", ")}], but config.json asks for [${parameter.shape.join(", ")}]`,
      { tensor: entry.name, shape: entry.shape, expected: parameter.shape },
    );
}

/** A bias in the files that the configuration does not know would be left out silently. */
function checkBiases(parameters: readonly NativeParameter[], index: TensorIndex): void {
  const names = new Set(parameters.map((parameter) => parameter.name));
  for (const name of names) {
    const bias = name.replace(/\.weight$/, ".bias");
    const entry = names.has(bias) ? undefined : findEntry(index, bias);
    if (entry)
      throw new RlhfError(
        "ERR_RLHF_WEIGHTS",
        `${entry.path}: tensor "${entry.name}" is there, but config.json gives this layer no bias; see its attention_bias and mlp_bias`,
        { tensor: entry.name },
      );
  }
}

/** A layer after the last one of the configuration would be left out silently too. */
function checkLayers(parameters: readonly NativeParameter[], index: TensorIndex): void {
  const layers = parameters.map(({ name }) => Number(/\.(\d+)\./.exec(name)?.[1] ?? -1));
  const last = layers.reduce((most, layer) => Math.max(most, layer), -1);
  for (const [i, { name }] of parameters.entries()) {
    const entry = layers[i] === last ? findEntry(index, name.replace(/\.\d+\./, `.${last + 1}.`)) : undefined;
    if (entry && last >= 0)
      throw new RlhfError(
        "ERR_RLHF_WEIGHTS",
        `${entry.path}: tensor "${entry.name}" is of a layer that config.json does not count: it has ${last + 1} layers`,
        { tensor: entry.name, layers: last + 1 },
      );
  }
}

/** Loads every parameter of `parameters` from the files of a directory. Throws ERR_RLHF_WEIGHTS that names what does not fit. */
export async function loadParameters(
  model: NativeModel,
  parameters: readonly NativeParameter[],
  index: TensorIndex,
  directory: string,
): Promise<void> {
  const missing = parameters.filter((parameter) => !findEntry(index, parameter.name));
  if (missing.length > 0)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${directory}: ${missing.length} of ${parameters.length} tensors are missing, first ${missing
        .slice(0, 3)
        .map((parameter) => `"${parameter.name}"`)
        .join(", ")}; the weights do not belong to this config.json`,
      { missing: missing.map((parameter) => parameter.name) },
    );
  for (const parameter of parameters) checkEntry(findEntry(index, parameter.name) as TensorEntry, parameter);
  checkBiases(parameters, index);
  checkLayers(parameters, index);
  for (const parameter of parameters) {
    const { path, offset, count, dtype } = findEntry(index, parameter.name) as TensorEntry;
    await callAsync(() => model.loadParameter(parameter.name, { path, offset, count, dtype }));
  }
}

/** A copy of a parameter's values. */
export async function readParameter(model: NativeModel, parameter: NativeParameter): Promise<Float32Array> {
  const values = new Float32Array(sizeOf(parameter.shape));
  await callAsync(() => model.readParameter(parameter.name, values));
  return values;
}

/** A copy of a parameter's accumulated gradient. */
export async function readGradient(model: NativeModel, parameter: NativeParameter): Promise<Float32Array> {
  const values = new Float32Array(sizeOf(parameter.shape));
  await callAsync(() => model.readGradient(parameter.name, values));
  return values;
}
