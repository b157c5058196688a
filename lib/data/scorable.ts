import { RlhfError } from "../errors.ts";
import { encodeReply, endOfSequence, type PromptEncoder } from "./encode.ts";
import { detectPreference, PREFERENCE_FORMATS, PreferenceReader } from "./preferences.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import { SEQUENCE_READER, type SequenceRow } from "./sequences.ts";
import type { DataReport, Dataset, PreferenceFormat, PreferenceRow, SequenceFormat } from "./types.ts";

/** What a reward model can score: a sequence, or a pair of answers. */
export type ScorableRow = SequenceRow | PreferenceRow;
type ScorableFormat = SequenceFormat | PreferenceFormat;

function isSequenceFormat(format: ScorableFormat): format is SequenceFormat {
  return format in SEQUENCE_READER.formats;
}

class ScorableReader implements RowReader<ScorableFormat, ScorableRow> {
  readonly formats = { ...SEQUENCE_READER.formats, ...PREFERENCE_FORMATS };
  readonly #pairs = new PreferenceReader("keep");

  readonly detect = (value: unknown): ScorableFormat | null =>
    SEQUENCE_READER.detect(value) ?? detectPreference(value);

  readonly read = (value: unknown, format: ScorableFormat): ScorableRow | readonly ScorableRow[] =>
    isSequenceFormat(format) ? SEQUENCE_READER.read(value, format) : this.#pairs.read(value, format);

  readonly report = (): Partial<DataReport> => this.#pairs.report();
}

/**
 * Reads what is to be scored: rows {tokens} or {prompt, response}, or pairs in any form that `loadPreferences` reads, ties included.
 * Throws ERR_RLHF_DATA with file and line.
 */
export function loadScorable(
  paths: string | readonly string[],
  options: LoadOptions<ScorableFormat> = {},
): Promise<Dataset<ScorableRow>> {
  return collectRows(new RowStream(paths, () => new ScorableReader(), options));
}

/** The sequences of a row, as training tokenises them, ending in the end-of-sequence token: one, or of a pair the chosen answer first. */
export function scorableSequences(row: ScorableRow, tokenizer: PromptEncoder | null): Int32Array[] {
  if ("tokens" in row) return [row.tokens];
  if (tokenizer === null)
    throw new RlhfError("ERR_RLHF_INTERNAL", "a row with text was met without a tokenizer");
  const replies = "response" in row ? [row.response] : [row.chosen, row.rejected];
  const end = endOfSequence(tokenizer, {});
  return replies.map((reply) => encodeReply(tokenizer, row.prompt, reply, end).tokens);
}
