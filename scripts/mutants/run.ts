/**
 * Mutation testing of the CUDA sources on the emulator: every barrier deleted, every wait one group shallower, every bound of a
 * comparison moved by one either way. Which of these does the suite notice?
 *
 *   npm run mutants                        those of the files that changed since their mutants were last run
 *   npm run mutants -- --all | FILE…       those of all files, or of files by a part of their names ("attention", "prim/")
 *   npm run mutants -- --list              only names them                              further: --jobs N
 *
 * bench/results/mutants.json has the last run of each file, written as soon as the file is done, so that a run that was cut off goes on with the
 * rest. Exit code 1 if less than 95 % are noticed, or if equivalent.json holds what is not so.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type Equivalent, entryOf, unmatchedEntries } from "./equivalent.ts";
import {
  type Counts,
  changedSince,
  kindOf,
  type MutantRecord,
  type Result,
  readRecord,
  shareOf,
  sumOf,
  withEntries,
  withFile,
  withoutGone,
  writeRecord,
} from "./record.ts";
import { Runner } from "./runner.ts";
import { kernelFiles, type Mutant, operatorsOf } from "./source.ts";
import { type MutatedSources, mutatedSources } from "./tree.ts";

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
function writeSources(): MutatedSources {
  const sources = mutatedSources(ROOT);
  for (const [file, text] of sources.files) writeIfChanged(join(WORK, "source", "cuda", file), text);
  return sources;
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

/** Runs mutants and hands over the results of each file when its last one is known. */
async function runAll(
  mutants: readonly Mutant[],
  equivalents: readonly Equivalent[],
  jobs: number,
  finishFile: (file: string, results: readonly Result[]) => void,
): Promise<Result[]> {
  const operators = new Map(kernelFiles(CUDA).map((file) => [file, operatorsOf(CUDA, file)]));
  const concerned = [...new Set(mutants.map(({ file }) => file))].flatMap((file) => operators.get(file)!);
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
      const { id, file } = mutant;
      const verdict = await runner.run({ mutant: id, tests: testsOf(operators.get(file)!) });
      const result = { mutant, verdict, equivalent: entryOf(equivalents, mutant) };
      results.push(result);
      process.stdout.write(`${lineOf(result)}\n`);
      const ofFile = results.filter((each) => each.mutant.file === file);
      if (ofFile.length === mutants.filter((each) => each.file === file).length) finishFile(file, ofFile);
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

function printCounts({ files }: MutantRecord): void {
  const print = (name: string, { killed, survived, equivalent }: Counts): void =>
    void process.stdout.write(
      `${name.padEnd(32)} ${[killed, survived, equivalent].map((count) => String(count).padStart(10)).join(" ")}\n`,
    );
  process.stdout.write(`\n${"file".padEnd(32)}     killed   survived equivalent\n`);
  for (const [name, counts] of Object.entries(files)) print(name, counts);
  const total = sumOf(Object.values(files));
  print("all", total);
  process.stdout.write(`${(100 * shareOf(total)).toFixed(1)} % of what is not equivalent was killed\n`);
}

/** The files that the command line names. */
function chosenFiles(
  names: readonly string[],
  all: boolean,
  record: MutantRecord,
  { digests, mutants }: MutatedSources,
): Set<string> {
  if (names.length > 0)
    return new Set([...digests.keys()].filter((file) => names.some((part) => file.includes(part))));
  return new Set(all ? digests.keys() : changedSince(record, digests, mutants));
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      jobs: { type: "string", default: String(availableParallelism()) },
      list: { type: "boolean", default: false },
      all: { type: "boolean", default: false },
    },
  });
  const equivalents = JSON.parse(
    readFileSync(join(import.meta.dirname, "equivalent.json"), "utf8"),
  ) as Equivalent[];
  const sources = writeSources();
  const { mutants, digests } = sources;
  const unmatched = unmatchedEntries(equivalents, mutants);
  for (const entry of unmatched)
    process.stderr.write(`equivalent.json: no such mutant: ${JSON.stringify(entry)}\n`);
  let record = withEntries(withoutGone(readRecord(RESULTS), digests), equivalents);
  const files = chosenFiles(positionals, values.all, record, sources);
  const chosen = mutants.filter(({ file }) => files.has(file));
  if (values.list)
    return void process.stdout.write(chosen.map((each) => `${describeMutant(each)}\n`).join(""));

  writeRecord(RESULTS, record);
  const keep = (file: string, results: readonly Result[]): void => {
    record = withFile(record, file, digests.get(file)!, results);
    writeRecord(RESULTS, record);
  };
  for (const file of files) if (!chosen.some((mutant) => mutant.file === file)) keep(file, []);
  if (chosen.length > 0) build();
  const results = chosen.length > 0 ? await runAll(chosen, equivalents, Number(values.jobs), keep) : [];
  printCounts(record);
  for (const file of changedSince(record, digests, mutants))
    process.stdout.write(`${file} has changed since its mutants were run\n`);
  const refuted = results.filter(({ verdict, equivalent }) => equivalent && verdict.outcome !== "survived");
  for (const { mutant } of refuted)
    process.stderr.write(`equivalent.json: was killed: ${describeMutant(mutant)}\n`);
  if (record.killedShare < REQUIRED_SHARE || unmatched.length > 0 || refuted.length > 0) process.exitCode = 1;
}

await main();
