import {
  describeType,
  isRecord,
  type LoadOptions,
  loadRows,
  RowProblem,
  type RowReader,
  stringField,
} from "./readers.ts";
import type { Dataset, PromptFormat, PromptRow } from "./types.ts";

const FORMATS: Readonly<Record<PromptFormat, string>> = { string: "a string", prompt: "{prompt, …}" };

function detect(value: unknown): PromptFormat | null {
  if (typeof value === "string") return "string";
  return isRecord(value) && "prompt" in value ? "prompt" : null;
}

function read(value: unknown): PromptRow {
  // Strings and objects may be mixed in one file: both are unmistakable.
  if (typeof value === "string") return nonEmpty({ prompt: value });
  if (!isRecord(value))
    throw new RowProblem(`is ${describeType(value)}; expected ${Object.values(FORMATS).join(" or ")}`);
  const { prompt: _prompt, ...metadata } = value;
  const prompt = stringField(value, "prompt");
  return nonEmpty(Object.keys(metadata).length > 0 ? { prompt, metadata } : { prompt });
}

function nonEmpty(row: PromptRow): PromptRow {
  if (row.prompt === "") throw new RowProblem("is an empty prompt");
  return row;
}

const READER: RowReader<PromptFormat, PromptRow> = { formats: FORMATS, detect, read };

/**
 * Reads prompts from .json, .jsonl or .jsonl.gz files with rows that are strings or {prompt, …}; keys beside the prompt go to
 * `metadata`. Throws ERR_RLHF_DATA with file and line.
 */
export function loadPrompts(
  paths: string | readonly string[],
  options: LoadOptions<PromptFormat> = {},
): Promise<Dataset<PromptRow>> {
  return loadRows(paths, READER, options);
}
