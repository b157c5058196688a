import {
  describeType,
  isRecord,
  nonEmpty,
  numberField,
  promptAndReplies,
  RowProblem,
  recordOf,
  textOrMessagesField,
} from "./fields.ts";
import { detectPreference, PREFERENCE_FORMATS, PreferenceReader } from "./preferences.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { DataReport, Dataset, ScoredFormat, ScoredRow, UnpairedFormat, UnpairedRow } from "./types.ts";

const UNPAIRED_FORMATS: Readonly<Record<UnpairedFormat, string>> = {
  "prompt-completion-label": "{prompt, completion, label}",
  ...PREFERENCE_FORMATS,
};

function labelOf(value: unknown): boolean {
  if (typeof value === "boolean") return value;
  if (value === 0 || value === 1) return value === 1;
  const found = typeof value === "string" ? JSON.stringify(value) : describeType(value);
  throw new RowProblem(
    value === undefined ? '"label" is missing' : `"label" must be true or false, got ${found}`,
  );
}

/** Reads answers with a thumb up or down; a preference row is two of them. */
class UnpairedReader implements RowReader<UnpairedFormat, UnpairedRow> {
  readonly formats = UNPAIRED_FORMATS;
  readonly #pairs = new PreferenceReader();
  #sawPairs = false;

  readonly detect = (value: unknown): UnpairedFormat | null =>
    isRecord(value) && "prompt" in value && "completion" in value
      ? "prompt-completion-label"
      : detectPreference(value);

  readonly read = (value: unknown, format: UnpairedFormat): UnpairedRow | UnpairedRow[] => {
    if (format !== "prompt-completion-label") {
      this.#sawPairs = true;
      const { prompt, chosen, rejected } = this.#pairs.read(value, format);
      return [
        { prompt, completion: chosen, label: true },
        { prompt, completion: rejected, label: false },
      ];
    }
    const row = recordOf(value, UNPAIRED_FORMATS[format]);
    const label = labelOf(row.label);
    const prompt = textOrMessagesField(row, "prompt");
    const completion = nonEmpty(textOrMessagesField(row, "completion"), "completion");
    return { ...promptAndReplies(prompt, { completion }), label };
  };

  readonly report = (): Partial<DataReport> => (this.#sawPairs ? this.#pairs.report() : {});
}

/**
 * Reads single answers that were judged good or bad: rows {prompt, completion, label} with a label of true or false (or 1 or 0).
 * Preference rows give two each, the chosen answer with true and the rejected one with false. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadUnpaired(
  paths: string | readonly string[],
  options: LoadOptions<UnpairedFormat> = {},
): Promise<Dataset<UnpairedRow>> {
  return collectRows(new RowStream(paths, () => new UnpairedReader(), options));
}

const SCORED_FORMATS: Readonly<Record<ScoredFormat, string>> = {
  "prompt-response-score": "{prompt, response, score}",
};

export const SCORED_READER: RowReader<ScoredFormat, ScoredRow> = {
  formats: SCORED_FORMATS,
  detect: (value) =>
    isRecord(value) && "prompt" in value && "response" in value && "score" in value
      ? "prompt-response-score"
      : null,
  read(value, format) {
    const row = recordOf(value, SCORED_FORMATS[format]);
    const prompt = textOrMessagesField(row, "prompt");
    const response = nonEmpty(textOrMessagesField(row, "response"), "response");
    return { ...promptAndReplies(prompt, { response }), score: numberField(row, "score") };
  },
};

/** Reads answers with a score each: rows {prompt, response, score}. Throws ERR_RLHF_DATA with file and line. */
export async function loadScored(
  paths: string | readonly string[],
  options: LoadOptions<ScoredFormat> = {},
): Promise<Dataset<ScoredRow>> {
  return collectRows(new RowStream(paths, () => SCORED_READER, options));
}
