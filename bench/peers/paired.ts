/** What one step took. */
export interface Timing {
  readonly seconds: number;
  /** Processor time of all threads: steadier than wall time where other programs share the machine. */
  readonly cpuSeconds: number;
}

/** Two programs timed in turn: the ratio of each pair, theirs/ours (above 1 means ours is faster). */
export interface Comparison {
  readonly ours: number;
  readonly theirs: number;
  /** Median of the pairs' ratios. */
  readonly ratio: number;
  /** 95 % percentile interval of that median, 2,000 resamples of the pairs. */
  readonly interval: readonly [number, number];
}

export interface PairedResult {
  readonly seconds: Comparison;
  readonly cpuSeconds: Comparison;
  readonly timings: { readonly ours: readonly Timing[]; readonly theirs: readonly Timing[] };
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

function compare(ours: readonly number[], theirs: readonly number[]): Comparison {
  const ratios = theirs.map((value, i) => value / ours[i]!);
  const index = randomIndices(1);
  const resampled = Array.from({ length: 2000 }, () =>
    median(ratios.map(() => ratios[index(ratios.length)]!)),
  );
  resampled.sort((a, b) => a - b);
  return {
    ours: median(ours),
    theirs: median(theirs),
    ratio: median(ratios),
    interval: [resampled[49]!, resampled[1949]!],
  };
}

/**
 * Runs the two in turn, swapping who goes first, so that drift and neighbours of the machine hit both alike.
 *
 * @param pairs how many pairs count, after `warmUp` that do not
 * @param ours, theirs run one step and return what it took
 */
export async function timePaired(
  pairs: number,
  warmUp: number,
  ours: (round: number) => Promise<Timing>,
  theirs: (round: number) => Promise<Timing>,
): Promise<PairedResult> {
  const timings = { ours: [] as Timing[], theirs: [] as Timing[] };
  for (let round = 0; round < warmUp + pairs; round++) {
    const order = round % 2 === 0 ? (["ours", "theirs"] as const) : (["theirs", "ours"] as const);
    for (const who of order) {
      const timing = await (who === "ours" ? ours(round) : theirs(round));
      if (round >= warmUp) timings[who].push(timing);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  const compared = (key: keyof Timing): Comparison =>
    compare(
      timings.ours.map((timing) => timing[key]),
      timings.theirs.map((timing) => timing[key]),
    );
  return { seconds: compared("seconds"), cpuSeconds: compared("cpuSeconds"), timings };
}
