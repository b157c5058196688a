import { join } from "node:path";
import type { ModelConfig } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { architectureOf, type HfConfig, readModelConfig } from "./config.ts";
import { readJsonIfPresent, writeJson } from "./files.ts";
import { readModelTensors, type TensorIndex, type TensorSource, writeSafetensors } from "./safetensors.ts";
import { nameInFile } from "./weights.ts";

// A model as transformers keeps it: config.json, generation_config.json and the weights as safetensors.

/** What a model was made from; it is saved with the same configuration. */
export interface ModelOrigin {
  readonly hfConfig: HfConfig;
  readonly generationConfig: HfConfig | null;
  /** Null for a model that was made from a configuration. */
  readonly directory: string | null;
}

/** What a directory says of its model, with an index of its tensors. Throws ERR_RLHF_MODEL, ERR_RLHF_UNSUPPORTED, ERR_RLHF_WEIGHTS. */
export async function readModelDirectory(
  directory: string,
): Promise<{ config: ModelConfig; origin: ModelOrigin; tensors: TensorIndex }> {
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
  const config = readModelConfig(hfConfig, configPath);
  // A reward model's directory has no language-model head; tying it to the embeddings needs no weights.
  const headless = tensors.entries.has("score.weight") && !tensors.entries.has("lm_head.weight");
  return {
    config: headless ? { ...config, tiedEmbeddings: true } : config,
    origin: { hfConfig, generationConfig, directory },
    tensors,
  };
}

/** A class of transformers with what it keeps: its weights by their names in memory, and what it adds to the configuration. */
interface SavedClass {
  readonly kind: "CausalLM" | "SequenceClassification";
  readonly tensors: readonly TensorSource[];
  /** What transformers loads the weights as. */
  readonly dtype: "float32" | "bfloat16";
  readonly config?: Readonly<Record<string, unknown>>;
}

/** Writes a directory that transformers loads. Every file is written aside and renamed into place. Throws ERR_RLHF_IO. */
export async function writeModelDirectory(
  directory: string,
  family: ModelConfig["family"],
  { hfConfig, generationConfig }: ModelOrigin,
  { kind, tensors, dtype, config: more }: SavedClass,
): Promise<void> {
  await writeSafetensors(
    join(directory, "model.safetensors"),
    tensors.map((tensor) => ({ ...tensor, name: nameInFile(family, tensor.name) })),
  );
  const { torch_dtype: _old, ...config } = hfConfig;
  await writeJson(join(directory, "config.json"), {
    ...config,
    architectures: [architectureOf(family, kind)],
    dtype,
    ...more,
  });
  if (kind === "CausalLM" && generationConfig)
    await writeJson(join(directory, "generation_config.json"), generationConfig);
}
