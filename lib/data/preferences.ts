import { isArena, isChatPair, readArena, readChatPair, withoutTie } from "./conversations.ts";
import {
  isBlank,
  isRecord,
  numberField,
  promptAndReplies,
  RowDropped,
  RowProblem,
  recordOf,
  sameText,
  stringField,
  textOrMessagesField,
} from "./fields.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { DataReport, Dataset, PreferenceFormat, PreferenceRow, TextOrMessages } from "./types.ts";

/** Each format as messages describe it. */
export const PREFERENCE_FORMATS: Readonly<Record<PreferenceFormat, string>> = {
  "prompt-chosen-rejected": "{prompt, chosen, rejected}",
  "hh-rlhf": "{chosen, rejected} with whole dialogues",
  "chat-pair": "{prompt?, chosen, rejected} with lists of messages",
  "chatbot-arena": "{conversation_a, conversation_b, winner}",
};

export interface LoadPreferencesOptions extends LoadOptions<PreferenceFormat> {
  /** Rows whose answers were judged alike: "drop" (default), or "keep" them with `tie: true`. */
  readonly ties?: "drop" | "keep";
}

const HUMAN = "\n\nHuman:";
const ASSISTANT = "\n\nAssistant:";

/** A dialogue of HH-RLHF cut into what the last answer replies to (ending in "Assistant:") and that answer. */
export interface SplitDialogue {
  readonly prompt: string;
  readonly response: string;
}

/** Splits "\n\nHuman: … \n\nAssistant: …" before its last answer; null when it has no assistant turn. */
export function splitDialogue(dialogue: string): SplitDialogue | null {
  const at = dialogue.lastIndexOf(ASSISTANT);
  if (at < 0) return null;
  const end = at + ASSISTANT.length;
  return { prompt: dialogue.slice(0, end), response: dialogue.slice(end) };
}

/** Human turns in a conversation or a prompt of the HH-RLHF form; 0 for other prompts. */
function humanTurns(prompt: TextOrMessages): number {
  return typeof prompt === "string"
    ? prompt.split(HUMAN).length - 1
    : prompt.filter((message) => message.role === "user").length;
}

/** The preference format of a row, or null. */
export function detectPreference(value: unknown): PreferenceFormat | null {
  if (isArena(value)) return "chatbot-arena";
  if (!isRecord(value) || !("chosen" in value) || !("rejected" in value)) return null;
  if (isChatPair(value)) return "chat-pair";
  return "prompt" in value ? "prompt-chosen-rejected" : "hh-rlhf";
}

/** Reads preference rows of one data set and counts what it drops. */
export class PreferenceReader implements RowReader<PreferenceFormat, PreferenceRow> {
  readonly formats = PREFERENCE_FORMATS;
  readonly detect = detectPreference;
  readonly #keepTies: boolean;
  readonly #counts = { multiTurn: 0, differingPrompts: 0, emptyReply: 0, identical: 0, ties: 0 };

  constructor(ties: LoadPreferencesOptions["ties"] = "drop") {
    this.#keepTies = ties === "keep";
  }

  readonly read = (value: unknown, format: PreferenceFormat): PreferenceRow => {
    const row = this.#readAs(recordOf(value, PREFERENCE_FORMATS[format]), format);
    this.#countTurns(row.prompt);
    if (isBlank(row.chosen) || isBlank(row.rejected)) throw this.#drop("emptyReply", "has an empty answer");
    if (row.tie) this.#counts.ties++;
    else if (sameText(row.chosen, row.rejected)) throw this.#drop("identical", "has the same answer twice");
    return withoutTie(row, this.#keepTies);
  };

  #readAs(row: Readonly<Record<string, unknown>>, format: PreferenceFormat): PreferenceRow {
    switch (format) {
      case "hh-rlhf":
        return this.#readDialogues(row);
      case "prompt-chosen-rejected":
        return withMargin(row, readPair(row));
      case "chat-pair":
        return withMargin(row, readChatPair(row));
      case "chatbot-arena":
        return readArena(row);
    }
  }

  #readDialogues(value: Readonly<Record<string, unknown>>): PreferenceRow {
    const chosen = splitDialogue(stringField(value, "chosen"));
    const rejected = splitDialogue(stringField(value, "rejected"));
    if (chosen === null || rejected === null)
      throw new RowProblem(`${chosen === null ? '"chosen"' : '"rejected"'} has no "\\n\\nAssistant:" turn`);
    if (chosen.prompt !== rejected.prompt) {
      this.#countTurns(chosen.prompt);
      throw this.#drop("differingPrompts", "has dialogues that differ before the last answer");
    }
    return { prompt: chosen.prompt, chosen: chosen.response, rejected: rejected.response };
  }

  #countTurns(prompt: TextOrMessages): void {
    if (humanTurns(prompt) > 1) this.#counts.multiTurn++;
  }

  #drop(counter: "differingPrompts" | "emptyReply" | "identical", reason: string): RowDropped {
    this.#counts[counter]++;
    return new RowDropped(reason);
  }

  readonly report = (): Partial<DataReport> => ({ preferences: { ...this.#counts } });
}

function readPair(value: Readonly<Record<string, unknown>>): PreferenceRow {
  const prompt = textOrMessagesField(value, "prompt");
  return promptAndReplies(prompt, {
    chosen: textOrMessagesField(value, "chosen"),
    rejected: textOrMessagesField(value, "rejected"),
  });
}

function withMargin(value: Readonly<Record<string, unknown>>, row: PreferenceRow): PreferenceRow {
  return value.margin === undefined ? row : { ...row, margin: numberField(value, "margin") };
}

/**
 * Reads preference pairs: rows {prompt, chosen, rejected}, as texts or as lists of messages; HH-RLHF's whole dialogues
 * {chosen, rejected}, split before the last answer; the Chatbot Arena's {conversation_a, conversation_b, winner}. Files may be
 * .json, .jsonl, .jsonl.gz or .parquet. Pairs whose prompts differ, with an empty or twice the same answer, and ties are dropped
 * and counted in `report.preferences`. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadPreferences(
  paths: string | readonly string[],
  options: LoadPreferencesOptions = {},
): Promise<Dataset<PreferenceRow>> {
  return collectRows(streamPreferences(paths, options));
}

/** The rows of `loadPreferences`, one at a time: for files larger than memory. */
export function streamPreferences(
  paths: string | readonly string[],
  options: LoadPreferencesOptions = {},
): RowStream<PreferenceRow, PreferenceFormat> {
  return new RowStream(paths, () => new PreferenceReader(options.ties), options);
}
