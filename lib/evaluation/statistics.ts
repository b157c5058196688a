/** A value per answer, grouped by prompt; null where it does not apply. */
export type ByPrompt = readonly (readonly (number | null)[])[];

/** A mean with its 95 % confidence interval; the bounds are null where fewer than two prompts tell how far it varies. */
export interface Estimate {
  readonly mean: number;
  readonly low: number | null;
  readonly high: number | null;
  /** Answers that it is the mean of. */
  readonly answers: number;
  readonly prompts: number;
}

/** How often a model's answer beats the baseline's to the same prompt; a tie is half a win. */
export interface WinRate {
  readonly rate: number;
  /** Wilson's 95 % interval. */
  readonly low: number;
  readonly high: number;
  readonly wins: number;
  readonly ties: number;
  readonly losses: number;
  /** The rate that answers of equal length would have. */
  readonly lengthControlled: Readonly<Record<"rate" | "low" | "high", number>>;
}

/** The 97.5 % quantile of the normal distribution. */
const Z = 1.959963984540054;
/** Weight of the penalty θ² + φ² ÷ 2 in the logistic regression: it keeps both finite where one model wins always. */
const RIDGE = 1e-3;

/**
 * The mean over answers. Answers to one prompt are not independent of each other, so the interval comes from the deviation between
 * prompts (a ratio estimator over clusters); of shares, values that are all 0 or 1, it is Wilson's with as many trials as fit that
 * deviation. Null where there is no value.
 *
 * @param mayBeShares false: values are no shares even where all are 0 or 1, such as lengths or differences
 */
export function estimateMean(values: ByPrompt, mayBeShares = true): Estimate | null {
  const groups = values
    .map((group) => group.filter((value) => value !== null))
    .filter((group) => group.length > 0);
  const answers = groups.reduce((sum, group) => sum + group.length, 0);
  if (answers === 0) return null;
  const mean = groups.flat().reduce((sum, value) => sum + value, 0) / answers;
  const prompts = groups.length;
  if (prompts < 2) return { mean, low: null, high: null, answers, prompts };
  const squares = groups.reduce(
    (sum, group) => sum + group.reduce((part, value) => part + (value - mean), 0) ** 2,
    0,
  );
  const error = Math.sqrt((prompts / (prompts - 1)) * squares) / answers;
  if (mayBeShares && groups.flat().every((value) => value === 0 || value === 1)) {
    // The independent answers that would vary as much: where answers to a prompt are all alike, as many as there are prompts.
    const trials = error > 0 ? (mean * (1 - mean)) / error ** 2 : mean * (1 - mean) > 0 ? answers : prompts;
    const bounds = wilsonInterval(mean, Math.min(answers, Math.max(prompts, trials)));
    return { mean, ...bounds, answers, prompts };
  }
  return { mean, low: mean - Z * error, high: mean + Z * error, answers, prompts };
}

/** The differences `values − baseline` of answers that both have. */
export function pairedDifferences(values: ByPrompt, baseline: ByPrompt): ByPrompt {
  return values.map((group, p) =>
    group.map((value, j) => {
      const other = baseline[p]?.[j] ?? null;
      return value === null || other === null ? null : value - other;
    }),
  );
}

/**
 * Wilson's 95 % interval (1927) of a probability.
 *
 * @param rate share of successes, 0 to 1
 * @param trials independent trials, at least 1
 */
