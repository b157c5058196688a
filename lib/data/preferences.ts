import {
  describeType,
  isRecord,
  type LoadOptions,
  loadRows,
  RowProblem,
  type RowReader,
  stringField,
} from "./readers.ts";
import type { Dataset, PreferenceCounts, PreferenceFormat, PreferenceRow } from "./types.ts";

/** Each format as messages describe it. */
export const PREFERENCE_FORMATS: Readonly<Record<PreferenceFormat, string>> = {
  "prompt-chosen-rejected": "{prompt, chosen, rejected}",
  "hh-rlhf": "{chosen, rejected} with whole dialogues",
};

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

/** Human turns in a prompt of the HH-RLHF form; 0 for other prompts. */
function humanTurns(prompt: string): number {
  return prompt.split(HUMAN).length - 1;
}

/** The preference format of a row, or null. */
export function detectPreference(value: unknown): PreferenceFormat | null {
  if (!isRecord(value) || !("chosen" in value) || !("rejected" in value)) return null;
  return "prompt" in value ? "prompt-chosen-rejected" : "hh-rlhf";
}

/** Reads preference rows of one data set and counts what it drops. */
export class PreferenceReader implements RowReader<PreferenceFormat, PreferenceRow> {
  readonly formats = PREFERENCE_FORMATS;
  readonly detect = detectPreference;
  #multiTurn = 0;
  #differingPrompts = 0;
  #emptyReply = 0;
  #identical = 0;

  readonly read = (value: unknown, format: PreferenceFormat): PreferenceRow | null => {
    if (!isRecord(value))
      throw new RowProblem(`is ${describeType(value)}; expected ${PREFERENCE_FORMATS[format]}`);
    const row = format === "hh-rlhf" ? this.#readDialogues(value) : this.#readPair(value);
    if (row === null) return null;
    if (row.chosen.trim() === "" || row.rejected.trim() === "") {
      this.#emptyReply++;
      return null;
    }
    if (row.chosen === row.rejected) {
      this.#identical++;
      return null;
    }
    return row;
  };

  #readPair(value: Readonly<Record<string, unknown>>): PreferenceRow {
    const row = {
      prompt: stringField(value, "prompt"),
      chosen: stringField(value, "chosen"),
      rejected: stringField(value, "rejected"),
    };
    this.#countTurns(row.prompt);
    if (value.margin === undefined) return row;
    if (typeof value.margin !== "number")
      throw new RowProblem(`"margin" must be a number, got ${describeType(value.margin)}`);
    return { ...row, margin: value.margin };
  }

  #readDialogues(value: Readonly<Record<string, unknown>>): PreferenceRow | null {
    const chosen = splitDialogue(stringField(value, "chosen"));
    const rejected = splitDialogue(stringField(value, "rejected"));
    if (chosen === null || rejected === null) {
      throw new RowProblem(`${chosen === null ? '"chosen"' : '"rejected"'} has no "\\n\\nAssistant:" turn`);
    }
    this.#countTurns(chosen.prompt);
    if (chosen.prompt !== rejected.prompt) {
      this.#differingPrompts++;
      return null;
    }
    return { prompt: chosen.prompt, chosen: chosen.response, rejected: rejected.response };
  }

  #countTurns(prompt: string): void {
    if (humanTurns(prompt) > 1) this.#multiTurn++;
  }

  counts(): PreferenceCounts {
    return {
      multiTurn: this.#multiTurn,
      differingPrompts: this.#differingPrompts,
      emptyReply: this.#emptyReply,
      identical: this.#identical,
    };
  }
}

/**
 * Reads preference pairs from .json, .jsonl or .jsonl.gz files with rows {prompt, chosen, rejected} or HH-RLHF's whole dialogues
 * {chosen, rejected}, which are split before the last answer. Pairs whose prompts differ, with an empty or twice the same answer
 * are dropped and counted in `report.preferences`. Throws ERR_RLHF_DATA with file and line.
 */
export function loadPreferences(
  paths: string | readonly string[],
  options: LoadOptions<PreferenceFormat> = {},
): Promise<Dataset<PreferenceRow>> {
  const reader = new PreferenceReader();
  return loadRows(paths, reader, options, () => ({ preferences: reader.counts() }));
}
