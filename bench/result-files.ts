import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { BFLOAT16_KERNELS, CPU_BACKENDS, restoreBfloat16Kernel } from "../test/support/bfloat16-kernels.ts";

/** The kinds of processors that docs/PERFORMANCE.md has tables of. */
export const PROCESSORS = ["amx", "avx2"] as const;

/** This machine's kind, by what its best products are made with: "amx", "avx512-dot", "avx512-convert", "avx2" or "scalar". */
export function thisProcessor(): string {
  const instructions = CPU_BACKENDS[0]!.replace("cpu:", "");
  restoreBfloat16Kernel();
  const [products] = BFLOAT16_KERNELS;
  if (products === "amx") return products;
  return instructions === "avx512" ? `${instructions}-${products}` : instructions;
}

/** bench/results/PROCESSOR/NAME.json. */
export const resultPath = (processor: string, name: string): string =>
  fileURLToPath(new URL(`results/${processor}/${name}.json`, import.meta.url));

/** The same of this machine's kind, whose folder is made where there is none. */
export function resultPathHere(name: string): string {
  const path = resultPath(thisProcessor(), name);
  mkdirSync(new URL(".", `file://${path}`), { recursive: true });
  return path;
}
