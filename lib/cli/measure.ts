import { planMicroBatches } from "../data/batching.ts";
import { encodeSequence } from "../data/encode.ts";
import { describePlace, placeOf } from "../data/readers.ts";
import { loadSequences, type SequenceRow } from "../data/sequences.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { MeasureOptions } from "./options.ts";

/** Sequences measured before their results are written. */
const CHUNK_SEQUENCES = 512;

/** What a model can take. */
export interface SequenceLimits {
  readonly maxLength: number;
  readonly vocabSize: number;
}

/**
 * Throws, with the row's place in its file, for a sequence that is too long for the model or has a token that it does not have. A pass
 * knows only where in its micro-batch a sequence stands.
 */
export function checkSequences(
  row: object,
  sequences: readonly Int32Array[],
  { maxLength, vocabSize }: SequenceLimits,
): void {
  const found = placeOf(row);
  const place = found === undefined ? "" : `${describePlace(found)}: `;
  for (const tokens of sequences) {
    if (tokens.length > maxLength)
      throw new RlhfError(
        "ERR_RLHF_CONTEXT_LENGTH",
        `${place}the sequence has ${tokens.length} tokens, more than the model's context of ${maxLength}: shorten it`,
        { ...found },
      );
    const token = tokens.find((id) => id >= vocabSize);
    if (token !== undefined)
      throw new RlhfError(
        "ERR_RLHF_TOKEN_RANGE",
        `${place}token ${token} lies outside the model's vocabulary of ${vocabSize}: was another model's tokenizer used?`,
        { ...found, token },
      );
  }
}

/** Token ids of every row of a data file, {prompt, response} rows without an end token. A tokenizer is loaded only when a row has text. */
export async function readSequences(options: MeasureOptions, limits: SequenceLimits): Promise<Int32Array[]> {
  const rows: readonly SequenceRow[] = await loadSequences(options.dataPath, { onBadRow: options.onBadRow });
  const needsTokenizer = rows.some((row) => !("tokens" in row));
  const tokenizer = needsTokenizer ? await Tokenizer.load(options.model) : null;
  return rows.map((row) => {
    const tokens = tokensOf(row, tokenizer);
    checkSequences(row, [tokens], limits);
    return tokens;
  });
}

function tokensOf(row: SequenceRow, tokenizer: Tokenizer | null): Int32Array {
  if ("tokens" in row) return row.tokens;
  if (tokenizer === null)
    throw new RlhfError("ERR_RLHF_INTERNAL", "a row with text was met without a tokenizer");
  return encodeSequence(tokenizer, row.prompt, row.response, { appendEos: false }).tokens;
}

/**
 * Measures sequences in micro-batches of about equal size and gives the results in their order.
 *
 * @param microBatchTokens most tokens of one micro-batch
 * @param signal raised: ERR_RLHF_ABORTED before the next micro-batch
 * @param measure the results of one micro-batch, one per sequence
 */
export async function* measureSequences<Result>(
  sequences: readonly Int32Array[],
  microBatchTokens: number,
  signal: AbortSignal,
  measure: (sequences: readonly Int32Array[]) => Promise<readonly Result[]>,
): AsyncGenerator<{ tokens: Int32Array; result: Result }> {
  for (let start = 0; start < sequences.length; start += CHUNK_SEQUENCES) {
    const chunk = sequences.slice(start, start + CHUNK_SEQUENCES);
    const results = new Map<number, Result>();
    const plan = planMicroBatches(
      chunk.map((tokens) => tokens.length),
      microBatchTokens,
    );
    for (const batch of plan) {
      throwIfAborted(signal, "measuring");
      const measured = await measure(batch.map((index) => chunk[index] as Int32Array));
      batch.forEach((index, position) => {
        results.set(index, measured[position] as Result);
      });
    }
    for (const [index, tokens] of chunk.entries()) yield { tokens, result: results.get(index) as Result };
  }
}
