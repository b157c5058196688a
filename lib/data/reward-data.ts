import { RowProblem } from "./fields.ts";
import { SCORED_READER } from "./labelled.ts";
import {
  detectPreference,
  type LoadPreferencesOptions,
  PREFERENCE_FORMATS,
  PreferenceReader,
} from "./preferences.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { DataReport, Dataset, PreferenceFormat, RewardFormat, RewardRow } from "./types.ts";

export interface LoadRewardOptions extends LoadOptions<RewardFormat> {
  /** Pairs whose answers were judged alike: "keep" (default), to be learnt as ties, or "drop". */
  readonly ties?: LoadPreferencesOptions["ties"];
}

const SCORED = "prompt-response-score";

/** Reads pairs and scored answers, also where they take turns in one file. */
class RewardReader implements RowReader<RewardFormat, RewardRow> {
  readonly formats = { ...PREFERENCE_FORMATS, ...SCORED_READER.formats };
  readonly #pairs: PreferenceReader;
  #sawPairs = false;

  constructor(ties: LoadPreferencesOptions["ties"]) {
    this.#pairs = new PreferenceReader(ties);
  }

  readonly detect = (value: unknown): RewardFormat | null =>
    SCORED_READER.detect(value) ?? detectPreference(value);

  readonly read = (value: unknown, format: RewardFormat): RewardRow | readonly RewardRow[] => {
    if (SCORED_READER.detect(value)) return SCORED_READER.read(value, SCORED);
    this.#sawPairs = true;
    return this.#pairs.read(value, format === SCORED ? this.#formatOf(value) : format);
  };

  #formatOf(value: unknown): PreferenceFormat {
    const format = detectPreference(value);
    if (format === null)
      throw new RowProblem(`has none of the forms ${Object.values(this.formats).join("; ")}`);
    return format;
  }

  readonly report = (): Partial<DataReport> => (this.#sawPairs ? this.#pairs.report() : {});
}

/**
 * Reads what a reward model is trained on: preference pairs in any form that `loadPreferences` reads, answers {prompt, response, score},
 * or both. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadRewardData(
  paths: string | readonly string[],
  options: LoadRewardOptions = {},
): Promise<Dataset<RewardRow>> {
  return collectRows(new RowStream(paths, () => new RewardReader(options.ties ?? "keep"), options));
}
