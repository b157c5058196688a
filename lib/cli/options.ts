import { InvalidArgumentError, Option } from "commander";
import { COMPUTE_TYPES, type ComputeType } from "../engine/compute-type.ts";
import type { DeviceName } from "../engine/device.ts";
import type { CausalLM } from "../model/causal-lm.ts";
import type { WeightType } from "../model/model-options.ts";

/** Parses a whole number of at least `least`. */
export function integer(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < least)
      throw new InvalidArgumentError(`expected a whole number of at least ${least}`);
    return value;
  };
}

/** Parses a number in a range, both ends included. */
export function number(least: number, most = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= least && value <= most)) {
      throw new InvalidArgumentError(
        most === Number.POSITIVE_INFINITY
          ? `expected a number of at least ${least}`
          : `expected a number from ${least} to ${most}`,
      );
    }
    return value;
  };
}

/** Options of every command that loads a model. */
export interface ModelOptions {
  readonly model: string;
  readonly device: DeviceName;
  readonly threads?: number;
  readonly compute: ComputeType;
}

/** --model, --device, --threads, --compute. */
export function modelOptions(): Option[] {
  return [
    new Option(
      "--model <directory>",
      "Hugging Face model directory, or hub:owner/name",
    ).makeOptionMandatory(),
    new Option("--device <name>", "where to compute").choices(["auto", "cpu", "cuda"]).default("auto"),
    new Option("--threads <n>", "CPU threads; default: all").argParser(integer(1)),
    new Option("--compute <type>", "what matrix products are computed in")
      .choices(COMPUTE_TYPES)
      .default("float32"),
  ];
}

/** --dtype, of the commands that run a model as it is. */
export function dtypeOption(): Option {
  return new Option("--dtype <type>", "how weights are kept; 16 bits take less memory, and decode slower")
    .choices(["float32", "bfloat16", "float16"])
    .default("float32");
}

/** --adapter, of the commands that run a language model. */
export function adapterOption(): Option {
  return new Option("--adapter <directory>", "PEFT directory of an adapter to run the model with");
}

/** The language model that the options name, and the name of its adapter where there is one. */
export async function openModel(
  options: ModelOptions & { readonly dtype?: WeightType; readonly adapter?: string },
): Promise<{ model: CausalLM; adapter?: string }> {
  const { CausalLM } = await import("../model/causal-lm.ts");
  const { device, threads, dtype, compute } = options;
  const model = await CausalLM.load(options.model, { device, threads, dtype, compute, trainable: "none" });
  if (options.adapter === undefined) return { model };
  try {
    await model.loadAdapter("adapter", options.adapter, { trainable: false });
    return { model, adapter: "adapter" };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Options of the commands that measure sequences. */
export interface MeasureOptions extends ModelOptions {
  readonly dtype: WeightType;
  readonly dataPath: string;
  readonly output: string;
  readonly microBatchTokens: number;
  readonly onBadRow: "error" | "skip";
}

/** --model and the rest, --data-path, --output, --micro-batch-tokens, --on-bad-row. */
export function measureOptions(): Option[] {
  return [
    ...modelOptions(),
    dtypeOption(),
    new Option(
      "--data-path <file>",
      "rows {tokens} or {prompt, response}, to score also pairs: .json, .jsonl, .jsonl.gz or .parquet",
    ).makeOptionMandatory(),
    new Option("--output <file>", "JSON lines in the order of the input").makeOptionMandatory(),
    new Option("--micro-batch-tokens <n>", "most tokens of one forward pass")
      .argParser(integer(1))
      .default(4096),
    new Option("--on-bad-row <action>", "what to do with malformed rows")
      .choices(["error", "skip"])
      .default("error"),
  ];
}
