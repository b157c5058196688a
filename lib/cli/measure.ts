import { planMicroBatches } from "../data/batching.ts";
import { loadSequences, type SequenceRow } from "../data/sequences.ts";
import { encodeSequence } from "../data/tokenize.ts";
import { RlhfError, throwIfAborted } from "../errors.ts";
import { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { MeasureOptions } from "./options.ts";

/** Rows measured before their results are written. */
const CHUNK_ROWS = 512;

/** Token ids of every row of a data file. A tokenizer is loaded only when a row has text. */
async function readSequences(options: MeasureOptions, appendEos: boolean): Promise<Int32Array[]> {
  const rows: readonly SequenceRow[] = await loadSequences(options.dataPath, { onBadRow: options.onBadRow });
  const needsTokenizer = rows.some((row) => !("tokens" in row));
  const tokenizer = needsTokenizer ? await Tokenizer.load(options.model) : null;
  return rows.map((row) => {
    if ("tokens" in row) return row.tokens;
    if (tokenizer === null)
      throw new RlhfError("ERR_RLHF_INTERNAL", "a row with text was met without a tokenizer");
    return encodeSequence(tokenizer, row.prompt, row.response, { appendEos }).tokens;
  });
}

/**
 * Measures the sequences of a data file in micro-batches of about equal size and gives the results in the order of the file.
 *
 * @param appendEos whether {prompt, response} rows end in the end-of-sequence token
 * @param signal raised: ERR_RLHF_ABORTED before the next micro-batch
 * @param measure the results of one micro-batch, one per sequence
 */
export async function* measureFile<Result>(
  options: MeasureOptions,
  appendEos: boolean,
  signal: AbortSignal,
  measure: (sequences: readonly Int32Array[]) => Promise<readonly Result[]>,
): AsyncGenerator<{ tokens: Int32Array; result: Result }> {
  const sequences = await readSequences(options, appendEos);
  for (let start = 0; start < sequences.length; start += CHUNK_ROWS) {
    const chunk = sequences.slice(start, start + CHUNK_ROWS);
    const results = new Map<number, Result>();
    const plan = planMicroBatches(
      chunk.map((tokens) => tokens.length),
      options.microBatchTokens,
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
