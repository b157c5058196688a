import { createHash } from "node:crypto";
import { RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";

export interface SplitOptions<Row> {
  /** Share of the rows held out for evaluation, in [0, 1). */
  readonly evalFraction: number;
  readonly seed: number;
  /** Rows with the same key land on the same side, e.g. answers to one prompt. Left out: the row itself. */
  readonly groupOf?: (row: Row) => unknown;
}

export interface Split<Row> {
  readonly train: Row[];
  readonly eval: Row[];
}

const SPLIT_OPTIONS: NamesOf<SplitOptions<never>> = { evalFraction: true, seed: true, groupOf: true };

function checked<Row>(call: string, options: SplitOptions<Row>): SplitOptions<Row> {
  refuseUnknownOptions<SplitOptions<never>>(call, options, SPLIT_OPTIONS);
  const { evalFraction } = options;
  if (evalFraction >= 0 && evalFraction < 1) return options;
  throw new RlhfError("ERR_RLHF_ARGUMENT", `${call}: evalFraction must be in [0, 1), got ${evalFraction}`, {
    evalFraction,
  });
}

/** A number in [0, 1) that is drawn from a group's content and the seed. */
function draw(key: unknown, seed: number): number {
  const text = typeof key === "string" ? key : JSON.stringify(key);
  const hash = createHash("sha256").update(`${seed}\0${text}`).digest();
  return hash.readUIntBE(0, 6) / 2 ** 48;
}

/**
 * Whether a row is held out for evaluation. It follows from the row's group and the seed alone, so that it holds for a stream and
 * for a data set that grows: rows that are added move none of those before.
 */
export function isHeldOut<Row>(row: Row, options: SplitOptions<Row>): boolean {
  const { evalFraction, seed, groupOf } = checked("isHeldOut", options);
  return draw(groupOf ? groupOf(row) : row, seed) < evalFraction;
}

/**
 * Splits rows into training and evaluation by their content and the seed (see `isHeldOut`); both keep the order of the input. The
 * share held out is met on average, and a share over 0 leaves at least one group on each side. Throws ERR_RLHF_DATA when there are
 * fewer than two groups to share out.
 */
export function splitDataset<Row>(rows: readonly Row[], options: SplitOptions<Row>): Split<Row> {
  const { evalFraction, seed, groupOf } = checked("splitDataset", options);
  if (evalFraction === 0) return { train: [...rows], eval: [] };
  const draws = rows.map((row) => draw(groupOf ? groupOf(row) : row, seed));
  const sorted = [...new Set(draws)].sort((a, b) => a - b);
  if (sorted.length < 2) {
    throw new RlhfError(
      "ERR_RLHF_DATA",
      "splitDataset: needs at least two different rows (or two different prompts) to hold some out; set evalFraction / eval_fraction to 0 to hold out none",
      { rows: rows.length, groups: sorted.length },
    );
  }
  const [smallest, second, largest] = [sorted[0], sorted[1], sorted.at(-1)] as [number, number, number];
  // The draws of a small set may all lie on one side.
  const threshold = smallest >= evalFraction ? second : Math.min(evalFraction, largest);
  return {
    train: rows.filter((_, index) => (draws[index] as number) >= threshold),
    eval: rows.filter((_, index) => (draws[index] as number) < threshold),
  };
}
