import { RlhfError } from "../errors.ts";

/** One sequence to pack. */
export interface SequenceInput {
  /** With a parent, only what follows the parent's tokens. */
  readonly tokens: Int32Array | readonly number[];
  /** Tokens before the response; the mask is 1 from here on. Default 0 (all that something predicts). */
  readonly promptLength?: number;
  /** Uint8Array[length]: which tokens count, in place of promptLength. */
  readonly lossMask?: Uint8Array;
  /**
   * Index of an earlier sequence of the same call that this one continues: it attends to the parent's tokens, and its positions
   * follow on theirs. A parent has no parent itself. Default: none.
   */
  readonly parent?: number;
}

/** Sequences one after another, without padding. */
export interface PackedBatch {
  /** Int32Array[N]. */
  readonly tokens: Int32Array;
  /** Int32Array[S+1]: where each sequence begins; the last element is N. */
  readonly offsets: Int32Array;
  /** Float32Array[N]: 1 at the tokens that count. Never the first token of a sequence without a parent, which nothing predicts. */
  readonly mask: Float32Array;
  /** S. */
  readonly sequences: number;
  /** Int32Array[S]: the sequence that each one continues, −1 for none. Left out where no sequence has a parent. */
  readonly parents?: Int32Array;
}

/**
 * Packs sequences into one batch. Throws ERR_RLHF_SHAPE for an empty batch or sequence or a mask of another length, and
 * ERR_RLHF_ARGUMENT for a token that is not a non-negative integer and for a parent that does not come before the sequence or has
 * a parent itself.
 */
export function packSequences(sequences: readonly SequenceInput[]): PackedBatch {
  if (!Array.isArray(sequences))
    throw new RlhfError("ERR_RLHF_ARGUMENT", "packSequences: expected a list of sequences, [{ tokens }, …]");
  if (sequences.length === 0) throw new RlhfError("ERR_RLHF_SHAPE", "packSequences: no sequence was given");
  const offsets = new Int32Array(sequences.length + 1);
  sequences.forEach((sequence, index) => {
    if (sequence.tokens.length === 0)
      throw new RlhfError("ERR_RLHF_SHAPE", `packSequences: sequence ${index} is empty`, { sequence: index });
    offsets[index + 1] = (offsets[index] as number) + sequence.tokens.length;
  });
  const parents = parentsOf(sequences);
  const tokens = new Int32Array(offsets[sequences.length] as number);
  const mask = new Float32Array(tokens.length);
  sequences.forEach((sequence, index) => {
    const start = offsets[index] as number;
    const length = sequence.tokens.length;
    const unpredicted = sequence.parent === undefined ? 1 : 0;
    checkTokens(sequence.tokens, index);
    tokens.set(sequence.tokens, start);
    if (sequence.lossMask) {
      if (sequence.lossMask.length !== length)
        throw new RlhfError(
          "ERR_RLHF_SHAPE",
          `packSequences: sequence ${index} has ${length} tokens and a lossMask of ${sequence.lossMask.length}`,
          { sequence: index },
        );
      mask.set(sequence.lossMask, start);
      if (unpredicted) mask[start] = 0;
    } else {
      mask.fill(
        1,
        start + Math.max(unpredicted, Math.min(sequence.promptLength ?? 0, length)),
        start + length,
      );
    }
  });
  return { tokens, offsets, mask, sequences: sequences.length, ...(parents && { parents }) };
}

function checkTokens(tokens: Int32Array | readonly number[], sequence: number): void {
  if (tokens instanceof Int32Array) return;
  const at = tokens.findIndex((token) => !Number.isInteger(token) || token < 0 || token > 0x7fffffff);
  if (at >= 0)
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      `packSequences: token ${at} of sequence ${sequence} is ${tokens[at]}, expected a non-negative integer`,
      { sequence, index: at },
    );
}

function parentsOf(sequences: readonly SequenceInput[]): Int32Array | undefined {
  if (sequences.every((sequence) => sequence.parent === undefined)) return undefined;
  return Int32Array.from(sequences, ({ parent }, index) => {
    if (parent === undefined) return -1;
    const fail = (expected: string): never => {
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `packSequences: the parent of sequence ${index} is ${parent}, expected ${expected}`,
        { sequence: index },
      );
    };
    if (!Number.isInteger(parent) || parent < 0 || parent >= index)
      return fail("the index of an earlier sequence");
    if (sequences[parent]?.parent !== undefined)
      return fail("a sequence without a parent: parents go one level deep");
    return parent;
  });
}

/**
 * The index of the token before each token of the batch, −1 where there is none: what predicts token t is the hidden state at
 * previousTokens(batch)[t], and its value (PPO's V) is the value head's output there. For the first token of a sequence with a
 * parent that is the parent's last token, which its other children share.
 */
export function previousTokens(batch: PackedBatch): Int32Array {
  if (!(batch?.tokens instanceof Int32Array && batch.offsets instanceof Int32Array))
    throw new RlhfError(
      "ERR_RLHF_ARGUMENT",
      "a batch has tokens and offsets, both Int32Array; packSequences makes one from lists of tokens",
    );
  const previous = Int32Array.from(batch.tokens, (_, t) => t - 1);
  for (let s = 0; s < batch.sequences; s++) {
    const parent = batch.parents?.[s] ?? -1;
    previous[batch.offsets[s] as number] = parent < 0 ? -1 : (batch.offsets[parent + 1] as number) - 1;
  }
  return previous;
}

/** The indices of the tokens that can be predicted (all but first tokens without a parent), or only of those in the mask. */
export function predictionsOf(batch: PackedBatch, which: "all" | "masked"): Int32Array {
  const indices: number[] = [];
  for (const [t, previous] of previousTokens(batch).entries()) {
    if (previous >= 0 && (which === "all" || batch.mask[t] !== 0)) indices.push(t);
  }
  return Int32Array.from(indices);
}

/** The rows at which a pass's `values` option wants the head, ascending; undefined for all. */
export function valueRowsOf(batch: PackedBatch, which: "all" | "masked" | "last"): Int32Array | undefined {
  if (which === "all") return undefined;
  const rows = new Set<number>(lastTokens(batch));
  if (which === "masked") {
    const previous = previousTokens(batch);
    for (const token of predictionsOf(batch, "masked")) rows.add(previous[token] as number);
  }
  return Int32Array.from(rows).sort();
}

/** The index of each sequence's last token. */
export function lastTokens(batch: PackedBatch): Int32Array {
  return batch.offsets.slice(1).map((end) => end - 1);
}
