import { epochBatches, planMicroBatches } from "./batching.ts";
import { breather } from "./breathe.ts";
import { Random } from "./random.ts";
import { placeOf } from "./readers.ts";
import { type RowTokenizer, type TokenizeReport, TokenizeTally } from "./tokenize-rows.ts";
import type { RowPlace, TokenizedExample, TokenizedPreference, TokenizedPrompt } from "./types.ts";

/** A run of tokens that are all learnt, or none of them. */
export interface InspectedPart {
  readonly text: string;
  readonly learnt: boolean;
}

/** One sequence of an example. */
export interface InspectedSequence {
  /** What it is in its example: "chosen", "rejected", "label false", … */
  readonly role: string;
  readonly tokens: readonly number[];
  /** The content of each token, as the vocabulary spells it. */
  readonly pieces: readonly string[];
  /** 1 where a token is learnt. */
  readonly lossMask: readonly number[];
  readonly promptLength: number;
  readonly parts: readonly InspectedPart[];
}

/** One example as the trainer gets it. */
export interface InspectedExample {
  readonly place: RowPlace | null;
  readonly sequences: readonly InspectedSequence[];
}

/** Sequences by length. */
export interface LengthBin {
  /** Shortest and longest length that counts here. */
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

/** How the steps of the first epoch are cut into forward passes. */
export interface InspectedPasses {
  readonly passesPerStep: number;
  /** Share of microBatchTokens that a pass holds, on average. */
  readonly fill: number;
}

/** What a trainer sees of a data set. */
export interface Inspection {
  readonly report: TokenizeReport;
  readonly learntTokens: number;
  readonly sequences: number;
  readonly shortest: number;
  readonly median: number;
  readonly longest: number;
  readonly mean: number;
  readonly histogram: readonly LengthBin[];
  readonly passes: InspectedPasses | null;
  readonly examples: readonly InspectedExample[];
}

export interface InspectOptions {
  /** Examples to show. Default 3. */
  readonly examples?: number;
  /** Draws the examples at random; left out: the first ones. */
  readonly seed?: number;
  /** Examples of a step and most tokens of a pass, to tell how passes are filled. */
  readonly batchSize?: number;
  readonly microBatchTokens?: number;
}

/** What decoding needs of a tokenizer. */
interface Decoder {
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  idToToken(id: number): string | null;
}

/** Examples of every kind. */
export type AnyExample = TokenizedExample | TokenizedPreference | TokenizedPrompt;
type Sequence = TokenizedExample & { readonly role: string };

/** The sequences of an example of any kind. */
function sequencesOf(example: AnyExample): Sequence[] {
  if ("chosen" in example) {
    const { chosen, rejected, tie } = example;
    const [first, second] = tie ? ["tie, first", "tie, second"] : ["chosen", "rejected"];
    return [
      { ...chosen, role: first as string },
      { ...rejected, role: second as string },
    ];
  }
  if ("row" in example) {
    const { tokens } = example;
    return [{ tokens, promptLength: tokens.length, lossMask: new Uint8Array(tokens.length), role: "prompt" }];
  }
  const { label, score } = example as { readonly label?: boolean; readonly score?: number };
  const role = label !== undefined ? `label ${label}` : score !== undefined ? `score ${score}` : "";
  return [{ ...example, role }];
}

/** Text and learnt parts of a sequence, decoded as a continuation of what stands before, since tokens alone may lose spaces. */
function partsOf(tokenizer: Decoder, { tokens, lossMask }: TokenizedExample): InspectedPart[] {
  const parts: InspectedPart[] = [];
  let before = "";
  for (let begin = 0, end = 0; begin < tokens.length; begin = end) {
    while (end < tokens.length && lossMask[end] === lossMask[begin]) end++;
    const until = tokenizer.decode(tokens.subarray(0, end), { skipSpecialTokens: false });
    const text = until.startsWith(before)
      ? until.slice(before.length)
      : tokenizer.decode(tokens.subarray(begin, end), { skipSpecialTokens: false });
    parts.push({ text, learnt: lossMask[begin] === 1 });
    before = until;
  }
  return parts;
}

function show(tokenizer: Decoder, example: AnyExample, row: unknown): InspectedExample {
  return {
    place: (typeof row === "object" && row !== null ? placeOf(row) : undefined) ?? null,
    sequences: sequencesOf(example).map((sequence) => ({
      role: sequence.role,
      tokens: [...sequence.tokens],
      pieces: Array.from(sequence.tokens, (id) => tokenizer.idToToken(id) ?? ""),
      lossMask: [...sequence.lossMask],
      promptLength: sequence.promptLength,
      parts: partsOf(tokenizer, sequence),
    })),
  };
}

const BINS = 12;

/** Lengths in bins of one width, a round number. */
export function lengthHistogram(lengths: readonly number[]): LengthBin[] {
  const longest = lengths.reduce((most, length) => Math.max(most, length), 0);
  const least = longest / BINS;
  const magnitude = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  const width = ([1, 2, 5, 10].find((step) => step * magnitude >= least) ?? 10) * magnitude;
  const bins = Array.from({ length: Math.ceil(longest / width) }, (_, bin) => ({
    from: bin * width + 1,
    to: (bin + 1) * width,
    count: 0,
  }));
  for (const length of lengths) {
    const bin = bins[Math.ceil(length / width) - 1];
    if (bin) bin.count++;
  }
  return bins;
}

/** Steps whose passes are planned: enough for a mean. */
const PLANNED_STEPS = 50;

function passesOf(lengths: readonly number[], options: InspectOptions): InspectedPasses | null {
  const { batchSize, microBatchTokens, seed = 0 } = options;
  if (batchSize === undefined || microBatchTokens === undefined) return null;
  const steps = epochBatches(lengths.length, batchSize, seed, 0).slice(0, PLANNED_STEPS);
  let passes = 0;
  let tokens = 0;
  for (const step of steps) {
    const chosen = Array.from(step, (index) => lengths[index] as number);
    passes += planMicroBatches(chosen, microBatchTokens).length;
    tokens += chosen.reduce((sum, length) => sum + length, 0);
  }
  return { passesPerStep: passes / steps.length, fill: tokens / (passes * microBatchTokens) };
}

/** Keeps a fair draw of some of many items, or the first ones. */
class Sample<Item> {
  readonly items: { readonly at: number; readonly item: Item }[] = [];
  readonly #size: number;
  readonly #random: Random | null;
  #seen = 0;

