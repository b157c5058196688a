import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { BFLOAT16_KERNELS, CPU_BACKENDS, restoreBfloat16Kernel } from "../test/support/bfloat16-kernels.ts";

/** What the best products of a processor are made with: the kinds of machines whose results are kept, each in its folder of bench/results. */
export const PROCESSORS = ["amx", "avx2"] as const;
export type Processor = (typeof PROCESSORS)[number];

/** This machine's kind. Throws where results of it have no place. */
export function thisProcessor(): Processor {
  const [backend = "cpu"] = CPU_BACKENDS;
  restoreBfloat16Kernel();
  const [products] = BFLOAT16_KERNELS;
  const found = products === "amx" ? products : backend.replace("cpu:", "");
  const processor = PROCESSORS.find((known) => known === found);
  if (!processor)
    throw new Error(
      `results of ${found} (products in bfloat16: ${products}) have no folder yet: add it to PROCESSORS in bench/result-files.ts, ` +
        "and its tables to docs/PERFORMANCE.md",
    );
  return processor;
}

/** bench/results/PROCESSOR/NAME.json. */
export const resultPath = (processor: Processor, name: string): string =>
  fileURLToPath(new URL(`results/${processor}/${name}.json`, import.meta.url));

/** The same of this machine's kind, whose folder is made where there is none. */
export function resultPathHere(name: string): string {
  const path = resultPath(thisProcessor(), name);
  mkdirSync(new URL(".", `file://${path}`), { recursive: true });
  return path;
}
