/**
 * Runs microbenchmarks: all of them, or those named.
 *
 *   npm run bench                        every one
 *   npm run bench -- gemm --threads 2    one, with its options
 */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const BENCHMARKS = ["gemm", "attention", "rows", "api", "shared-prompts"] as const;

const words = process.argv.slice(2);
const firstOption = words.findIndex((word) => word.startsWith("-"));
const names = firstOption < 0 ? words : words.slice(0, firstOption);
const options = firstOption < 0 ? [] : words.slice(firstOption);

const unknown = names.find((name) => !BENCHMARKS.some((known) => known === name));
if (unknown) {
  console.error(`no benchmark "${unknown}"; there are ${BENCHMARKS.join(", ")}`);
  process.exitCode = 2;
} else {
  for (const name of names.length > 0 ? names : BENCHMARKS) {
    const file = fileURLToPath(new URL(`./${name}.ts`, import.meta.url));
    const run = spawnSync(process.execPath, ["--import", "tsx", file, ...options], { stdio: "inherit" });
    if (run.status !== 0) process.exitCode = 1;
  }
}
