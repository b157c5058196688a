import { setMaxListeners } from "node:events";
import { setTimeout as pause } from "node:timers/promises";
import { inspect } from "node:util";
import { breather } from "../data/breathe.ts";
import { describePlace, placeOf } from "../data/readers.ts";
import type { PromptRow } from "../data/types.ts";
import { messageOf, RlhfError, throwIfAborted } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";

/** An answer to score. */
export interface AnswerToScore {
  /** The prompt's row; keys of the data file beside the prompt are in `row.metadata`. */
  readonly row: PromptRow;
  readonly response: string;
  /** "stop": the answer ended itself; "length": it was cut off. */
  readonly finishReason: "stop" | "length";
}

/** How functions and services that score answers are called. */
export interface RewardCallOptions {
  /** Most calls under way at a time. Default 16. */
  readonly concurrency?: number | undefined;
  /** Milliseconds that one call may take; null: any time. Default 300,000. */
  readonly timeoutMs?: number | null | undefined;
  /** How often a call that failed is made again. Default 0; of HttpReward 4. */
  readonly retries?: number | undefined;
  /** Milliseconds before the first retry; each further one waits twice as long, up to a minute. Default 500. */
  readonly backoffMs?: number | undefined;
  /**
   * Scores to remember, so that an answer seen before is not scored again; only for rewards that depend on nothing but prompt row,
   * response and finish reason. Default 0.
   */
  readonly cacheSize?: number | undefined;
}

export interface BatchRewardCallOptions extends RewardCallOptions {
  /** Most answers of one call. Default 16. */
  readonly batchSize?: number | undefined;
}

type CallSettings = { readonly [Name in keyof Required<BatchRewardCallOptions>]: number | null };

const DEFAULTS = {
  batchSize: 16,
  concurrency: 16,
  timeoutMs: 300_000,
  retries: 0,
  backoffMs: 500,
  cacheSize: 0,
};
const MINIMA: CallSettings = {
  batchSize: 1,
  concurrency: 1,
  timeoutMs: 1,
  retries: 0,
  backoffMs: 0,
  cacheSize: 0,
};
export const CALL_OPTIONS: NamesOf<BatchRewardCallOptions> = {
  batchSize: true,
  concurrency: true,
  timeoutMs: true,
  retries: true,
  backoffMs: true,
  cacheSize: true,
};
const LONGEST_PAUSE = 60_000;
/** What timers can count. */
const LARGEST = 2 ** 31 - 1;

/** A failure that has more to say than its message. */
export class CallFailure extends Error {
  /** False: the next call would fail alike. */
  readonly retryable: boolean;
  /** Milliseconds that the service asked to wait. */
  readonly retryAfterMs: number;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    message: string,
    options: {
      readonly retryable: boolean;
      readonly retryAfterMs?: number;
      readonly details?: Readonly<Record<string, unknown>>;
    },
  ) {
    super(message);
    this.retryable = options.retryable;
    this.retryAfterMs = options.retryAfterMs ?? 0;
    this.details = options.details ?? {};
  }
}

function isFiniteScore(score: unknown): score is number {
  return typeof score === "number" && Number.isFinite(Math.fround(score));
}

/** Known to every copy of this package: a reward module may import another than the one that trains. */
const BRAND = Symbol.for("node-rlhf.CalledReward");

/** Whether a value is a CalledReward, of this copy of the package or of another. */
export function isCalledReward(value: unknown): value is CalledReward {
  return typeof value === "object" && value !== null && BRAND in value;
}

/**
 * Scores answers by calls that may be slow, fail or hang. Scores stand in the order of the answers, whenever they arrive. A call
 * that fails for good stops the others through their signals and throws ERR_RLHF_REWARD with the answer's index.
 */
export abstract class CalledReward {
  readonly [BRAND] = true;
  /** Names the reward in errors. */
  protected abstract readonly what: string;
  readonly #settings: typeof DEFAULTS & { timeoutMs: number | null };
  /** In the order of use, the longest unused first. */
  readonly #cache = new Map<string, number>();

