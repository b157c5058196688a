import type { FloatArray, Outputs } from "../engine/array.ts";
import type { Engine } from "../engine/engine.ts";
import { type RewardStat, rewardLoss } from "../engine/losses.ts";
import { RlhfError } from "../errors.ts";
import type { Metrics } from "../monitor/metrics.ts";
import { calibrationOf, calibrationSums } from "../rewards/calibration.ts";
import { PAIR_LOSSES, type RewardLossConfig } from "./reward-settings.ts";
import type { Sums } from "./supervised.ts";

/** What is known of a pair beside its two sides. */
export interface PairJudgement {
  /** By how much the rewards should differ at least. */
  readonly margin: number;
  readonly tie?: boolean | undefined;
}

/** Which rewards of a batch belong together, by their indices, and what is known of them. */
export interface JudgedRewards {
  readonly pairs: readonly PairJudgement[];
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  readonly answers: readonly { readonly score: number }[];
  readonly scored: Int32Array;
}

/** The probability that a pair's chosen answer is the better one: ½ for a tie, less than 1 where labels may be wrong. */
export function labelOf(pair: Pick<PairJudgement, "tie">, labelSmoothing: number): number {
  return pair.tie ? 0.5 : 1 - labelSmoothing;
}

/** Sums and gradient of the loss that the settings describe, of the rewards `value`. */
export function judgeRewards(
  engine: Engine,
  value: FloatArray,
  judged: JudgedRewards,
  config: RewardLossConfig,
  scale: number,
): Promise<Outputs<"dValue", RewardStat>> {
  const { loss = "bradley-terry", labelSmoothing = 0, centerCoefficient = 0, scoreWeight = 1 } = config;
  const { shape, margins } = PAIR_LOSSES[loss];
  const { margin: added = loss === "hinge" ? 1 : 0 } = config;
  const { pairs, chosen, rejected, answers, scored } = judged;
  return rewardLoss(engine, {
    value,
    chosen,
    rejected,
    margin: Float32Array.from(pairs, (pair) => (margins && !pair.tie ? pair.margin + added : 0)),
    label: Float32Array.from(pairs, (pair) => labelOf(pair, labelSmoothing)),
    scored,
    score: Float32Array.from(answers, (answer) => answer.score),
    pairLoss: shape,
    centering: centerCoefficient,
    scoreWeight,
    scale,
  });
}

/** What the loss does not tell of the rewards `value`: their range, and of held-out pairs how far they can be believed. */
export function measureRewards(value: Float32Array, judged: JudgedRewards, heldOut: boolean): Sums {
  const at = (rows: Int32Array): Float32Array => Float32Array.from(rows, (row) => value[row] as number);
  const [chosen, rejected] = [at(judged.chosen), at(judged.rejected)];
  const all = [...chosen, ...rejected, ...at(judged.scored)];
  const range = {
    min_reward: all.reduce((least, reward) => Math.min(least, reward), Number.POSITIVE_INFINITY),
    max_reward: all.reduce((most, reward) => Math.max(most, reward), Number.NEGATIVE_INFINITY),
  };
  if (!heldOut) return range;
  const differences = chosen.map((reward, i) => reward - (rejected[i] as number));
  const labels = judged.pairs.map((pair) => labelOf(pair, 0));
  return { ...range, ...calibrationSums(differences, labels) };
}

/** Means from the sums of a whole window or evaluation. */
export function rewardMetrics(sums: Sums): Metrics {
  const of = (name: RewardStat): number => sums[name] ?? 0;
  const calibration = calibrationOf(sums);
  const decided = of("decided");
  const answers = of("answers");
  return {
    loss: (sums.loss ?? Number.NaN) / (of("pairs") + answers),
    ...(decided > 0 ? { accuracy: of("correct") / decided, margin: of("margin") / decided } : {}),
    ...(answers > 0 ? { mse: of("squaredError") / answers } : {}),
    mean_reward: of("reward") / of("rewards"),
    min_reward: sums.min_reward ?? Number.NaN,
    max_reward: sums.max_reward ?? Number.NaN,
    ...(calibration ? { brier: calibration.brier, ece: calibration.ece } : {}),
  };
}

/** Margins in the data that the loss would leave out of account are a mistake. */
export function checkMargins(
  rows: readonly (object & { readonly margin?: number | undefined })[],
  { loss = "bradley-terry", margin }: RewardLossConfig,
): void {
  if (PAIR_LOSSES[loss].margins) return;
  const inData = rows.some((row) => row.margin !== undefined && row.margin !== 0);
  if (!inData && (margin === undefined || margin === 0)) return;
  throw new RlhfError(
    "ERR_RLHF_ARGUMENT",
    `config.loss "${loss}" knows no margins, but ${inData ? "rows of the data have" : "config.margin sets"} one; use "bradley-terry" or "hinge"`,
  );
}
