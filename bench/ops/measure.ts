import { type KernelArguments, kernels } from "../../test/support/kernels.ts";
import type { Ceilings } from "./ceilings.ts";
import { bytesMoved, type Compute, floorSeconds, hasCompute, type OpBench, workOf } from "./op-bench.ts";

export interface BenchSettings {
  readonly backend: string;
  readonly computes: readonly Compute[];
  /** Seconds that the runs of a bench take together. */
  readonly seconds: number;
}

/** A bench's result on so many threads. */
export interface BenchResult {
  readonly op: string;
  readonly label: string;
  readonly compute: Compute;
  readonly threads: number;
  /** Of the fastest run: other work on the machine can only add to it. */
  readonly seconds: number;
  readonly flops: number;
  readonly bytes: number;
  /** Operations and bytes a second that the machine reaches. */
  readonly peak: number;
  readonly bandwidth: number;
  /** The least seconds possible with these, as a share of the seconds taken. */
  readonly share: number;
  /** Of products in float32: the share of what multiply-adds reach at the clock that the op ran at, right after it. */
  readonly shareAtClock?: number;
}

const MOST_RUNS = 2000;

interface Timed {
  readonly seconds: number;
  /** Median of (seconds × multiply-add rate right after): the operations there was time for. */
  readonly possibleFlops: number;
}

/** An op's fastest run. */
function time(
  settings: BenchSettings,
  op: string,
  args: KernelArguments,
  threads: number,
  burst: boolean,
): Timed {
  const run = (count: number) => kernels.bench(settings.backend, op, args, count, { threads, burst });
  const first = Math.min(...run(2).seconds);
  const { seconds, peak } = run(Math.min(MOST_RUNS, Math.max(3, Math.ceil(settings.seconds / first))));
  const possible = seconds.map((each, i) => each * peak[i]!).sort((a, b) => a - b);
  return { seconds: Math.min(first, ...seconds), possibleFlops: possible[possible.length >> 1]! };
}

/** Runs a bench in each type that it computes in, on the threads of each of the ceilings. */
export function* measure(
  bench: OpBench,
  settings: BenchSettings,
  ceilings: readonly Ceilings[],
): Generator<BenchResult> {
  for (const compute of settings.computes) {
    if (compute !== "float32" && !hasCompute(bench.op)) continue;
    const args = bench.args({ backend: settings.backend, compute });
    const work = workOf(bench, args);
    const burst = work.flops > 0 && compute === "float32";
    for (const ceiling of ceilings) {
      const bandwidth = ceiling.streaming(work);
      const { seconds, possibleFlops } = time(settings, bench.op, args, ceiling.threads, burst);
      const peak = ceiling.peak(compute);
      yield {
        ...{
          op: bench.op,
          label: bench.label,
          compute,
          threads: ceiling.threads,
          seconds,
          flops: work.flops,
        },
        ...{ bytes: bytesMoved(work), peak, bandwidth },
        share: floorSeconds(work, peak, bandwidth) / seconds,
        ...(burst && { shareAtClock: work.flops / possibleFlops }),
      };
    }
  }
}

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

/** One line: milliseconds, the rate in what bounds the op, and its shares of the ceiling. */
export function lineOf(result: BenchResult): string {
  const { op, label, compute, threads, seconds, flops, bytes, peak, bandwidth, share, shareAtClock } = result;
  const byProducts = flops / peak > bytes / bandwidth;
  const [amount, ceiling, unit] = byProducts ? [flops, peak, "GFLOP/s"] : [bytes, bandwidth, "GB/s"];
  const rate = `${(amount / seconds / 1e9).toFixed(1)} ${unit}, ${percent(share)} of ${(ceiling / 1e9).toFixed(0)}`;
  const atClock = shareAtClock === undefined || !byProducts ? "" : `, ${percent(shareAtClock)} at its clock`;
  return `${op.padEnd(20)} ${label.padEnd(40)} ${compute.padEnd(10)} ${threads}  ${(1e3 * seconds).toFixed(4).padStart(10)} ms  ${rate}${atClock}`;
}
