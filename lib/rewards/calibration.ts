/** Pairs whose predicted probabilities are near each other. */
export interface ReliabilityBin {
  /** The bin holds probabilities over `lower`, up to `upper`; the first one 0.5 too. */
  readonly lower: number;
  readonly upper: number;
  readonly pairs: number;
  /** Mean predicted probability that the answer scored higher is the better one; 0 in an empty bin. */
  readonly confidence: number;
  /** Share of pairs in which it is, ties as half; 0 in an empty bin. */
  readonly accuracy: number;
}

/** How far the probabilities σ(r_chosen − r_rejected) of a reward model can be believed. */
export interface Calibration {
  readonly pairs: number;
  /** Mean squared error of the probability that the chosen answer is the better one. */
  readonly brier: number;
  /** Expected calibration error: |confidence − accuracy|, averaged over all pairs by their bins (Guo et al. 2017). */
  readonly ece: number;
  readonly bins: readonly ReliabilityBin[];
}

const BINS = 10;

/** Sums from which calibration is computed, by names that add up over micro-batches. */
export type CalibrationSums = Readonly<Record<string, number>>;

/**
 * What some pairs add to the sums.
 *
 * @param differences r_chosen − r_rejected of each pair
 * @param labels the probability that the chosen answer is the better one, ½ for a tie; left out: 1
 */
export function calibrationSums(differences: ArrayLike<number>, labels?: ArrayLike<number>): CalibrationSums {
  const sums: Record<string, number> = { brier: 0, judged: differences.length };
  const add = (name: string, value: number): void => {
    sums[name] = (sums[name] ?? 0) + value;
  };
  for (let pair = 0; pair < differences.length; pair++) {
    const difference = differences[pair] as number;
    const label = labels?.[pair] ?? 1;
    add("brier", (1 / (1 + Math.exp(-difference)) - label) ** 2);
    const confidence = 1 / (1 + Math.exp(-Math.abs(difference)));
    const bin = Math.min(BINS - 1, Math.max(0, Math.ceil((confidence - 0.5) * 2 * BINS) - 1));
    add(`bin${bin}_pairs`, 1);
    add(`bin${bin}_confidence`, confidence);
    add(`bin${bin}_correct`, difference > 0 ? label : difference < 0 ? 1 - label : 0.5);
  }
  return sums;
}

/** Calibration from sums. Null without pairs. */
export function calibrationOf(sums: CalibrationSums): Calibration | null {
  const pairs = sums.judged ?? 0;
  if (pairs === 0) return null;
  const bins = Array.from({ length: BINS }, (_, bin): ReliabilityBin => {
    const count = sums[`bin${bin}_pairs`] ?? 0;
    const mean = (what: string): number => (count === 0 ? 0 : (sums[`bin${bin}_${what}`] ?? 0) / count);
    return {
      lower: 0.5 + bin / (2 * BINS),
      upper: 0.5 + (bin + 1) / (2 * BINS),
      pairs: count,
      confidence: mean("confidence"),
      accuracy: mean("correct"),
    };
  });
  const error = bins.reduce((sum, bin) => sum + bin.pairs * Math.abs(bin.confidence - bin.accuracy), 0);
  return { pairs, brier: (sums.brier ?? 0) / pairs, ece: error / pairs, bins };
}

/**
 * The calibration of pairs of rewards under the Bradley-Terry model; null without pairs.
 *
 * @param chosen rewards of the better answers
 * @param rejected rewards of the others
 * @param labels the probability that the chosen answer is the better one, ½ for a tie; left out: 1
 */
export function rewardCalibration(
  chosen: ArrayLike<number>,
  rejected: ArrayLike<number>,
  labels?: ArrayLike<number>,
): Calibration | null {
  const differences = Array.from(chosen, (reward, pair) => reward - (rejected[pair] as number));
  return calibrationOf(calibrationSums(differences, labels));
}