  /** Throws ERR_RLHF_ARGUMENT for a setting that there is not, or out of its range. */
  protected constructor(options: BatchRewardCallOptions) {
    refuseUnknownOptions(new.target.name, options, CALL_OPTIONS);
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    const settings: CallSettings = { ...DEFAULTS, ...Object.fromEntries(given) };
    for (const [name, low] of Object.entries(MINIMA) as [keyof CallSettings, number][]) {
      const value = settings[name];
      const fits = value === null ? name === "timeoutMs" : Number.isSafeInteger(value) && value >= low;
      if (!fits || (value ?? 0) > LARGEST)
        throw new RlhfError(
          "ERR_RLHF_ARGUMENT",
          `reward: ${name} is ${value}, expected an integer from ${low} to ${LARGEST}`,
          { [name]: value },
        );
    }
    this.#settings = settings as typeof DEFAULTS;
  }

  /** Scores of up to `batchSize` answers. What it throws is tried again, unless it is a CallFailure that is not retryable. */
  protected abstract call(
    answers: readonly AnswerToScore[],
    signal: AbortSignal,
  ): ArrayLike<unknown> | Promise<ArrayLike<unknown>>;

  /** Scores in the order of the answers, Float32Array. Throws ERR_RLHF_REWARD, or ERR_RLHF_ABORTED when the signal is raised. */
  async score(answers: readonly AnswerToScore[], signal?: AbortSignal): Promise<Float32Array> {
    throwIfAborted(signal, "scoring");
    const scores = new Array<number | undefined>(answers.length).fill(undefined);
    const keys = this.#settings.cacheSize > 0 ? answers.map(cacheKey) : [];
    const asked = this.#lookUp(answers, keys, scores);
    try {
      await this.#callAll(answers, asked, scores, signal);
    } catch (error) {
      throwIfAborted(signal, "scoring");
      throw error;
    } finally {
      // In the order of the answers, not of arrival; also after a failure, so that what was scored is not asked again.
      this.#remember(keys, scores);
    }
    return Float32Array.from(scores as number[]);
  }

