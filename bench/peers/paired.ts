/** Statistics of two programs timed in turn: medians, and the ratio of each pair with a bootstrap interval. */
export interface PairedResult {
  readonly ours: { readonly median: number; readonly seconds: readonly number[] };
  readonly theirs: { readonly median: number; readonly seconds: readonly number[] };
  /** Median over pairs of theirs/ours: above 1 means ours is faster. */
  readonly speedup: number;
  /** 95 % percentile interval of that median, 2,000 resamples of the pairs. */
  readonly interval: readonly [number, number];
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** A small linear congruential generator: the interval of given timings is always the same. */
function randomIndices(seed: number): (count: number) => number {
  let state = seed;
  return (count) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * count);
  };
}

/**
 * Runs the two in turn, swapping who goes first, so that drift and neighbours of the machine hit both alike.
 *
 * @param pairs how many pairs count, after `warmUp` that do not
 * @param ours, theirs run one step and return its seconds
 */
export async function timePaired(
  pairs: number,
  warmUp: number,
  ours: (round: number) => Promise<number>,
  theirs: (round: number) => Promise<number>,
): Promise<PairedResult> {
  const seconds = { ours: [] as number[], theirs: [] as number[] };
  for (let round = 0; round < warmUp + pairs; round++) {
    const order = round % 2 === 0 ? (["ours", "theirs"] as const) : (["theirs", "ours"] as const);
    for (const who of order) {
      const elapsed = await (who === "ours" ? ours(round) : theirs(round));
      if (round >= warmUp) seconds[who].push(elapsed);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  const ratios = seconds.theirs.map((value, i) => value / seconds.ours[i]!);
  const index = randomIndices(1);
  const resampled = Array.from({ length: 2000 }, () =>
    median(ratios.map(() => ratios[index(ratios.length)]!)),
  );
  resampled.sort((a, b) => a - b);
  return {
    ours: { median: median(seconds.ours), seconds: seconds.ours },
    theirs: { median: median(seconds.theirs), seconds: seconds.theirs },
    speedup: median(ratios),
    interval: [resampled[49]!, resampled[1949]!],
  };
}
