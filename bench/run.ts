/**
 * Runs microbenchmarks: those of every op, or those named by a table, an op or a script.
 *
 *   npm run bench                                              every op and every script
 *   npm run bench -- attention --threads 1,2                   a table
 *   npm run bench -- linearForward --compute bfloat16          an op
 *   npm run bench -- shared-prompts --threads 2                a script, with its options
 *
 * Options of tables and ops: --threads (1 and all), --compute (float32,bfloat16), --backend (the best of the CPU's),
 * --products (amx, dot or convert: what the CPU makes those in bfloat16 with, and with amx those in float32 of wide layers; the best that there
 * is), --seconds (0.3, for each line), --json FILE. Each line is the fastest run, beside the ceiling measured in the same run: the peak of
 * multiply-adds or of bfloat16 products, or the bandwidth of streaming arrays of the same sizes. It ends with exit code 1 where an op
 * of the backend has no bench.
 */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { kernels } from "../test/support/kernels.ts";
import { Ceilings } from "./ops/ceilings.ts";
import { benchesNamed, opBenches, opsWithoutBench } from "./ops/index.ts";
import { type BenchResult, type BenchSettings, lineOf, measure } from "./ops/measure.ts";
import type { Compute, OpBench } from "./ops/op-bench.ts";

const SCRIPTS: readonly string[] = ["api", "shared-prompts"];

/** Runs benches of ops and prints a line for each. */
function runOps(benches: readonly OpBench[], options: string[]): void {
  const { values } = parseArgs({
    args: options,
    options: {
      backend: {
        type: "string",
        default: kernels.backends().find((name) => name.startsWith("cpu")) ?? "cpu",
      },
      threads: { type: "string", default: [...new Set([1, availableParallelism()])].join() },
      compute: { type: "string", default: "float32,bfloat16" },
      products: { type: "string" },
      seconds: { type: "string", default: "0.3" },
      json: { type: "string" },
    },
  });
  if (values.products && !kernels.chooseBfloat16Kernel(values.products as "amx"))
    throw new Error(
      `--products ${values.products}: this machine has no such way, expected amx, dot or convert`,
    );
  const settings: BenchSettings = {
    backend: values.backend,
    computes: values.compute.split(",") as Compute[],
    seconds: Number(values.seconds),
  };
  const missing = opsWithoutBench(settings.backend);
  if (missing.length > 0) throw new Error(`no bench for ${missing.join(", ")}: add one to bench/ops/`);
  const ceilings = values.threads.split(",").map((threads) => new Ceilings(Number(threads)));
  console.log(`${settings.backend}, ${cpus()[0]?.model.trim()}`);
  const results: BenchResult[] = [];
  for (const bench of benches) {
    for (const result of measure(bench, settings, ceilings)) {
      results.push(result);
      console.log(lineOf(result));
    }
  }
  if (values.json) {
    const machine = { backend: settings.backend, cpu: cpus()[0]?.model, cores: cpus().length };
    writeFileSync(
      values.json,
      `${JSON.stringify({ ...machine, loadAverage: loadavg()[0], results }, null, 1)}\n`,
    );
  }
}

function runScript(name: string, options: string[]): void {
  const file = fileURLToPath(new URL(`./${name}.ts`, import.meta.url));
  const run = spawnSync(process.execPath, ["--import", "tsx", file, ...options], { stdio: "inherit" });
  if (run.status !== 0) process.exitCode = 1;
}

function main(words: string[]): void {
  const firstOption = words.findIndex((word) => word.startsWith("-"));
  const given = firstOption < 0 ? words : words.slice(0, firstOption);
  const options = firstOption < 0 ? [] : words.slice(firstOption);
  const names = given.length > 0 ? given : [...Object.keys(opBenches), ...SCRIPTS];
  const unknown = names.find((name) => !SCRIPTS.includes(name) && !benchesNamed(name));
  if (unknown) {
    const known = [...Object.keys(opBenches), ...SCRIPTS].join(", ");
    throw new Error(`no benchmark "${unknown}"; there are ${known}, and every op by its name`);
  }
  const benches = names.flatMap((name) => benchesNamed(name) ?? []);
  if (benches.length > 0) runOps(benches, options);
  // Without a name every script runs, with its own defaults: the options are those of the tables.
  for (const name of names) if (SCRIPTS.includes(name)) runScript(name, given.length > 0 ? options : []);
}

main(process.argv.slice(2));