  /** Fills in scores that are known; the indices of the others, each text once when texts are remembered. */
  #lookUp(
    answers: readonly AnswerToScore[],
    keys: readonly string[],
    scores: (number | undefined)[],
  ): number[] {
    if (keys.length === 0) return answers.map((_, index) => index);
    const first = new Map<string, number>();
    keys.forEach((key, index) => {
      scores[index] = this.#cache.get(key);
      if (scores[index] === undefined && !first.has(key)) first.set(key, index);
    });
    return [...first.values()];
  }

  #remember(keys: readonly string[], scores: (number | undefined)[]): void {
    const known = new Map<string, number>();
    keys.forEach((key, index) => {
      const score = scores[index];
      if (score !== undefined) known.set(key, score);
    });
    keys.forEach((key, index) => {
      const score = known.get(key);
      if (score === undefined) return;
      scores[index] = score;
      this.#cache.delete(key);
      this.#cache.set(key, score);
    });
    for (const key of this.#cache.keys()) {
      if (this.#cache.size <= this.#settings.cacheSize) break;
      this.#cache.delete(key);
    }
  }

  async #callAll(
    answers: readonly AnswerToScore[],
    asked: readonly number[],
    scores: (number | undefined)[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { batchSize, concurrency } = this.#settings;
    const others = new AbortController();
    setMaxListeners(concurrency + 1, others.signal);
    const stop = (): void => others.abort(signal?.reason);
    signal?.addEventListener("abort", stop, { once: true });
    const breathe = breather();
    let next = 0;
    const work = async (): Promise<void> => {
      while (next < asked.length && !others.signal.aborted) {
        const indices = asked.slice(next, next + batchSize);
        next += indices.length;
        await this.#callOnce(answers, indices, scores, others.signal);
        await breathe();
      }
    };
    try {
      await Promise.all(Array.from({ length: Math.min(concurrency, asked.length) }, work));
    } finally {
      signal?.removeEventListener("abort", stop);
      others.abort();
    }
  }

  async #callOnce(
    answers: readonly AnswerToScore[],
    indices: readonly number[],
    scores: (number | undefined)[],
    signal: AbortSignal,
  ): Promise<void> {
    const batch = indices.map((index) => answers[index] as AnswerToScore);
    let result: ArrayLike<unknown>;
    try {
      result = await this.#callWithRetries(batch, signal);
    } catch (error) {
      throw this.#failure(`failed: ${messageOf(error)}`, answers, indices, error);
    }
    const isList = typeof result === "object" && result !== null;
    if (!isList || result.length !== indices.length)
      throw this.#failure(
        `must return ${indices.length} scores, got ${isList ? result.length : describe(result)}`,
        answers,
        indices,
      );
    const bad = indices.findIndex((_, i) => !isFiniteScore(result[i]));
    // The good ones are kept first: they need not be asked for again.
    indices.forEach((index, i) => {
      const score = result[i];
      if (isFiniteScore(score)) scores[index] = score;
    });
    if (bad >= 0)
      throw this.#failure(
        `must return a finite number, got ${describe(result[bad])}`,
        answers,
        indices.slice(bad, bad + 1),
      );
  }

  async #callWithRetries(
    answers: readonly AnswerToScore[],
    signal: AbortSignal,
  ): Promise<ArrayLike<unknown>> {
    const { retries, backoffMs, timeoutMs } = this.#settings;
    for (let attempt = 0; ; attempt++) {
      try {
        return await within(timeoutMs, signal, (own) => this.call(answers, own));
      } catch (error) {
        const final = error instanceof CallFailure && !error.retryable;
        if (signal.aborted || final || attempt >= retries) throw error;
        const asked = error instanceof CallFailure ? error.retryAfterMs : 0;
        const wait = Math.min(LONGEST_PAUSE, Math.max(asked, backoffMs * 2 ** attempt));
        await pause(wait, undefined, { signal });
      }
    }
  }

  #failure(
    problem: string,
    answers: readonly AnswerToScore[],
    indices: readonly number[],
    cause?: unknown,
  ): RlhfError {
    const index = indices[0] as number;
    const { row, response } = answers[index] as AnswerToScore;
    const place = placeOf(row);
    const which = `prompt ${index}${place ? ` (${describePlace(place)})` : ""}`;
    const others = indices.length > 1 ? ` and ${indices.length - 1} more of its batch` : "";
    const shown = response.length > 200 ? `${response.slice(0, 200)}…` : response;
    return new RlhfError(
      "ERR_RLHF_REWARD",
      `${which}${others}: ${this.what} ${problem}; response: ${JSON.stringify(shown)}`,
      {
        index,
        prompt: row.prompt,
        response,
        ...(indices.length > 1 ? { indices: [...indices] } : {}),
        ...(cause instanceof CallFailure ? cause.details : {}),
      },
      cause === undefined ? undefined : { cause },
    );
  }
}

/** All that a reward function is given. */
function cacheKey({ row, response, finishReason }: AnswerToScore): string {
  return stringify([row.messages ?? row.prompt, row.metadata, response, finishReason]);
}

/** JSON of data rows: parquet's 64-bit integers as text. */
export function stringify(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) => (typeof part === "bigint" ? String(part) : part));
}

/** Calls with a signal that is raised, and the call given up, after a time or when `signal` is raised. */
function within<T>(
  timeoutMs: number | null,
  signal: AbortSignal,
  call: (signal: AbortSignal) => T | Promise<T>,
): Promise<T> {
  const own = new AbortController();
  return new Promise<T>((resolve, reject) => {
    const giveUp = (error: unknown): void => {
      finish();
      reject(error);
      own.abort(error);
    };
    const onTime = (): void =>
      giveUp(
        new CallFailure(`no answer within ${timeoutMs} ms`, { retryable: true, details: { timeoutMs } }),
      );
    const onAbort = (): void => giveUp(signal.reason);
    const timer = timeoutMs === null ? undefined : setTimeout(onTime, timeoutMs);
    const finish = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    new Promise<T>((settle) => settle(call(own.signal))).then(resolve, reject).finally(finish);
  });
}

/** What a function gave, for a message; not every object can be made text of with String. */
function describe(value: unknown): string {
  return inspect(value, { depth: 1, breakLength: Number.POSITIVE_INFINITY, maxStringLength: 200 });
}