  constructor(size: number, seed: number | undefined) {
    this.#size = size;
    this.#random = seed === undefined ? null : new Random(seed, "inspect");
  }

  offer(item: Item): void {
    const at = this.#seen++;
    if (this.items.length < this.#size) this.items.push({ at, item });
    else if (this.#random && this.#size > 0) {
      const slot = this.#random.integer(this.#seen);
      if (slot < this.#size) this.items[slot] = { at, item };
    }
  }
}

/**
 * Tokenises rows the way a trainer does and gathers what there is to see; the texts and tokens of the shown examples alone are kept.
 * Throws what reading and tokenising throw.
 */
export async function inspectRows<Row, Example extends AnyExample>(
  rows: Iterable<Row> | AsyncIterable<Row>,
  rowTokenizer: RowTokenizer<Row, Example>,
  tokenizer: Decoder,
  options: InspectOptions = {},
): Promise<Inspection> {
  const tally = new TokenizeTally(rowTokenizer);
  const breathe = breather();
  const lengths: number[] = [];
  const exampleLengths: number[] = [];
  const sample = new Sample<{ row: Row; example: Example }>(options.examples ?? 3, options.seed);
  let learntTokens = 0;
  for await (const row of rows) {
    await breathe();
    const example = tally.add(rowTokenizer, row);
    if (example === null) continue;
    const sequences = sequencesOf(example);
    for (const { tokens, lossMask } of sequences) {
      lengths.push(tokens.length);
      learntTokens += lossMask.reduce((sum, bit) => sum + bit, 0);
    }
    exampleLengths.push(sequences.reduce((sum, { tokens }) => sum + tokens.length, 0));
    sample.offer({ row, example });
  }
  const report = tally.finish();
  const sorted = [...lengths].sort((a, b) => a - b);
  const shown = sample.items.sort((a, b) => a.at - b.at);
  return {
    report,
    learntTokens,
    sequences: lengths.length,
    shortest: sorted[0] as number,
    median: sorted[Math.floor((sorted.length - 1) / 2)] as number,
    longest: sorted.at(-1) as number,
    mean: report.tokens / lengths.length,
    histogram: lengthHistogram(lengths),
    passes: passesOf(exampleLengths, options),
    examples: shown.map(({ item }) => show(tokenizer, item.example, item.row)),
  };
}