export function wilsonInterval(rate: number, trials: number): { low: number; high: number } {
  const zz = Z * Z;
  const middle = (rate + zz / (2 * trials)) / (1 + zz / trials);
  const half = (Z / (1 + zz / trials)) * Math.sqrt((rate * (1 - rate)) / trials + zz / (4 * trials * trials));
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/** log(1 + eˣ). */
function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** One comparison: who won (1, ½, 0), how it is weighted, and by how much the answer was longer than the baseline's. */
export interface Battle {
  readonly win: number;
  readonly weight: number;
  readonly lengthDifference: number;
}

/**
 * The win rate that answers as long as the baseline's would have, with its 95 % interval: σ(θ) of the logistic regression
 * P(win) = σ(θ + φ·tanh(Δlength ÷ deviation of Δlength)), as in length-controlled AlpacaEval (Dubois et al. 2024).
 */
export function lengthControlledRate(battles: readonly Battle[]): WinRate["lengthControlled"] {
  const weight = battles.reduce((sum, battle) => sum + battle.weight, 0);
  const mean = battles.reduce((sum, { weight: w, lengthDifference: d }) => sum + w * d, 0) / weight;
  const variance =
    battles.reduce((sum, { weight: w, lengthDifference: d }) => sum + w * (d - mean) ** 2, 0) / weight;
  // Where all differences are alike, their size is the only scale that there is.
  const scale = Math.sqrt(variance) || Math.abs(mean) || 1;
  const points = battles.map((battle) => ({ ...battle, x: Math.tanh(battle.lengthDifference / scale) }));
  const cost = (theta: number, phi: number): number =>
    points.reduce(
      (sum, { x, win, weight: w }) => {
        const logit = theta + phi * x;
        return sum + w * (softplus(logit) - win * logit);
      },
      0.5 * RIDGE * (theta * theta + phi * phi),
    );
  let [theta, phi, thetaVariance] = [0, 0, 0];
  for (let iteration = 0; iteration < 100; iteration++) {
    let [gradientTheta, gradientPhi] = [RIDGE * theta, RIDGE * phi];
    let [aa, ab, bb] = [RIDGE, 0, RIDGE];
    for (const { x, win, weight: w } of points) {
      const p = sigmoid(theta + phi * x);
      const curvature = w * p * (1 - p);
      gradientTheta += w * (p - win);
      gradientPhi += w * (p - win) * x;
      aa += curvature;
      ab += curvature * x;
      bb += curvature * x * x;
    }
    const determinant = aa * bb - ab * ab;
    thetaVariance = bb / determinant;
    const stepTheta = (bb * gradientTheta - ab * gradientPhi) / determinant;
    const stepPhi = (aa * gradientPhi - ab * gradientTheta) / determinant;
    // Newton's step, halved until it goes down.
    let size = 1;
    const before = cost(theta, phi);
    while (size > 1e-6 && cost(theta - size * stepTheta, phi - size * stepPhi) > before) size /= 2;
    theta -= size * stepTheta;
    phi -= size * stepPhi;
    if (Math.abs(stepTheta) + Math.abs(stepPhi) < 1e-10) break;
  }
  const error = Z * Math.sqrt(thetaVariance);
  return { rate: sigmoid(theta), low: sigmoid(theta - error), high: sigmoid(theta + error) };
}

/**
 * The win rate of one model's scores over another's, answer by answer. All answers to one prompt count as one trial together, so that
 * more answers per prompt make the rate steadier and the interval no narrower than the prompts allow. Null where nothing can be
 * compared.
 *
 * @param lengths, baselineLengths of the same answers
 */
export function winRate(
  scores: ByPrompt,
  baseline: ByPrompt,
  lengths: ByPrompt,
  baselineLengths: ByPrompt,
): WinRate | null {
  const longer = pairedDifferences(lengths, baselineLengths);
  const battles: Battle[] = [];
  let prompts = 0;
  for (const [p, group] of pairedDifferences(scores, baseline).entries()) {
    const compared = group.flatMap((difference, j) => (difference === null ? [] : [{ difference, j }]));
    if (compared.length === 0) continue;
    prompts++;
    for (const { difference, j } of compared)
      battles.push({
        win: (Math.sign(difference) + 1) / 2,
        weight: 1 / compared.length,
        lengthDifference: longer[p]?.[j] ?? 0,
      });
  }
  if (prompts === 0) return null;
  const rate = battles.reduce((sum, { win, weight }) => sum + win * weight, 0) / prompts;
  const count = (win: number): number => battles.filter((battle) => battle.win === win).length;
  return {
    rate,
    ...wilsonInterval(rate, prompts),
    wins: count(1),
    ties: count(0.5),
    losses: count(0),
    lengthControlled: lengthControlledRate(battles),
  };
}
