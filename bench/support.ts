/**
 * What the microbenchmarks share: arguments, timing through rlhf_kernels.node and a table. Times are the best of many
 * runs, taken natively: other work on the machine can only add to them. Rates are relative to the multiply-add peak, taken so too.
 */
import { parseArgs } from "node:util";
import { type KernelArguments, kernels } from "../test/support/kernels.ts";

export interface BenchSettings {
  readonly backend: string;
  readonly threads: number;
}

/** --backend (the best CPU one by default) and --threads (1). */
export function benchSettings(): BenchSettings {
  const { values } = parseArgs({
    options: { backend: { type: "string" }, threads: { type: "string", default: "1" } },
  });
  const backend = values.backend ?? kernels.backends().find((name) => name.startsWith("cpu"));
  if (!backend) throw new Error("rlhf_kernels.node has no CPU backend");
  return { backend, threads: Number(values.threads) };
}

/** Uniform numbers in [−1, 1), at a multiple of 64 bytes as the engine's arrays are. */
export function uniformArray(count: number): Float32Array {
  const array = new Float32Array(kernels.alignedBuffer(4 * count), 0, count);
  for (let i = 0; i < count; i++) array[i] = 2 * Math.random() - 1;
  return array;
}

/** An op's fastest run, and the median of (seconds × the multiply-add rate right after) over its runs: operations it had time for. */
function measure(
  settings: BenchSettings,
  op: string,
  args: KernelArguments,
  minimumSeconds = 0.5,
): { seconds: number; possibleFlops: number } {
  const run = (repetitions: number) =>
    kernels.bench(settings.backend, op, args, repetitions, { threads: settings.threads });
  const first = Math.min(...run(2).seconds);
  const { seconds, peak } = run(Math.min(10_000, Math.max(5, Math.ceil(minimumSeconds / first))));
  const possible = seconds.map((time, i) => time * (peak[i] as number)).sort();
  return {
    seconds: Math.min(first, ...seconds),
    possibleFlops: possible[Math.floor(possible.length / 2)] as number,
  };
}

/** Seconds of an op's fastest run, over at least `minimumSeconds` of runs. */
export function fastestSeconds(
  settings: BenchSettings,
  op: string,
  args: KernelArguments,
  minimumSeconds = 0.5,
): number {
  return measure(settings, op, args, minimumSeconds).seconds;
}

/** What an op does in one run: floating-point operations, or bytes that it must move. */
export type Work = { readonly flops: number } | { readonly bytes: number };

/**
 * Times an op and prints one line: milliseconds, and GFLOP/s with two shares, or GB/s. The first share is of the multiply-add peak
 * that this CPU reaches when it does nothing else; the second of what multiply-adds alone reach at the clock that the op ran at.
 */
export function report(
  settings: BenchSettings,
  label: string,
  op: string,
  args: KernelArguments,
  work: Work,
): void {
  const peak = kernels.multiplyAddPeak(settings.threads);
  const { seconds, possibleFlops } = measure(settings, op, args);
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  const rate =
    "flops" in work
      ? `${(work.flops / seconds / 1e9).toFixed(1)} GFLOP/s, ${percent(work.flops / seconds / peak)} of ${(peak / 1e9).toFixed(0)}, ${percent(work.flops / possibleFlops)} at its clock`
      : `${(work.bytes / seconds / 1e9).toFixed(1)} GB/s`;
  console.log(`${op.padEnd(18)} ${label.padEnd(36)} ${(1e3 * seconds).toFixed(3).padStart(9)} ms  ${rate}`);
}
