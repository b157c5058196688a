import assert from "node:assert/strict";
import { bytesOf, kernels } from "./kernels.ts";

/** The CPU's kernels for products in bfloat16 that this machine has. */
export const BFLOAT16_KERNELS = (["amx", "dot", "convert"] as const).filter((name) =>
  kernels.chooseBfloat16Kernel(name),
);
export const COMPUTES = ["bfloat16", "bfloat16x3"] as const;
export type Compute = (typeof COMPUTES)[number];
export const CPU_BACKENDS = kernels.backends().filter((name) => name.startsWith("cpu"));

/** Those among which a backend chooses. */
export const bfloat16KernelsOf = (backend: string): typeof BFLOAT16_KERNELS =>
  backend.endsWith("avx512") || backend === "cpu" ? BFLOAT16_KERNELS : ["convert"];

/** Makes the kernel that is chosen by default the chosen one again. */
export const restoreBfloat16Kernel = (): unknown => kernels.chooseBfloat16Kernel(BFLOAT16_KERNELS[0]!);

export function assertSameBits(
  left: Record<string, Float64Array>,
  right: Record<string, Float64Array>,
  what: string,
): void {
  for (const [field, values] of Object.entries(left))
    assert.ok(
      Buffer.from(bytesOf(values)).equals(bytesOf(right[field]!)),
      `${what}: ${field} has other bits`,
    );
}
