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

/** One who runs the work. */
export type Contestant = (round: number) => Promise<Timing>;

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

/** Ratios of two contestants' values, paired by round. */
export function compare(ours: readonly number[], theirs: readonly number[]): Comparison {
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
 * Runs all in turn, another one first each round, so that drift and neighbours of the machine hit all alike.
 *
 * @param rounds how many rounds count, after `warmUp` that do not
 */
export async function timeInTurn(
  rounds: number,
  warmUp: number,
  contestants: ReadonlyMap<string, Contestant>,
  beforeRound: () => Promise<void> = () => Promise.resolve(),
): Promise<Map<string, Timing[]>> {
  const names = [...contestants.keys()];
  const timings = new Map(names.map((name) => [name, [] as Timing[]]));
  for (let round = 0; round < warmUp + rounds; round++) {
    await beforeRound();
    const first = round % names.length;
    for (const name of [...names.slice(first), ...names.slice(0, first)]) {
      const timing = await contestants.get(name)!(round);
      if (round >= warmUp) timings.get(name)!.push(timing);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  return timings;
}
