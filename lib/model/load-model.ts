import { localModel } from "../hub/hub.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { CausalLM } from "./causal-lm.ts";
import { LOAD_OPTIONS, type LoadOptions } from "./model-options.ts";

/** A model directory in memory. */
export interface LoadedModel {
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
  /** Where the model computes, "cpu". */
  readonly device: string;
}

/** Loads a directory's model and tokenizer together. Throws what `CausalLM.load` and `Tokenizer.load` throw. */
export async function loadModel(path: string, options: LoadOptions = {}): Promise<LoadedModel> {
  refuseUnknownOptions("loadModel", options, LOAD_OPTIONS);
  const directory = await localModel(path);
  const tokenizer = await Tokenizer.load(directory);
  const model = await CausalLM.load(directory, options);
  return { model, tokenizer, device: model.engine.info.device };
}
