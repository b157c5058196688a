import { isRlhfError, RlhfError } from "../errors.ts";
import { describePlace, placeOf } from "./readers.ts";
import type { RowPlace } from "./types.ts";

/** A row that tokenising left out. */
export interface DroppedExample {
  /** Counted from 0. */
  readonly row: number;
  /** Where it was read, if it was. */
  readonly place?: RowPlace;
  readonly reason: string;
}

/** What tokenising a data set did. */
export interface TokenizeReport {
  readonly examples: number;
  readonly tokens: number;
  /** Examples that were cut at the limit and kept. */
  readonly truncated: number;
  /** Left out: too long, or nothing left to learn after truncation. */
  readonly dropped: number;
  /** Pairs left out because their two answers are the same tokens. */
  readonly identical?: number;
  /** The first rows that were left out (all are counted, at most 20 are kept here). */
  readonly firstDropped: readonly DroppedExample[];
  /** Rows where prompt and response tokenised together begin otherwise than the prompt alone; they are tokenised apart. */
  readonly boundaryMerges: number;
}

export interface Tokenized<Example> {
  readonly examples: Example[];
  readonly report: TokenizeReport;
}

/** What became of one row. */
export type RowOutcome<Example> =
  | {
      readonly example: Example;
      readonly tokens: number;
      readonly truncated: boolean;
      readonly merged: boolean;
    }
  | { readonly dropped: string; readonly identical?: true };

/** How rows of one kind become examples. */
export interface RowTokenizer<Row, Example> {
  /** What messages call an example. */
  readonly noun: string;
  readonly maxLength: number;
  tokenize(row: Row, index: number): RowOutcome<Example>;
}

/** Tokenises a row; an error tells where the row was read. */
function tokenizeRow<Row, Example>(
  rows: RowTokenizer<Row, Example>,
  row: Row,
  index: number,
): RowOutcome<Example> {
  if (row === undefined || row === null)
    throw new RlhfError("ERR_RLHF_DATA", `row ${index}: is ${String(row)}, expected an object`);
  try {
    return rows.tokenize(row, index);
  } catch (error) {
    const place = typeof row === "object" && row !== null ? placeOf(row) : undefined;
    if (!place || !isRlhfError(error)) throw error;
    const { code, message, details } = error as RlhfError;
    throw new RlhfError(
      code,
      `${describePlace(place)}: ${message}`,
      { ...details, ...place },
      { cause: error },
    );
  }
}

const KEPT_DROPPED = 20;

/** Counts what tokenising does, row by row. */
export class TokenizeTally {
  readonly #noun: string;
  readonly #maxLength: number;
  #rows = 0;
  #examples = 0;
  #tokens = 0;
  #truncated = 0;
  #dropped = 0;
  #identical = 0;
  #boundaryMerges = 0;
  readonly #firstDropped: DroppedExample[] = [];

  constructor({ noun, maxLength }: Pick<RowTokenizer<unknown, unknown>, "noun" | "maxLength">) {
    this.#noun = noun;
    this.#maxLength = maxLength;
  }

  /** Tokenises one row; null where it is left out. An error of the row tells where it stands. */
  add<Row, Example>(rows: RowTokenizer<Row, Example>, row: Row): Example | null {
    const index = this.#rows++;
    const outcome = tokenizeRow(rows, row, index);
    if ("dropped" in outcome) {
      if (outcome.identical) this.#identical++;
      else this.#dropped++;
      const place = typeof row === "object" && row !== null ? placeOf(row) : undefined;
      if (this.#firstDropped.length < KEPT_DROPPED)
        this.#firstDropped.push({ row: index, ...(place ? { place } : {}), reason: outcome.dropped });
      return null;
    }
    this.#examples++;
    this.#tokens += outcome.tokens;
    if (outcome.truncated) this.#truncated++;
    if (outcome.merged) this.#boundaryMerges++;
    return outcome.example;
  }

  /** The report. Throws ERR_RLHF_DATA when nothing is left. */
  finish(): TokenizeReport {
    if (this.#examples === 0) throw this.#nothingLeft();
    return {
      examples: this.#examples,
      tokens: this.#tokens,
      truncated: this.#truncated,
      dropped: this.#dropped,
      ...(this.#noun === "pair" ? { identical: this.#identical } : {}),
      firstDropped: this.#firstDropped,
      boundaryMerges: this.#boundaryMerges,
    };
  }

  #nothingLeft(): RlhfError {
    const dropped = this.#dropped;
    const identical = this.#identical;
    const maxLength = this.#maxLength;
    const first = this.#firstDropped[0];
    const where = first?.place ? describePlace(first.place) : `row ${first?.row}`;
    const example = first ? ` (${where} ${first.reason})` : "";
    const others = dropped === 0 ? "" : `, and ${dropped} are longer than maxLength ${maxLength}`;
    const why =
      identical > 0
        ? `no pair is left: in ${identical} the chosen answer is the rejected one too, token by token${others}; a pair has to differ within maxLength`
        : dropped === 0
          ? `no ${this.#noun} to tokenise: no row was given`
          : `no ${this.#noun} is left: all ${dropped} are empty or longer than maxLength ${maxLength}; raise it`;
    return new RlhfError("ERR_RLHF_DATA", `${why}${example}`, { dropped, identical, maxLength });
  }
}

/** Tokenises every row. Throws ERR_RLHF_DATA when nothing is left. */
export function tokenizeAll<Row, Example>(
  rows: readonly Row[],
  rowTokenizer: RowTokenizer<Row, Example>,
): Tokenized<Example> {
  if (typeof rows?.[Symbol.iterator] !== "function")
    throw new RlhfError("ERR_RLHF_ARGUMENT", `expected a list of rows, got ${String(rows)}`);
  const tally = new TokenizeTally(rowTokenizer);
  const examples: Example[] = [];
  for (const row of rows) {
    const example = tally.add(rowTokenizer, row);
    if (example !== null) examples.push(example);
  }
  return { examples, report: tally.finish() };
}
