import type { Mutant } from "./source.ts";

/** Mutants that change nothing but how much is done for nothing, and why that is so. */
export interface Equivalent {
  readonly file: string;
  /** The line, without the space around it. */
  readonly text: string;
  /** Those of the line that this is said of. */
  readonly changes: readonly string[];
  readonly reason: string;
}

/** The entry of a mutant, if there is one. */
export function entryOf(
  entries: readonly Equivalent[],
  mutant: Pick<Mutant, "file" | "text" | "change">,
): Equivalent | undefined {
  return entries.find(
    ({ file, text, changes }) =>
      file === mutant.file && text === mutant.text && changes.includes(mutant.change),
  );
}

/** The entries, a change each, that no mutant of the sources answers to. */
export function unmatchedEntries(entries: readonly Equivalent[], mutants: readonly Mutant[]): Equivalent[] {
  return entries
    .flatMap((entry) => entry.changes.map((change) => ({ ...entry, changes: [change] })))
    .filter((entry) => !mutants.some((mutant) => entryOf([entry], mutant)));
}
