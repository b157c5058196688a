import { distinctN, ngramCounts } from "../evaluation/diversity.ts";

/** Distinct-n of one response. 0 for fewer than n tokens, so that saying nothing is not diverse. */
export function distinctShare(tokens: Int32Array, n: number): number {
  return distinctN([tokens], n);
}

/**
 * For each response the largest share of its different n-grams that another response of the batch has too, 0 to 1. 1 for a
 * response of fewer than n tokens, so that saying nothing is not diverse.
 */
export function largestOverlap(responses: readonly Int32Array[], n: number): Float32Array {
  const sets = responses.map((response) => new Set(ngramCounts(response, n).keys()));
  const owners = new Map<string, number[]>();
  sets.forEach((set, index) => {
    for (const ngram of set) {
      const list = owners.get(ngram);
      if (list) list.push(index);
      else owners.set(ngram, [index]);
    }
  });
  return Float32Array.from(sets, (set, index) => {
    if (set.size === 0) return 1;
    const shared = new Int32Array(responses.length);
    for (const ngram of set) for (const owner of owners.get(ngram) as number[]) (shared[owner] as number)++;
    shared[index] = 0;
    return shared.reduce((most, count) => Math.max(most, count), 0) / set.size;
  });
}
