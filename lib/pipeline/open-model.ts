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
