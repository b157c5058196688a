import {
  isRecord,
  messagesField,
  nonEmpty,
  promptAndReplies,
  RowDropped,
  RowProblem,
  recordOf,
  stringField,
  textOrMessagesField,
} from "./fields.ts";
import { detectPreference, PREFERENCE_FORMATS, PreferenceReader } from "./preferences.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { DataReport, Dataset, PreferenceFormat, SftFormat, SftRow } from "./types.ts";

const FORMATS: Readonly<Record<SftFormat, string>> = {
  "prompt-response": "{prompt, response}",
  "prompt-completion": "{prompt, completion}",
  "document-target": "{document, target}",
  messages: "{messages: [{role, content}, …]}",
  text: "{text}",
  ...PREFERENCE_FORMATS,
};

function detect(value: unknown): SftFormat | null {
  if (!isRecord(value)) return null;
  if ("prompt" in value && "response" in value) return "prompt-response";
  if ("prompt" in value && "completion" in value) return "prompt-completion";
  if ("document" in value && "target" in value) return "document-target";
  if ("messages" in value) return "messages";
  return "text" in value ? "text" : detectPreference(value);
}

function promptAnd(value: Readonly<Record<string, unknown>>, key: "response" | "completion"): SftRow {
  if (value.label === false) throw new RowDropped('has label false: "completion" is no answer to imitate');
  const prompt = textOrMessagesField(value, "prompt");
  return promptAndReplies(prompt, { response: nonEmpty(textOrMessagesField(value, key), key) });
}

function readDemonstration(row: unknown, format: Exclude<SftFormat, PreferenceFormat>): SftRow {
  const value = recordOf(row, FORMATS[format]);
  switch (format) {
    case "prompt-response":
      return promptAnd(value, "response");
    case "prompt-completion":
      return promptAnd(value, "completion");
    case "document-target":
      return {
        prompt: stringField(value, "document"),
        response: nonEmpty(stringField(value, "target"), "target"),
      };
    case "text":
      return { prompt: "", response: nonEmpty(stringField(value, "text"), "text") };
    case "messages": {
      const messages = messagesField(value, "messages");
      if (!messages.some((message) => message.role === "assistant"))
        throw new RowProblem("has no assistant message to train on");
      return { messages };
    }
  }
}

function isPreference(format: SftFormat): format is PreferenceFormat {
  return format in PREFERENCE_FORMATS;
}

/** Reads demonstrations; of preference rows the prompt and the chosen answer. */
class SftReader implements RowReader<SftFormat, SftRow> {
  readonly formats = FORMATS;
  readonly detect = detect;
  readonly #pairs = new PreferenceReader();
  #sawPairs = false;

  readonly read = (value: unknown, format: SftFormat): SftRow => {
    if (!isPreference(format)) return readDemonstration(value, format);
    this.#sawPairs = true;
    const pair = this.#pairs.read(value, format);
    return { prompt: pair.prompt, response: pair.chosen };
  };

  readonly report = (): Partial<DataReport> => (this.#sawPairs ? this.#pairs.report() : {});
}

/**
 * Reads examples for supervised fine-tuning: rows {prompt, response} or {prompt, completion}, as texts or as lists of messages,
 * {document, target}, {messages} or {text}. Files may be .json, .jsonl, .jsonl.gz or .parquet. Preference rows are read as prompt
 * and chosen answer, with the same rows dropped and counted as by `loadPreferences`. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadSft(
  paths: string | readonly string[],
  options: LoadOptions<SftFormat> = {},
): Promise<Dataset<SftRow>> {
  return collectRows(streamSft(paths, options));
}

/** The rows of `loadSft`, one at a time: for files larger than memory. */
export function streamSft(
  paths: string | readonly string[],
  options: LoadOptions<SftFormat> = {},
): RowStream<SftRow, SftFormat> {
  return new RowStream(paths, () => new SftReader(), options);
}
