import type { Tokenized } from "../data/tokenize.ts";
import { RlhfError } from "../errors.ts";

/** Rows, which a trainer's constructor tokenises at once, or what `tokenizeInSlices` made of them while other work went on. */
export type RowsOrTokenized<Row, Example> = readonly Row[] | Tokenized<Example>;

function isTokenized<Row, Example>(data: RowsOrTokenized<Row, Example>): data is Tokenized<Example> {
  return !Array.isArray(data);
}

/** The rows or examples themselves, to be looked over. */
export function itemsOf<Row, Example>(
  data: RowsOrTokenized<Row, Example> | undefined,
): readonly (Row | Example)[] {
  if (data === undefined) return [];
  return isTokenized(data) ? data.examples : data;
}

/**
 * The data tokenised. Throws ERR_RLHF_ARGUMENT where it was so before and has a longer sequence than the trainer takes.
 *
 * @param sequencesOf the sequences of an example
 */
export function tokenizedData<Row, Example>(
  data: RowsOrTokenized<Row, Example>,
  maxLength: number,
  tokenize: (rows: readonly Row[]) => Tokenized<Example>,
  sequencesOf: (example: Example) => readonly { readonly tokens: Int32Array }[],
): Tokenized<Example> {
  if (!isTokenized(data)) return tokenize(data);
  for (const example of data.examples)
    for (const { tokens } of sequencesOf(example))
      if (tokens.length > maxLength)
        throw new RlhfError(
          "ERR_RLHF_ARGUMENT",
          `the data has a sequence of ${tokens.length} tokens, over maxLength ${maxLength}; give maxLength when it is tokenised`,
          { tokens: tokens.length, maxLength },
        );
  return data;
}
