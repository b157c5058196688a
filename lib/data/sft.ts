import { detectPreference, PREFERENCE_FORMATS, PreferenceReader } from "./preferences.ts";
import {
  describeType,
  isRecord,
  type LoadOptions,
  loadRows,
  RowProblem,
  type RowReader,
  stringField,
} from "./readers.ts";
import type { ChatMessage, Dataset, PreferenceFormat, SftFormat, SftRow } from "./types.ts";

const FORMATS: Readonly<Record<SftFormat, string>> = {
  "prompt-response": "{prompt, response}",
  "document-target": "{document, target}",
  messages: "{messages: [{role, content}, …]}",
  text: "{text}",
  ...PREFERENCE_FORMATS,
};

function detect(value: unknown): SftFormat | null {
  if (!isRecord(value)) return null;
  if ("prompt" in value && "response" in value) return "prompt-response";
  if ("document" in value && "target" in value) return "document-target";
  if ("messages" in value) return "messages";
  return "text" in value ? "text" : detectPreference(value);
}

/** The messages of a conversation, checked: each an object with a role and a content of strings. */
export function readMessages(value: unknown): ChatMessage[] {
  if (!Array.isArray(value)) throw new RowProblem(`"messages" must be an array, got ${describeType(value)}`);
  return value.map((message: unknown, index) => {
    if (!isRecord(message) || typeof message.role !== "string" || typeof message.content !== "string") {
      throw new RowProblem(`"messages[${index}]" must be {role, content} with two strings`);
    }
    return { role: message.role, content: message.content };
  });
}

function nonEmpty(text: string, key: string): string {
  if (text.trim() === "") throw new RowProblem(`"${key}" is empty`);
  return text;
}

function readDemonstration(value: unknown, format: Exclude<SftFormat, PreferenceFormat>): SftRow {
  if (!isRecord(value)) throw new RowProblem(`is ${describeType(value)}; expected ${FORMATS[format]}`);
  switch (format) {
    case "prompt-response":
      return {
        prompt: stringField(value, "prompt"),
        response: nonEmpty(stringField(value, "response"), "response"),
      };
    case "document-target":
      return {
        prompt: stringField(value, "document"),
        response: nonEmpty(stringField(value, "target"), "target"),
      };
    case "text":
      return { prompt: "", response: nonEmpty(stringField(value, "text"), "text") };
    case "messages": {
      const messages = readMessages(value.messages);
      if (!messages.some((message) => message.role === "assistant"))
        throw new RowProblem("has no assistant message to train on");
      return { messages };
    }
  }
}

/**
 * Reads examples for supervised fine-tuning from .json, .jsonl or .jsonl.gz files with rows {prompt, response},
 * {document, target}, {messages} or {text}. Preference rows are read as prompt and chosen answer, with the same rows dropped and
 * counted as by `loadPreferences`. Throws ERR_RLHF_DATA with file and line.
 */
export function loadSft(
  paths: string | readonly string[],
  options: LoadOptions<SftFormat> = {},
): Promise<Dataset<SftRow>> {
  const pairs = new PreferenceReader();
  let sawPairs = false;
  const read = (value: unknown, format: SftFormat): SftRow | null => {
    if (format !== "prompt-chosen-rejected" && format !== "hh-rlhf") return readDemonstration(value, format);
    sawPairs = true;
    const pair = pairs.read(value, format);
    return pair && { prompt: pair.prompt, response: pair.chosen };
  };
  const reader: RowReader<SftFormat, SftRow> = { formats: FORMATS, detect, read };
  return loadRows(paths, reader, options, () => (sawPairs ? { preferences: pairs.counts() } : {}));
}
