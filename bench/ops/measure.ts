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
  /** Of work in float32: operations a second as a share of what multiply-adds on registers reach. */
  readonly shareOfMultiplyAdds?: number;
}

const MOST_RUNS = 2000;

/** Seconds of an op's fastest run. */
function time(settings: BenchSettings, op: string, args: KernelArguments, threads: number): number {
  const run = (count: number) => kernels.bench(settings.backend, op, args, count, { threads }).seconds;
  const first = Math.min(...run(2));
  return Math.min(first, ...run(Math.min(MOST_RUNS, Math.max(3, Math.ceil(settings.seconds / first)))));
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
    for (const ceiling of ceilings) {
      const bandwidth = ceiling.streaming(work);
      const seconds = time(settings, bench.op, args, ceiling.threads);
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
        ...(compute === "float32" && { shareOfMultiplyAdds: work.flops / seconds / ceiling.multiplyAdds() }),
      };
    }
  }
}

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

/** One line: milliseconds, the rate in what bounds the op, and its shares of the ceiling. */
export function lineOf(result: BenchResult): string {
  const { op, label, compute, threads, seconds, flops, bytes, peak, bandwidth, share, shareOfMultiplyAdds } =
    result;
  const byProducts = flops / peak > bytes / bandwidth;
  const [amount, ceiling, unit] = byProducts ? [flops, peak, "GFLOP/s"] : [bytes, bandwidth, "GB/s"];
  const rate = `${(amount / seconds / 1e9).toFixed(1)} ${unit}, ${percent(share)} of ${(ceiling / 1e9).toFixed(0)}`;
  const ofMultiplyAdds =
    shareOfMultiplyAdds === undefined || !byProducts
      ? ""
      : `, ${percent(shareOfMultiplyAdds)} of multiply-adds`;
  return `${op.padEnd(20)} ${label.padEnd(40)} ${compute.padEnd(10)} ${threads}  ${(1e3 * seconds).toFixed(4).padStart(10)} ms  ${rate}${ofMultiplyAdds}`;
}
