import { describeType, isRecord, numberField, RowProblem, recordOf } from "./fields.ts";
import { collectRows, type LoadOptions, type RowReader, RowStream } from "./readers.ts";
import type { Dataset, FeatureFormat } from "./types.ts";

/** Two feature vectors of which the first was preferred. */
export interface FeaturePair {
  readonly chosen: ArrayLike<number>;
  readonly rejected: ArrayLike<number>;
  /** By how much the rewards should differ at least. Default 0. */
  readonly margin?: number;
  /** Both were judged alike, so that "chosen" is only the first. */
  readonly tie?: boolean;
}

/** A feature vector and its reward. */
export interface ScoredFeatures {
  readonly features: ArrayLike<number>;
  readonly score: number;
}

/** What a reward model on features learns from; both kinds may stand in one data set. */
export type FeatureRow = FeaturePair | ScoredFeatures;

const FORMATS: Readonly<Record<FeatureFormat, string>> = {
  "features-score": "{features, score}",
  "features-chosen-rejected": "{chosen, rejected, margin?, tie?}",
};

/** Whether a row is a vector with a score; else it is a pair. */
export function hasScore(row: FeatureRow): row is ScoredFeatures {
  return "score" in row;
}

/** The vectors of a row, of a pair the chosen one first. */
export function vectorsOf(row: FeatureRow): ArrayLike<number>[] {
  return hasScore(row) ? [row.features] : [row.chosen, row.rejected];
}

type Row = Readonly<Record<string, unknown>>;

function vectorField(row: Row, key: string, length?: number): readonly number[] {
  const value = row[key];
  if (value === undefined) throw new RowProblem(`"${key}" is missing`);
  if (!Array.isArray(value) || value.length === 0 || !value.every(Number.isFinite))
    throw new RowProblem(`"${key}" must be a list of finite numbers, got ${describeType(value)}`);
  if (length !== undefined && value.length !== length)
    throw new RowProblem(`has ${length} numbers in "chosen" and ${value.length} in "${key}"`);
  return value as number[];
}

function pairOf(row: Row): FeaturePair {
  const chosen = vectorField(row, "chosen");
  const rejected = vectorField(row, "rejected", chosen.length);
  if (row.tie !== undefined && typeof row.tie !== "boolean")
    throw new RowProblem(`"tie" must be true or false, got ${describeType(row.tie)}`);
  const margin = row.margin === undefined ? undefined : numberField(row, "margin");
  return {
    chosen,
    rejected,
    ...(margin === undefined ? {} : { margin }),
    ...(row.tie === true ? { tie: true } : {}),
  };
}

function detect(value: unknown): FeatureFormat | null {
  if (!isRecord(value)) return null;
  if ("features" in value && "score" in value) return "features-score";
  return "chosen" in value && "rejected" in value ? "features-chosen-rejected" : null;
}

const READER: RowReader<FeatureFormat, FeatureRow> = {
  formats: FORMATS,
  detect,
  read(value, format) {
    // Both kinds may take turns in one file.
    const own = detect(value) ?? format;
    const row = recordOf(value, FORMATS[own]);
    if (own === "features-score")
      return { features: vectorField(row, "features"), score: numberField(row, "score") };
    return pairOf(row);
  },
};

/**
 * Reads what a reward model on feature vectors is trained on: rows {chosen, rejected, margin?, tie?} and {features, score}, vectors as
 * lists of numbers. Throws ERR_RLHF_DATA with file and line.
 */
export async function loadFeatures(
  paths: string | readonly string[],
  options: LoadOptions<FeatureFormat> = {},
): Promise<Dataset<FeatureRow>> {
  return collectRows(new RowStream(paths, () => READER, options));
}
