/** Plain data for checkpoints. */
export interface StatisticsState {
  readonly count: number;
  readonly mean: readonly number[];
  /** Sums of squared differences from the mean. */
  readonly squares: readonly number[];
  readonly held: boolean;
}

/** Mean and mean squared distance from it of everything seen so far, per element (Welford's updates), in float64. */
export class RunningStatistics {
  #count = 0;
  #mean: Float64Array;
  #squares: Float64Array;
  #held = false;

  constructor(size: number) {
    this.#mean = new Float64Array(size);
    this.#squares = new Float64Array(size);
  }

  /** From now on the mean stays as it is; deviations are those from it. */
  holdMean(): void {
    this.#held = true;
  }

  add(values: ArrayLike<number>): void {
    this.#count++;
    for (let i = 0; i < this.#mean.length; i++) {
      const value = values[i] as number;
      const mean = this.#mean[i] as number;
      const next = this.#held ? mean : mean + (value - mean) / this.#count;
      this.#squares[i] = (this.#squares[i] as number) + (value - mean) * (value - next);
      this.#mean[i] = next;
    }
  }

  /** The standard deviation of an element; 1 before there are two values. */
  deviation(element: number): number {
    return this.#count < 2 ? 1 : Math.sqrt((this.#squares[element] as number) / this.#count + 1e-8);
  }

  /** (value − mean) / deviation, within ± limit. */
  normalise(values: ArrayLike<number>, limit: number): Float32Array {
    return Float32Array.from(values, (value, i) =>
      Math.max(-limit, Math.min(limit, (value - (this.#mean[i] as number)) / this.deviation(i))),
    );
  }

  state(): StatisticsState {
    return {
      count: this.#count,
      mean: [...this.#mean],
      squares: [...this.#squares],
      held: this.#held,
    };
  }

  static restore({ count, mean, squares, held }: StatisticsState): RunningStatistics {
    const statistics = new RunningStatistics(mean.length);
    statistics.#count = count;
    statistics.#mean.set(mean);
    statistics.#squares.set(squares);
    statistics.#held = held;
    return statistics;
  }
}
