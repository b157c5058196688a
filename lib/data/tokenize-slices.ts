import { throwIfAborted } from "../errors.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import { breather } from "./breathe.ts";
import { type RowTokenizer, type Tokenized, type TokenizeReport, TokenizeTally } from "./tokenize-rows.ts";

export interface TokenizeSlicesOptions {
  /** Raised: ERR_RLHF_ABORTED. */
  readonly signal?: AbortSignal;
}

/** Tokenises rows one by one and hands the examples on, without keeping the event loop to itself for long. */
export async function tokenizeEach<Row, Example>(
  rows: Iterable<Row> | AsyncIterable<Row>,
  rowTokenizer: RowTokenizer<Row, Example>,
  { signal }: TokenizeSlicesOptions,
  add: (example: Example) => Promise<void> | void,
): Promise<TokenizeReport> {
  const tally = new TokenizeTally(rowTokenizer);
  const breathe = breather();
  for await (const row of rows) {
    throwIfAborted(signal, "tokenising");
    await breathe();
    const example = tally.add(rowTokenizer, row);
    if (example !== null) await add(example);
  }
  return tally.finish();
}

/**
 * Tokenises rows, an array or a stream, in slices of some milliseconds, between which other work goes on; trainers take the result in
 * place of rows. `rowTokenizer` says how: `preferenceRows(tokenizer, { maxLength })` and its like. Throws what reading the rows throws,
 * ERR_RLHF_DATA when nothing is left, and ERR_RLHF_ABORTED.
 */
export async function tokenizeInSlices<Row, Example>(
  rows: Iterable<Row> | AsyncIterable<Row>,
  rowTokenizer: RowTokenizer<Row, Example>,
  options: TokenizeSlicesOptions = {},
): Promise<Tokenized<Example>> {
  refuseUnknownOptions("tokenizeInSlices", options, { signal: true });
  const examples: Example[] = [];
  const report = await tokenizeEach(rows, rowTokenizer, options, (example) => void examples.push(example));
  return { examples, report };
}
