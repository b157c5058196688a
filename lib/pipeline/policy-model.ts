import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM } from "../model/causal-lm.ts";
import { loadOptions } from "./settings.ts";

type ModelSettings = Parameters<typeof loadOptions>[0];

/** The policy that a stage trains, with the adapter that it goes on from where one is named. */
export async function openPolicy(directory: string, settings: ModelSettings): Promise<CausalLM> {
  const model = await CausalLM.load(directory, loadOptions(settings));
  if (settings.adapter_path === undefined) return model;
  try {
    await model.loadAdapter("policy", settings.adapter_path);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

const MODEL_FILES =
  /^(?:generation_)?config\.json$|^model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?$|^heads\.safetensors$/;
const ADAPTER_FILES = /^adapter_(?:config\.json|model\.safetensors)$/;

/**
 * Saves a stage's result. What an earlier run with the other setting of save_merged left in the directory goes: transformers and
 * this package would load the two together, or the wrong one.
 */
export async function savePolicy(
  trainer: { save(directory: string): Promise<void> },
  {
    output_dir: directory,
    save_merged: merged = true,
  }: { readonly output_dir: string; readonly save_merged?: boolean },
): Promise<void> {
  await trainer.save(directory);
  const stale = merged ? ADAPTER_FILES : MODEL_FILES;
  for (const name of await readdir(directory)) if (stale.test(name)) await rm(join(directory, name));
}
