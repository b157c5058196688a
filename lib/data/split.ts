import { RlhfError } from "../errors.ts";
import { Random } from "./random.ts";

export interface SplitOptions<Row> {
  /** Share of the rows held out for evaluation, in [0, 1). At least one row stays on each side when the share is over 0. */
  readonly evalFraction: number;
  readonly seed: number;
  /** Rows of the same group land on the same side, e.g. answers to one prompt. Left out: every row is its own group. */
  readonly groupOf?: (row: Row) => string;
}

export interface Split<Row> {
  readonly train: Row[];
  readonly eval: Row[];
}

/** Splits rows into training and evaluation by seed; both keep the order of the input. */
export function splitDataset<Row>(rows: readonly Row[], options: SplitOptions<Row>): Split<Row> {
  const { evalFraction, seed, groupOf } = options;
  if (!(evalFraction >= 0 && evalFraction < 1)) {
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `splitDataset: evalFraction must be in [0, 1), got ${evalFraction}`,
      { evalFraction },
    );
  }
  if (evalFraction === 0) return { train: [...rows], eval: [] };
  const groups = new Map<string, number[]>();
  rows.forEach((row, index) => {
    const key = groupOf ? groupOf(row) : String(index);
    const members = groups.get(key);
    if (members) members.push(index);
    else groups.set(key, [index]);
  });
  if (groups.size < 2) {
    throw new RlhfError(
      "ERR_RLHF_DATA",
      "splitDataset: needs at least two rows (or two different prompts) to hold some out; set evalFraction / eval_fraction to 0 to hold out none",
      {
        rows: rows.length,
        groups: groups.size,
      },
    );
  }
  const wanted = Math.max(1, Math.round(rows.length * evalFraction));
  const heldOut = new Set<number>();
  const order = new Random(seed, "split").shuffle([...groups.values()]);
  // The last group always stays for training.
  for (const members of order.slice(0, -1)) {
    if (heldOut.size >= wanted) break;
    for (const index of members) heldOut.add(index);
  }
  return {
    train: rows.filter((_, index) => !heldOut.has(index)),
    eval: rows.filter((_, index) => heldOut.has(index)),
  };
}
