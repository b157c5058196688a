import { kernels } from "../../test/support/kernels.ts";
import { attentionBenches } from "./attention.ts";
import { gemmBenches } from "./gemm.ts";
import { lossBenches } from "./losses.ts";
import type { OpBench } from "./op-bench.ts";
import { rowBenches } from "./rows.ts";

/** Every bench of an op, by the tables' names. */
export const opBenches = {
  gemm: gemmBenches,
  attention: attentionBenches,
  rows: rowBenches,
  losses: lossBenches,
} as const satisfies Record<string, readonly OpBench[]>;

export const allBenches: readonly OpBench[] = Object.values(opBenches).flat();

/** The backend's ops that no bench runs. */
export function opsWithoutBench(backend: string): string[] {
  const benched = new Set(allBenches.map((bench) => bench.op));
  return kernels.operators(backend).filter((op) => !benched.has(op));
}

/** The benches of a table or of an op; undefined for any other name. */
export function benchesNamed(name: string): readonly OpBench[] | undefined {
  const table = Object.entries(opBenches).find(([key]) => key === name)?.[1];
  const ofOp = allBenches.filter((bench) => bench.op === name);
  return table ?? (ofOp.length > 0 ? ofOp : undefined);
}
