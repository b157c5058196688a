/**
 * Mutation testing of the CUDA sources on the emulator: every barrier deleted, every wait one group shallower, every bound of a
 * comparison moved by one either way. Which of these does the suite notice?
 *
 *   npm run mutants [-- FILE…] [--survivors] [--list] [--jobs N]
 *
 * FILE is a part of a source's name ("attention", "prim/"). bench/results/mutants.json is the record of the last run of all; --survivors runs
 * again what that one left, and brings it up to date. Exit code 1 if less than 95 % are noticed, or if equivalent.json holds what is not so.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type Equivalent, entryOf, unmatchedEntries } from "./equivalent.ts";
import {
  type Counts,
  kindOf,
  type MutantRecord,
  type Result,
  readRecord,
  recordOfAll,
  shareOf,
  sumOf,
  withSurvivorsAgain,
  writeRecord,
} from "./record.ts";
import { Runner } from "./runner.ts";
import { kernelFiles, type Mutant, operatorsOf } from "./source.ts";
import { mutatedSources } from "./tree.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const WORK = join(ROOT, "build", "mutants");
const CUDA = join(ROOT, "csrc", "cuda");
const RESULTS = join(ROOT, "bench", "results", "mutants.json");
const TESTS = [
  "ops/backends",
  "simt/contents",
  "simt/sums",
  "simt/schedules",
  "simt/apart",
  "simt/hopper",
  "simt/hopper-head",
  "simt/hopper-attention",
  "simt/tiles",
  "ops/invariance",
].map((name) => join(ROOT, "test", `${name}.test.ts`));
const REQUIRED_SHARE = 0.95;

/** Writes a file unless it has this content already: the build goes by the times of files. */
function writeIfChanged(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  if (!existsSync(path) || readFileSync(path, "utf8") !== text) writeFileSync(path, text);
}

/** csrc/cuda with all mutants in it, in a tree of its own. */
function writeSources(): Mutant[] {
  const { files, mutants } = mutatedSources(ROOT);
  for (const [file, text] of files) writeIfChanged(join(WORK, "source", "cuda", file), text);
  return mutants;
}

function build(): void {
  const { runCmake } = createRequire(import.meta.url)("../build-native.cjs") as {
    runCmake(folder: string, options: Readonly<Record<string, string>>, target: string): void;
  };
  const options = {
    RLHF_CUDA: "OFF",
    RLHF_EMULATED_ROOT: join(WORK, "source"),
    RLHF_OUTPUT_DIRECTORY: join(WORK, "Release"),
    RLHF_KERNELS_OUTPUT_DIRECTORY: join(WORK, "kernels"),
  };
  runCmake("cmake-mutants", options, "rlhf_kernels");
}

/** The titles of the tests that run any of these ops on the emulator. */
const testsOf = (operators: readonly string[]): string => `^(?!ops on ref).*\\b(${operators.join("|")})\\b`;

const describeMutant = ({ file, line, change, text }: Mutant): string =>
  `${file}:${line}: ${change}\n           ${text}`;

/** The unchanged code must pass; its slowest test says how long one may take, which is the result, in milliseconds. */
async function calibrate(runner: Runner, tests: string): Promise<number> {
  const { outcome, test, message, passed, slowestMs } = await runner.run({ mutant: -1, tests });
  if (outcome !== "survived")
    throw new Error(`without any mutant, ${test || "a test"} ${outcome}: ${message}`);
  const limitMs = 10_000 + 10 * slowestMs;
  process.stdout.write(`without any mutant ${passed} tests pass; one that takes ${limitMs} ms hangs\n`);
  return limitMs;
}

