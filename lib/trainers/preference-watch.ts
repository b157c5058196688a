import type { Metrics } from "../monitor/metrics.ts";
import type { TrainingStep } from "./trainer.ts";

/** Steps before anything is said, and over which running means reach back. */
const PATIENCE = 20;
const SMOOTHING = 1 / PATIENCE;
/** Steps at log 2 that are called standing still, and how near to it that is. */
const STILL_STEPS = 50;
const STILL = 1e-3;
/** Nats per answer by which the chosen ones have become less likely. */
const FALLEN = 1;
/** Where there is no reference: the share of its first value by which their log-prob has fallen. */
const NOTABLE = 0.02;

const FALLING_CURE =
  "both answers are being made less likely, the rejected one more. Add the likelihood of the chosen answers to the loss, " +
  "lower the learning rate, raise beta, or first fine-tune (SFT) on the chosen answers";

export interface PreferenceWatchOptions {
  /** Of a trainer whose rewards are beta·(log-prob − reference's): what they are divided by; else undefined. */
  readonly beta?: number;
  /** Whether a loss of log 2 means that nothing has been learnt. */
  readonly startsAtLog2: boolean;
  readonly warmupSteps: number;
}

/** Watches the metrics of preference training for two ways in which it goes wrong unnoticed, and warns of each once. */
export class PreferenceWatch {
  readonly #options: PreferenceWatchOptions;
  readonly #told = new Set<string>();
  #steps = 0;
  #stillSteps = 0;
  #chosen = 0;
  #margin = 0;
  #earlyMargin = 0;
  #firstEvaluation: Metrics | null = null;
  #lastEvaluation: Metrics | null = null;

  constructor(options: PreferenceWatchOptions) {
    this.#options = options;
  }

  /** Takes a step's metrics; returns the warnings that they give rise to. */
  observe({ step, metrics }: TrainingStep): string[] {
    this.#follow(metrics);
    if (step > this.#options.warmupSteps && Math.abs((metrics.loss ?? 0) - Math.LN2) < STILL)
      this.#stillSteps++;
    else this.#stillSteps = 0;
    return [this.#once("falling", this.#falling()), this.#once("still", this.#still(metrics))].filter(
      (warning) => warning !== null,
    );
  }

  /** Takes the metrics of an evaluation; all are of the same examples, so that they compare without a reference. */
  observeEvaluation(metrics: Metrics): void {
    this.#firstEvaluation ??= metrics;
    this.#lastEvaluation = metrics;
  }

  #once(kind: string, warning: string | null): string | null {
    if (warning === null || this.#told.has(kind)) return null;
    this.#told.add(kind);
    return warning;
  }

  #follow(metrics: Metrics): void {
    const [chosen = 0, margin = 0] = [metrics["rewards/chosen"], metrics["rewards/margins"]];
    if (!Number.isFinite(chosen) || !Number.isFinite(margin)) return;
    this.#steps++;
    const weight = Math.max(SMOOTHING, 1 / this.#steps);
    this.#chosen += weight * (chosen - this.#chosen);
    this.#margin += weight * (margin - this.#margin);
    if (this.#steps === PATIENCE / 2) this.#earlyMargin = this.#margin;
  }

  #falling(): string | null {
    const { beta } = this.#options;
    if (beta === undefined) return this.#fallingSinceFirstEvaluation();
    const drop = -this.#chosen / beta;
    if (this.#steps < PATIENCE || drop < FALLEN || this.#margin <= Math.max(0, this.#earlyMargin))
      return null;
    return `the log-prob of chosen answers has fallen by ${drop.toFixed(1)} on average while the margin grows (${this.#margin.toPrecision(3)}): ${FALLING_CURE}`;
  }

  #fallingSinceFirstEvaluation(): string | null {
    const since = (name: string): number =>
      (this.#lastEvaluation?.[`eval/${name}`] ?? Number.NaN) -
      (this.#firstEvaluation?.[`eval/${name}`] ?? Number.NaN);
    const drop = -since("logps/chosen");
    const notable = NOTABLE * Math.abs(this.#firstEvaluation?.["eval/logps/chosen"] ?? 0);
    if (!(drop > notable && since("rewards/margins") > 0)) return null;
    return `the mean log-prob of held-out chosen answers has fallen by ${drop.toPrecision(3)} while the margin grows: ${FALLING_CURE}`;
  }

  #still(metrics: Metrics): string | null {
    if (!this.#options.startsAtLog2 || this.#stillSteps < STILL_STEPS) return null;
    return `the loss has stood at log 2 = 0.693 for ${STILL_STEPS} steps: the policy is still its reference. Raise the learning rate (now ${metrics.lr})`;
  }
}
