import { RlhfError } from "../errors.ts";

/** One sequence to pack. */
export interface SequenceInput {
  readonly tokens: Int32Array | readonly number[];
  /** Tokens before the response; the mask is 1 from here on. Default 0 (all but the first token). */
  readonly promptLength?: number;
  /** Uint8Array[length]: which tokens count, in place of promptLength. */
  readonly lossMask?: Uint8Array;
}

/** Sequences one after another, without padding. */
export interface PackedBatch {
  /** Int32Array[N]. */
  readonly tokens: Int32Array;
  /** Int32Array[S+1]: where each sequence begins; the last element is N. */
  readonly offsets: Int32Array;
  /** Float32Array[N]: 1 at the tokens that count. Never a sequence's first token, which nothing predicts. */
  readonly mask: Float32Array;
  /** S. */
  readonly sequences: number;
}

/**
 * Packs sequences into one batch. Throws ERR_RLHF_SHAPE for an empty batch or sequence or a mask of another length, and
 * ERR_RLHF_ARGUMENT for a token that is not a non-negative integer.
 */
export function packSequences(sequences: readonly SequenceInput[]): PackedBatch {
  if (sequences.length === 0) throw new RlhfError("ERR_RLHF_SHAPE", "packSequences: no sequence was given");
  const offsets = new Int32Array(sequences.length + 1);
  sequences.forEach((sequence, index) => {
    if (sequence.tokens.length === 0)
      throw new RlhfError("ERR_RLHF_SHAPE", `packSequences: sequence ${index} is empty`, { sequence: index });
    offsets[index + 1] = (offsets[index] as number) + sequence.tokens.length;
  });
  const tokens = new Int32Array(offsets[sequences.length] as number);
  const mask = new Float32Array(tokens.length);
  sequences.forEach((sequence, index) => {
    const start = offsets[index] as number;
    const length = sequence.tokens.length;
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
      mask[start] = 0;
    } else {
      mask.fill(1, start + Math.max(1, Math.min(sequence.promptLength ?? 0, length)), start + length);
    }
  });
  return { tokens, offsets, mask, sequences: sequences.length };
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

/** The indices of the tokens that can be predicted (all but the first of each sequence), or only of those in the mask. */
export function predictionsOf(batch: PackedBatch, which: "all" | "masked"): Int32Array {
  const first = new Uint8Array(batch.tokens.length);
  for (let s = 0; s < batch.sequences; s++) first[batch.offsets[s] as number] = 1;
  const indices: number[] = [];
  for (let t = 0; t < batch.tokens.length; t++) {
    if (!first[t] && (which === "all" || batch.mask[t] !== 0)) indices.push(t);
  }
  return Int32Array.from(indices);
}

/** The index of each sequence's last token. */
export function lastTokens(batch: PackedBatch): Int32Array {
  return batch.offsets.slice(1).map((end) => end - 1);
}
