import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { type Equivalent, entryOf } from "./equivalent.ts";
import type { Verdict } from "./runner.ts";
import type { Mutant } from "./source.ts";

/** A mutant that was run. */
export interface Result {
  readonly mutant: Mutant;
  readonly verdict: Verdict;
  readonly equivalent: Equivalent | undefined;
}

export interface Counts {
  readonly killed: number;
  readonly survived: number;
  readonly equivalent: number;
}

/** The mutants of a file, and which state of it they were made of. */
export interface FileRecord extends Counts {
  readonly source: string;
}

/** What is known of all mutants: of each file, its last run. */
export interface MutantRecord {
  readonly killedShare: number;
  readonly files: { readonly [file: string]: FileRecord };
  readonly survivors: readonly Pick<Mutant, "file" | "text" | "change">[];
}

/** What became of a mutant. */
export function kindOf({ verdict, equivalent }: Pick<Result, "verdict" | "equivalent">): keyof Counts {
  if (verdict.outcome !== "survived") return "killed";
  return equivalent ? "equivalent" : "survived";
}

export function countsOf(results: readonly Result[]): Counts {
  const counts = { killed: 0, survived: 0, equivalent: 0 };
  for (const result of results) counts[kindOf(result)]++;
  return counts;
}

export function sumOf(files: readonly Counts[]): Counts {
  const total = { killed: 0, survived: 0, equivalent: 0 };
  for (const counts of files)
    for (const key of ["killed", "survived", "equivalent"] as const) total[key] += counts[key];
  return total;
}

/** The share of the mutants that are not equivalent; 1 where there are none. */
export const shareOf = ({ killed, survived }: Counts): number =>
  killed + survived > 0 ? killed / (killed + survived) : 1;

const recordOf = (
  files: readonly (readonly [string, FileRecord])[],
  survivors: MutantRecord["survivors"],
): MutantRecord => ({
  killedShare: Number(shareOf(sumOf(files.map(([, counts]) => counts))).toFixed(4)),
  files: Object.fromEntries(files.toSorted(([a], [b]) => (a < b ? -1 : 1))),
  survivors,
});

/** The record once all mutants of `file` have been run, made of its state `source`. */
export function withFile(
  record: MutantRecord,
  file: string,
  source: string,
  results: readonly Result[],
): MutantRecord {
  const files = Object.entries({ ...record.files, [file]: { ...countsOf(results), source } });
  const left = results
    .filter((result) => kindOf(result) === "survived")
    .sort((a, b) => a.mutant.id - b.mutant.id)
    .map(({ mutant: { text, change } }) => ({ file, text, change }));
  return recordOf(files, [...record.survivors.filter((survivor) => survivor.file !== file), ...left]);
}

/** The record with those that survived, and have an entry since, counted as equivalent: a run of them again would say no more. */
export function withEntries(record: MutantRecord, entries: readonly Equivalent[]): MutantRecord {
  const named = record.survivors.filter((survivor) => entryOf(entries, survivor));
  const recount = ([file, counts]: [string, FileRecord]): [string, FileRecord] => {
    const found = named.filter((survivor) => survivor.file === file).length;
    return [file, { ...counts, survived: counts.survived - found, equivalent: counts.equivalent + found }];
  };
  const left = record.survivors.filter((survivor) => !named.includes(survivor));
  return recordOf(Object.entries(record.files).map(recount), left);
}

/** The files of which the record does not tell, or only of another state than `digests` has, or of more or fewer mutants. */
export function changedSince(
  record: MutantRecord,
  digests: ReadonlyMap<string, string>,
  mutants: readonly Pick<Mutant, "file">[],
): string[] {
  const isKnown = ([file, source]: readonly [string, string]): boolean => {
    const known = record.files[file];
    if (known?.source !== source) return false;
    const count = mutants.filter((mutant) => mutant.file === file).length;
    return known.killed + known.survived + known.equivalent === count;
  };
  return [...digests].filter((each) => !isKnown(each)).map(([file]) => file);
}

/** The record without files that are no more. */
export function withoutGone(record: MutantRecord, digests: ReadonlyMap<string, string>): MutantRecord {
  const files = Object.entries(record.files).filter(([file]) => digests.has(file));
  return recordOf(
    files,
    record.survivors.filter(({ file }) => digests.has(file)),
  );
}

export const readRecord = (path: string): MutantRecord =>
  existsSync(path)
    ? (JSON.parse(readFileSync(path, "utf8")) as MutantRecord)
    : { killedShare: 1, files: {}, survivors: [] };

export const writeRecord = (path: string, record: MutantRecord): void =>
  writeFileSync(path, `${JSON.stringify(record, null, 2)}\n`);
