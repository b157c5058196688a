import type { InspectedExample, InspectedSequence, LengthBin } from "../data/inspect.ts";
import { describePlace } from "../data/readers.ts";
import type { BadRow } from "../data/types.ts";
import type { StageInspection } from "../pipeline/inspect-stage.ts";
import { describeReport, describeTokenized } from "../pipeline/settings.ts";

export interface InspectionTextOptions {
  /** What is learnt is green; otherwise it stands in ⟦ ⟧. */
  readonly color: boolean;
  /** Lists every token. */
  readonly tokens: boolean;
}

const GREEN = "\u001b[32m";
const DIM = "\u001b[2m";
const RESET = "\u001b[0m";
const BAR = 40;

/** Control characters as they are written in code, so that data cannot steer the terminal. */
function visible(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => {
    if (character === "\n") return character;
    return character === "\t" ? "\\t" : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

function markedText(sequence: InspectedSequence, color: boolean): string {
  const parts = sequence.parts.map(({ text, learnt }) => {
    const shown = visible(text);
    if (color) return `${learnt ? GREEN : DIM}${shown}${RESET}`;
    return learnt ? `⟦${shown}⟧` : shown;
  });
  return parts.join("");
}

function indented(text: string): string {
  return text.replace(/^/gm, "    ");
}

function tokenTable(sequence: InspectedSequence): string[] {
  return sequence.tokens.map((id, index) => {
    const learnt = sequence.lossMask[index] === 1 ? "learnt" : "";
    const piece = JSON.stringify(sequence.pieces[index]);
    return `    ${String(index).padStart(5)} ${String(id).padStart(8)} ${learnt.padEnd(6)} ${piece}`;
  });
}

function sequenceLines(sequence: InspectedSequence, options: InspectionTextOptions): string[] {
  const learnt = sequence.lossMask.reduce((sum, bit) => sum + bit, 0);
  const role = sequence.role === "" ? "" : `${sequence.role}: `;
  return [
    `  ${role}${sequence.tokens.length} tokens, ${sequence.promptLength} of the prompt, ${learnt} learnt`,
    indented(markedText(sequence, options.color)),
    ...(options.tokens ? tokenTable(sequence) : []),
  ];
}

function exampleLines(example: InspectedExample, index: number, options: InspectionTextOptions): string[] {
  const place = example.place ? ` (${describePlace(example.place)})` : "";
  return [
    "",
    `example ${index + 1}${place}`,
    ...example.sequences.flatMap((sequence) => sequenceLines(sequence, options)),
  ];
}

function histogramLines(bins: readonly LengthBin[]): string[] {
  const most = Math.max(...bins.map((bin) => bin.count));
  const width = String(bins.at(-1)?.to ?? 0).length;
  return bins.map(({ from, to, count }) => {
    const bar = "█".repeat(Math.ceil((BAR * count) / most));
    return `  ${String(from).padStart(width)}–${String(to).padEnd(width)} ${bar} ${count}`;
  });
}

function problemLines(rows: readonly BadRow[], kind: string, count: number): string[] {
  const lines = rows.map((row) => `  ${describePlace(row)}: ${kind}: ${visible(row.reason)}`);
  return count > rows.length ? [...lines, `  … and ${count - rows.length} more ${kind}`] : lines;
}

/** An inspection as text for a terminal or a file. */
export function describeInspection(inspection: StageInspection, options: InspectionTextOptions): string {
  const { data, training, maxLength, trainRows, evalRows } = inspection;
  const { report, passes } = training;
  const percent = (share: number): string => `${Math.round(100 * share)} %`;
  const notTokenised = report.firstDropped.map(({ row, place, reason }) => ({
    ...(place ?? { file: "row", line: row + 1 }),
    reason,
  }));
  const lines = [
    `${describeReport(data)} (${data.formats.join(", ")})`,
    ...problemLines(data.firstBadRows, "bad", data.badRows),
    ...(data.badRows > 0 ? ['  bad rows stop training unless on_bad_row is "skip"'] : []),
    ...problemLines(data.firstDroppedRows, "dropped", data.droppedRows),
    `split: ${trainRows} rows to train on, ${evalRows} held out`,
    `${describeTokenized(report)}; ${training.learntTokens} learnt (${percent(training.learntTokens / report.tokens)})`,
    ...problemLines(notTokenised, "left out", report.dropped + (report.identical ?? 0)),
    `lengths of ${training.sequences} sequences: ${training.shortest} to ${training.longest}, median ${training.median}, mean ${training.mean.toFixed(1)}; max_length ${maxLength}`,
    ...histogramLines(training.histogram),
    ...(passes
      ? [`a step takes ${passes.passesPerStep.toFixed(1)} forward passes, each ${percent(passes.fill)} full`]
      : []),
    ...training.examples.flatMap((example, index) => exampleLines(example, index, options)),
  ];
  return `${lines.join("\n")}\n`;
}
