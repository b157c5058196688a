import type { DeviceLimits } from "../../test/support/kernels.ts";

/** Dense bfloat16 operations and bytes a second that a maker states. */
export interface StatedLimits {
  readonly flops: number;
  readonly bandwidth: number;
  /** Where the figures are from. */
  readonly source: string;
}

/** Of data sheets, by the driver's name of the device. */
const DATA_SHEETS: readonly (readonly [name: RegExp, flops: number, bandwidth: number])[] = [
  [/H200/, 989e12, 4.8e12],
  [/H100.*PCIe/, 756e12, 2.0e12],
  [/H100|GH200/, 989e12, 3.35e12],
  [/A100.*80GB/, 312e12, 2.039e12],
  [/A100/, 312e12, 1.555e12],
];

/** Dense bfloat16 operations of a multiprocessor in a clock, by compute capability. */
const FLOPS_PER_CLOCK: Readonly<Record<number, number>> = { 80: 2048, 86: 512, 89: 1024, 90: 4096 };

/** The device's limits: as its data sheet has them, else from its own clocks. 0 where neither tells. */
export function statedLimits(limits: DeviceLimits): StatedLimits {
  const sheet = DATA_SHEETS.find(([name]) => name.test(limits.model));
  if (sheet) return { flops: sheet[1], bandwidth: sheet[2], source: "data sheet" };
  const perClock = FLOPS_PER_CLOCK[limits.computeCapability] ?? 0;
  return {
    flops: perClock * limits.multiprocessors * limits.clockHz,
    bandwidth: limits.memoryBytesPerSecond,
    source: "the device's clocks",
  };
}