async function runAll(
  mutants: readonly Mutant[],
  equivalents: readonly Equivalent[],
  jobs: number,
): Promise<Result[]> {
  const operators = new Map(kernelFiles(CUDA).map((file) => [file, operatorsOf(CUDA, file)]));
  const files = new Set(mutants.map(({ file }) => file));
  const concerned = [...files].flatMap((file) => operators.get(file)!);
  const results: Result[] = [];
  const waiting = [...mutants];
  const worker = join(import.meta.dirname, "worker.ts");
  const runners = Array.from(
    { length: jobs },
    () => new Runner(worker, TESTS, { RLHF_BUILD_DIR: WORK, RLHF_TEST_BACKENDS: "simt" }),
  );
  const limitMs = await calibrate(runners[0]!, testsOf([...new Set(concerned)]));
  const work = async (runner: Runner): Promise<void> => {
    runner.limitMs = limitMs;
    for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
      const verdict = await runner.run({ mutant: mutant.id, tests: testsOf(operators.get(mutant.file)!) });
      const result = { mutant, verdict, equivalent: entryOf(equivalents, mutant) };
      results.push(result);
      process.stdout.write(`${lineOf(result)}\n`);
    }
    runner.close();
  };
  await Promise.all(runners.map(work));
  return results;
}

function lineOf(result: Result): string {
  const { mutant, verdict } = result;
  const { outcome, test } = verdict;
  const kind = kindOf(result);
  if (kind !== "killed") return `${kind === "equivalent" ? kind : "SURVIVED  "} ${describeMutant(mutant)}`;
  return `${outcome.padEnd(10)} ${describeMutant(mutant)}\n           by ${test}`;
}

function printCounts(files: MutantRecord["files"]): void {
  const print = (name: string, { killed, survived, equivalent }: Counts): void =>
    void process.stdout.write(
      `${name.padEnd(24)} ${[killed, survived, equivalent].map((count) => String(count).padStart(10)).join(" ")}\n`,
    );
  process.stdout.write(`\n${"file".padEnd(24)}     killed   survived equivalent\n`);
  for (const [name, counts] of Object.entries(files)) print(name, counts);
  const total = sumOf(files);
  print("all", total);
  process.stdout.write(`${(100 * shareOf(total)).toFixed(1)} % of what is not equivalent was killed\n`);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      jobs: { type: "string", default: String(availableParallelism()) },
      list: { type: "boolean", default: false },
      survivors: { type: "boolean", default: false },
    },
  });
  const equivalents = JSON.parse(
    readFileSync(join(import.meta.dirname, "equivalent.json"), "utf8"),
  ) as Equivalent[];
  const all = writeSources();
  const unmatched = unmatchedEntries(equivalents, all);
  for (const entry of unmatched)
    process.stderr.write(`equivalent.json: no such mutant: ${JSON.stringify(entry)}\n`);
  const last = values.survivors ? readRecord(RESULTS) : undefined;
  const left = last && new Set(last.survivors.map(keyOf));
  const chosen = all
    .filter(({ file }) => positionals.length === 0 || positionals.some((part) => file.includes(part)))
    .filter((mutant) => left?.has(keyOf(mutant)) ?? true);
  if (values.list)
    return void process.stdout.write(chosen.map((each) => `${describeMutant(each)}\n`).join(""));
  build();

  const results = await runAll(chosen, equivalents, Number(values.jobs));
  const record = last ? withSurvivorsAgain(last, results) : recordOfAll(results);
  printCounts(record.files);
  const refuted = results.filter(({ verdict, equivalent }) => equivalent && verdict.outcome !== "survived");
  for (const { mutant } of refuted)
    process.stderr.write(`equivalent.json: was killed: ${describeMutant(mutant)}\n`);
  if (chosen.length === (left?.size ?? all.length)) writeRecord(RESULTS, record);
  if (record.killedShare < REQUIRED_SHARE || unmatched.length > 0 || refuted.length > 0) process.exitCode = 1;
}

/** What identifies a mutant from one run to the next. */
const keyOf = ({ file, text, change }: Pick<Mutant, "file" | "text" | "change">): string =>
  [file, text, change].join();

await main();
