import type { AnswerScores } from "../rewards/reward.ts";
import { distinctShare, largestOverlap } from "./diversity.ts";
import type { RolloutSettings } from "./rollout-settings.ts";
import type { Rollout } from "./rollouts.ts";

/** Count, mean and sum of squared deviations of all scores so far (Welford 1962), as a checkpoint keeps them. */
export interface RunningState {
  readonly count: number;
  readonly mean: number;
  readonly squares: number;
}

/** Running mean and deviation of scores, one by one, so that they do not depend on how scores are batched. */
export class RunningStatistics {
  #count = 0;
  #mean = 0;
  #squares = 0;

  get state(): RunningState {
    return { count: this.#count, mean: this.#mean, squares: this.#squares };
  }

  set state({ count, mean, squares }: RunningState) {
    this.#count = count;
    this.#mean = mean;
    this.#squares = squares;
  }

  add(values: Iterable<number>): void {
    for (const value of values) {
      this.#count++;
      const before = value - this.#mean;
      this.#mean += before / this.#count;
      this.#squares += before * (value - this.#mean);
    }
  }

  get mean(): number {
    return this.#mean;
  }

  /** Of unbiased variance; 1 where there are not two different scores, so that a score can always be divided by it. */
  get deviation(): number {
    return this.#squares > 0 ? Math.sqrt(this.#squares / (this.#count - 1)) : 1;
  }
}

/** Scores as they enter the reward, and the bonus that is part of them. */
export interface ShapedScores {
  readonly scores: Float32Array;
  /** Diversity of each answer, 0 to 1; null where no bonus is given for it. */
  readonly diversity: Float32Array | null;
}

/** The source's own scores, and what they became. */
export interface ScoredRollouts extends ShapedScores {
  readonly raw: AnswerScores;
}

type ShapingSettings = Pick<
  RolloutSettings,
  | "rewardClip"
  | "lengthPenalty"
  | "lengthPenaltyStart"
  | "diversityBonus"
  | "diversityMeasure"
  | "diversityNgram"
  | "missingEosPenalty"
>;

function responseOf({ tokens, promptLength }: Rollout): Int32Array {
  return tokens.subarray(promptLength);
}

function diversityOf(rollouts: readonly Rollout[], settings: ShapingSettings): Float32Array | null {
  const { diversityBonus, diversityMeasure, diversityNgram } = settings;
  if (diversityBonus === 0) return null;
  const responses = rollouts.map(responseOf);
  if (diversityMeasure === "distinct")
    return Float32Array.from(responses, (response) => distinctShare(response, diversityNgram));
  return largestOverlap(responses, diversityNgram).map((overlap) => 1 - overlap);
}

/**
 * What a source's scores become, in this order: less the running mean and divided by the running deviation (where statistics are
 * given), clipped to ±rewardClip, less lengthPenalty for each token over lengthPenaltyStart, plus diversityBonus × diversity, less
 * missingEosPenalty where the answer did not end itself.
 */
export function shapeScores(
  raw: Float32Array,
  rollouts: readonly Rollout[],
  settings: ShapingSettings,
  running: RunningStatistics | null,
): ShapedScores {
  const { rewardClip, lengthPenalty, lengthPenaltyStart, diversityBonus, missingEosPenalty } = settings;
  const diversity = diversityOf(rollouts, settings);
  const scores = raw.map((score, i) => {
    const rollout = rollouts[i] as Rollout;
    const standard = running ? (score - running.mean) / running.deviation : score;
    const clipped = rewardClip === null ? standard : Math.min(rewardClip, Math.max(-rewardClip, standard));
    const surplus = Math.max(0, responseOf(rollout).length - lengthPenaltyStart);
    const bonus = diversity ? diversityBonus * (diversity[i] as number) : 0;
    const missingEos = rollout.finishReason === "stop" ? 0 : (missingEosPenalty ?? 0);
    return clipped - lengthPenalty * surplus + bonus - missingEos;
  });
  return { scores, diversity };
}
