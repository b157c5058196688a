/**
 * Mutation testing of the CUDA sources on the emulator: every barrier deleted, every wait one group shallower, every bound of a
 * comparison moved by one either way. Which of these does the suite notice?
 *
 *   npm run mutants [-- FILE…] [--survivors] [--list] [--jobs N]
 *
 * FILE is a part of a source's name ("attention", "prim/"); --survivors takes those that the last run left. All of them together are written to bench/results/mutants.json. Exit code 1
 * if less than 95 % are noticed, or if equivalent.json holds what is not so.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type Equivalent, entryOf, unmatchedEntries } from "./equivalent.ts";
import { Runner, type Verdict } from "./runner.ts";
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

interface Result {
  readonly mutant: Mutant;
  readonly verdict: Verdict;
  readonly equivalent: Equivalent | undefined;
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

function lineOf({ mutant, verdict, equivalent }: Result): string {
  const { outcome, test } = verdict;
  if (outcome === "survived") return `${equivalent ? "equivalent" : "SURVIVED  "} ${describeMutant(mutant)}`;
  return `${outcome.padEnd(10)} ${describeMutant(mutant)}\n           by ${test}`;
}

interface Counts {
  killed: number;
  survived: number;
  equivalent: number;
}

function countByFile(results: readonly Result[]): Record<string, Counts> {
  const files: Record<string, Counts> = {};
  for (const { mutant, verdict, equivalent } of results) {
    files[mutant.file] ??= { killed: 0, survived: 0, equivalent: 0 };
    const counts = files[mutant.file]!;
    if (verdict.outcome !== "survived") counts.killed++;
    else if (equivalent) counts.equivalent++;
    else counts.survived++;
  }
  return Object.fromEntries(Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Prints the counts of each file and of all; returns those of all. */
function printCounts(files: Readonly<Record<string, Counts>>): Counts {
  const total: Counts = { killed: 0, survived: 0, equivalent: 0 };
  const print = (name: string, { killed, survived, equivalent }: Counts): void =>
    void process.stdout.write(
      `${name.padEnd(24)} ${[killed, survived, equivalent].map((count) => String(count).padStart(10)).join(" ")}\n`,
    );
  process.stdout.write(`\n${"file".padEnd(24)}     killed   survived equivalent\n`);
  for (const [name, counts] of Object.entries(files)) {
    print(name, counts);
    for (const key of ["killed", "survived", "equivalent"] as const) total[key] += counts[key];
  }
  print("all", total);
  return total;
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
  const left = values.survivors ? lastSurvivors() : undefined;
  const chosen = all
    .filter(({ file }) => positionals.length === 0 || positionals.some((part) => file.includes(part)))
    .filter(({ file, text, change }) => left?.has([file, text, change].join()) ?? true);
  if (values.list)
    return void process.stdout.write(chosen.map((each) => `${describeMutant(each)}\n`).join(""));
  build();

  const results = await runAll(chosen, equivalents, Number(values.jobs));
  const files = countByFile(results);
  const { killed, survived } = printCounts(files);
  const share = killed / (killed + survived);
  process.stdout.write(`${(100 * share).toFixed(1)} % of what is not equivalent was killed\n`);
  const refuted = results.filter(({ verdict, equivalent }) => equivalent && verdict.outcome !== "survived");
  for (const { mutant } of refuted)
    process.stderr.write(`equivalent.json: was killed: ${describeMutant(mutant)}\n`);
  if (chosen.length === all.length) writeResults(results, files, share);
  if (share < REQUIRED_SHARE || unmatched.length > 0 || refuted.length > 0) process.exitCode = 1;
}

/** What the last run of all mutants left, as writeResults() names it. */
function lastSurvivors(): Set<string> {
  const { survivors } = JSON.parse(readFileSync(RESULTS, "utf8")) as {
    survivors: Pick<Mutant, "file" | "text" | "change">[];
  };
  return new Set(survivors.map(({ file, text, change }) => [file, text, change].join()));
}

function writeResults(results: readonly Result[], files: Record<string, Counts>, share: number): void {
  const survivors = results
    .filter(({ verdict, equivalent }) => verdict.outcome === "survived" && !equivalent)
    .sort((a, b) => a.mutant.id - b.mutant.id)
    .map(({ mutant: { file, text, change } }) => ({ file, text, change }));
  const ways = { failed: 0, crashed: 0, hung: 0 };
  for (const { verdict } of results) if (verdict.outcome !== "survived") ways[verdict.outcome]++;
  const result = {
    mutants: results.length,
    killedShare: Number(share.toFixed(4)),
    killedBy: ways,
    files,
    survivors,
  };
  writeFileSync(RESULTS, `${JSON.stringify(result, null, 2)}\n`);
}

await main();
