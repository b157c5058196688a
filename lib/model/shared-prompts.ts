import { RlhfError } from "../errors.ts";
import { type PackedBatch, packSequences, type SequenceInput } from "./batch.ts";

/** A prompt and the answers to it, as tokens. */
export interface SharedPrompt {
  readonly prompt: Int32Array | readonly number[];
  readonly answers: readonly (Int32Array | readonly number[])[];
}

/** A batch that holds each prompt once, before its answers. */
export interface PackedAnswers extends PackedBatch {
  readonly parents: Int32Array;
  /** Int32Array[A]: the sequence that each answer is, prompt after prompt in the order given. */
  readonly answers: Int32Array;
}

/**
 * Packs prompts with several answers each (the two of a preference pair, or G samples), so that a prompt is computed once, forward
 * and backward. Log-probs, entropies and values of the answers' tokens have the same bits as those of packSequences() over
 * prompt + answer. The mask is 1 at all tokens of answers. Throws ERR_RLHF_SHAPE for an empty prompt or answer or a prompt without
 * answers, and what packSequences throws.
 */
export function packAnswers(prompts: readonly SharedPrompt[]): PackedAnswers {
  const sequences: SequenceInput[] = [];
  const answers: number[] = [];
  prompts.forEach(({ prompt, answers: own }, index) => {
    const fail = (what: string): never => {
      throw new RlhfError("ERR_RLHF_SHAPE", `packAnswers: ${what}`, { prompt: index });
    };
    if (prompt.length === 0) fail(`prompt ${index} is empty`);
    if (own.length === 0) fail(`prompt ${index} has no answers`);
    const parent = sequences.length;
    sequences.push({ tokens: prompt, promptLength: prompt.length });
    own.forEach((tokens, position) => {
      if (tokens.length === 0) fail(`answer ${position} of prompt ${index} is empty`);
      answers.push(sequences.length);
      sequences.push({ tokens, parent });
    });
  });
  const batch = packSequences(sequences);
  return { ...batch, parents: batch.parents as Int32Array, answers: Int32Array.from(answers) };
}

/** Per-token values of a batch, cut into one array per answer with one value per token of it. */
export function answerValues(batch: PackedAnswers, values: Float32Array): Float32Array[] {
  if (values.length !== batch.tokens.length)
    throw new RlhfError(
      "ERR_RLHF_SHAPE",
      `answerValues: the batch has ${batch.tokens.length} tokens, but ${values.length} values were given`,
    );
  return Array.from(batch.answers, (s) => values.slice(batch.offsets[s], batch.offsets[s + 1]));
}
