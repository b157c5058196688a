import { isRecord, messagesField, RowProblem, recordOf, textOrMessagesField } from "./fields.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { ChatMessage, Dataset, PromptFormat, PromptRow } from "./types.ts";

const FORMATS: Readonly<Record<PromptFormat, string>> = {
  string: "a string",
  prompt: "{prompt, …}",
  messages: "{messages: [{role, content}, …], …}",
};

function detect(value: unknown): PromptFormat | null {
  if (typeof value === "string") return "string";
  if (!isRecord(value)) return null;
  if ("prompt" in value) return "prompt";
  return "messages" in value ? "messages" : null;
}

function read(value: unknown): PromptRow {
  // The forms may be mixed in one file: they are unmistakable.
  if (typeof value === "string") return nonEmpty({ prompt: value });
  const row = recordOf(value, Object.values(FORMATS).join(" or "));
  const key = "messages" in row && !("prompt" in row) ? "messages" : "prompt";
  const prompt = key === "messages" ? messagesField(row, key) : textOrMessagesField(row, key);
  const { [key]: _prompt, ...metadata } = row;
  return nonEmpty({
    ...(typeof prompt === "string" ? { prompt } : conversation(prompt)),
    ...(Object.keys(metadata).length > 0 ? { metadata } : {}),
  });
}

/** A conversation to continue. What its assistant said last is what is to be answered anew. */
function conversation(messages: readonly ChatMessage[]): PromptRow {
  const end = messages.findLastIndex((message) => message.role !== "assistant") + 1;
  const last = messages[end - 1];
  if (last === undefined) throw new RowProblem("has no message to reply to");
  return { prompt: last.content, messages: messages.slice(0, end) };
}

function nonEmpty(row: PromptRow): PromptRow {
  if (row.prompt === "") throw new RowProblem("is an empty prompt");
  return row;
}

const READER: RowReader<PromptFormat, PromptRow> = { formats: FORMATS, detect, read };

/**
 * Reads prompts: rows that are strings, {prompt, …} with a string, an object with "text" or "content" or a list of messages, or
 * {messages, …}, of which answers at the end are left out; other keys go to `metadata`. Files may be .json, .jsonl, .jsonl.gz or
 * .parquet. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadPrompts(
  paths: string | readonly string[],
  options: LoadOptions<PromptFormat> = {},
): Promise<Dataset<PromptRow>> {
  return collectRows(new RowStream(paths, () => READER, options));
}
