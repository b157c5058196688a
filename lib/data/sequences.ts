import { describeType, isRecord, RowProblem, recordOf, stringField } from "./fields.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { Dataset, SequenceFormat } from "./types.ts";

/** A sequence to measure: token ids, or a prompt and a response to tokenise. */
export type SequenceRow =
  | { readonly tokens: Int32Array }
  | { readonly prompt: string; readonly response: string };

const FORMATS: Readonly<Record<SequenceFormat, string>> = {
  tokens: "{tokens}",
  "prompt-response": "{prompt, response}",
};

function detect(value: unknown): SequenceFormat | null {
  if (!isRecord(value)) return null;
  if ("tokens" in value) return "tokens";
  return "prompt" in value && "response" in value ? "prompt-response" : null;
}

function readTokens(value: unknown): Int32Array {
  if (!Array.isArray(value)) throw new RowProblem(`"tokens" must be an array, got ${describeType(value)}`);
  if (value.length === 0) throw new RowProblem('"tokens" is empty');
  value.forEach((id: unknown, index) => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 0x7fffffff) {
      throw new RowProblem(`"tokens[${index}]" must be a token id, got ${JSON.stringify(id)}`);
    }
  });
  return Int32Array.from(value as number[]);
}

export const SEQUENCE_READER: RowReader<SequenceFormat, SequenceRow> = {
  formats: FORMATS,
  detect,
  read(value, format) {
    const row = recordOf(value, FORMATS[format]);
    if (format === "tokens") return { tokens: readTokens(row.tokens) };
    return { prompt: stringField(row, "prompt"), response: stringField(row, "response") };
  },
};

/** Reads sequences to measure from .json, .jsonl, .jsonl.gz or .parquet files with rows {tokens} or {prompt, response}. */
export async function loadSequences(
  paths: string | readonly string[],
  options: LoadOptions<SequenceFormat> = {},
): Promise<Dataset<SequenceRow>> {
  return collectRows(new RowStream(paths, () => SEQUENCE_READER, options));
}
