/** The n-grams of a token sequence, repetitions included; none where it is shorter than n. */
function ngrams(tokens: Int32Array, n: number): string[] {
  return Array.from({ length: Math.max(0, tokens.length - n + 1) }, (_, i) =>
    tokens.subarray(i, i + n).join(),
  );
}

/** Distinct-n (Li et al. 2016): different n-grams ÷ n-grams. 0 for fewer than n tokens, so that saying nothing is not diverse. */
export function distinctShare(tokens: Int32Array, n: number): number {
  const all = ngrams(tokens, n);
  return all.length === 0 ? 0 : new Set(all).size / all.length;
}

/**
 * For each response the largest share of its different n-grams that another response of the batch has too, 0 to 1. 1 for a
 * response of fewer than n tokens, so that saying nothing is not diverse.
 */
export function largestOverlap(responses: readonly Int32Array[], n: number): Float32Array {
  const sets = responses.map((response) => new Set(ngrams(response, n)));
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
