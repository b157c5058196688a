import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import { formatDuration, formatNumber, formatRate } from "./format.ts";
import type { Metrics } from "./metrics.ts";

/** What a training loop tells about itself. */
export interface ProgressReporter {
  /** A step was finished. `tokens`: tokens it trained on or made, for the speed. */
  update(step: number, metrics: Metrics, tokens?: number): void;
  /** A line that stays, e.g. where a checkpoint was written. */
  note(text: string): void;
  /** The run ended or was interrupted; the last state stays on screen. */
  finish(): void;
}

/** Says nothing. */
export const silentProgress: ProgressReporter = { update() {}, note() {}, finish() {} };

/** Says only the lines that stay: for work before the first step. */
export const consoleNotes: ProgressReporter = {
  ...silentProgress,
  note: (text) => void process.stderr.write(`${text}\n`),
};

/** Where progress is written: process.stderr, or anything like it. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export interface ConsoleProgressOptions {
  /** What runs, e.g. "sft". */
  readonly label: string;
  readonly totalSteps: number;
  /** Steps done before this run, when it was resumed. */
  readonly startStep?: number;
  /** Metrics to show, in order; left out: the first four of each update. */
  readonly show?: readonly string[];
  readonly stream?: ProgressStream;
  /** Shortest time between two lines where the output is not a terminal. Default 10 s. */
  readonly lineEverySeconds?: number;
  /** Seconds on a steady clock; for tests. */
  readonly now?: () => number;
}

const CONSOLE_PROGRESS_OPTIONS: NamesOf<ConsoleProgressOptions> = {
  label: true,
  totalSteps: true,
  startStep: true,
  show: true,
  stream: true,
  lineEverySeconds: true,
  now: true,
};

/** Weight of the newest step in the running mean of step times, so that the time left follows changes of speed. */
const SMOOTHING = 0.1;
const REDRAW_SECONDS = 0.1;

/**
 * Progress on the console with speed and time left: one line that is redrawn on a terminal, a new line every few seconds
 * elsewhere (logs, CI).
 */
export class ConsoleProgress implements ProgressReporter {
  readonly #options: ConsoleProgressOptions;
  readonly #stream: ProgressStream;
  readonly #now: () => number;
  #step: number;
  #lastStepAt: number;
  #lastDrawnAt = Number.NEGATIVE_INFINITY;
  #secondsPerStep: number | null = null;
  #tokensPerSecond: number | null = null;
  #line = "";
  #drawnStep = -1;

  constructor(options: ConsoleProgressOptions) {
    refuseUnknownOptions("ConsoleProgress", options, CONSOLE_PROGRESS_OPTIONS);
    this.#options = options;
    this.#stream = options.stream ?? process.stderr;
    this.#now = options.now ?? (() => performance.now() / 1000);
    this.#step = options.startStep ?? 0;
    this.#lastStepAt = this.#now();
  }

  update(step: number, metrics: Metrics, tokens?: number): void {
    const now = this.#now();
    const steps = Math.max(1, step - this.#step);
    const seconds = now - this.#lastStepAt;
    this.#secondsPerStep = smooth(this.#secondsPerStep, seconds / steps);
    if (tokens !== undefined && seconds > 0)
      this.#tokensPerSecond = smooth(this.#tokensPerSecond, tokens / seconds);
    this.#step = step;
    this.#lastStepAt = now;
    this.#line = this.#render(metrics);
    const interval = this.#stream.isTTY ? REDRAW_SECONDS : (this.#options.lineEverySeconds ?? 10);
    if (now - this.#lastDrawnAt >= interval || step >= this.#options.totalSteps) this.#draw(now);
  }

  note(text: string): void {
    this.#stream.write(this.#stream.isTTY ? `\r\x1b[K${text}\n` : `${text}\n`);
    if (this.#stream.isTTY && this.#line !== "") this.#draw(this.#now());
  }

  finish(): void {
    if (this.#line === "") return;
    if (this.#drawnStep !== this.#step) this.#draw(this.#now());
    if (this.#stream.isTTY) this.#stream.write("\n");
    this.#line = "";
  }

  #draw(now: number): void {
    const width = this.#stream.columns ?? 80;
    this.#stream.write(
      this.#stream.isTTY ? `\r\x1b[K${this.#line.slice(0, Math.max(20, width - 1))}` : `${this.#line}\n`,
    );
    this.#lastDrawnAt = now;
    this.#drawnStep = this.#step;
  }

  #render(metrics: Metrics): string {
    const { label, totalSteps, show } = this.#options;
    const names = show?.filter((name) => name in metrics) ?? Object.keys(metrics).slice(0, 4);
    const values = names.map((name) => `${name} ${formatNumber(metrics[name] as number)}`).join("  ");
    const percent = Math.floor((100 * this.#step) / Math.max(1, totalSteps));
    const parts = [`${label} ${this.#step}/${totalSteps} ${percent}%`];
    if (values !== "") parts.push(values);
    parts.push(this.#speed());
    if (this.#step < totalSteps && this.#secondsPerStep !== null) {
      parts.push(`${formatDuration(this.#secondsPerStep * (totalSteps - this.#step))} left`);
    }
    return parts.join(" | ");
  }

  #speed(): string {
    const perSecond = this.#secondsPerStep ? 1 / this.#secondsPerStep : Number.NaN;
    const steps =
      perSecond >= 1 || Number.isNaN(perSecond)
        ? `${formatRate(perSecond)} steps/s`
        : `${formatRate(1 / perSecond)} s/step`;
    return this.#tokensPerSecond === null ? steps : `${steps}, ${formatRate(this.#tokensPerSecond)} tokens/s`;
  }
}

function smooth(mean: number | null, value: number): number {
  return mean === null ? value : mean + SMOOTHING * (value - mean);
}
