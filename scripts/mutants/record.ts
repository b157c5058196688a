import { readFileSync, writeFileSync } from "node:fs";
import type { Equivalent } from "./equivalent.ts";
import type { Verdict } from "./runner.ts";
import type { Mutant } from "./source.ts";

/** A mutant that was run. */
export interface Result {
  readonly mutant: Mutant;
  readonly verdict: Verdict;
  readonly equivalent: Equivalent | undefined;
}

export interface Counts {
  killed: number;
  survived: number;
  equivalent: number;
}

/** What is kept of a run of all mutants. */
export interface MutantRecord {
  readonly killedShare: number;
  readonly files: Readonly<{ [file: string]: Counts }>;
  readonly survivors: readonly Pick<Mutant, "file" | "text" | "change">[];
}

/** What became of a mutant. */
export function kindOf({ verdict, equivalent }: Pick<Result, "verdict" | "equivalent">): keyof Counts {
  if (verdict.outcome !== "survived") return "killed";
  return equivalent ? "equivalent" : "survived";
}

export function countByFile(results: readonly Result[]): { [file: string]: Counts } {
  const files: { [file: string]: Counts } = {};
  for (const result of results) {
    files[result.mutant.file] ??= { killed: 0, survived: 0, equivalent: 0 };
    files[result.mutant.file]![kindOf(result)]++;
  }
  return Object.fromEntries(Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)));
}

export function sumOf(files: MutantRecord["files"]): Counts {
  const total: Counts = { killed: 0, survived: 0, equivalent: 0 };
  for (const counts of Object.values(files))
    for (const key of ["killed", "survived", "equivalent"] as const) total[key] += counts[key];
  return total;
}

/** The share of the mutants that are not equivalent. */
export const shareOf = ({ killed, survived }: Counts): number => killed / (killed + survived);

const survivorsOf = (results: readonly Result[]): MutantRecord["survivors"] =>
  results
    .filter((result) => kindOf(result) === "survived")
    .sort((a, b) => a.mutant.id - b.mutant.id)
    .map(({ mutant: { file, text, change } }) => ({ file, text, change }));

const recordOf = (files: MutantRecord["files"], survivors: MutantRecord["survivors"]): MutantRecord => ({
  killedShare: Number(shareOf(sumOf(files)).toFixed(4)),
  files,
  survivors,
});

export const recordOfAll = (results: readonly Result[]): MutantRecord =>
  recordOf(countByFile(results), survivorsOf(results));

/** A record after its survivors have been run again. */
export function withSurvivorsAgain(record: MutantRecord, results: readonly Result[]): MutantRecord {
  const files = structuredClone(record.files) as { [file: string]: Counts };
  for (const result of results) {
    files[result.mutant.file]!.survived--;
    files[result.mutant.file]![kindOf(result)]++;
  }
  return recordOf(files, survivorsOf(results));
}

export const readRecord = (path: string): MutantRecord =>
  JSON.parse(readFileSync(path, "utf8")) as MutantRecord;
export const writeRecord = (path: string, record: MutantRecord): void =>
  writeFileSync(path, `${JSON.stringify(record, null, 2)}\n`);
