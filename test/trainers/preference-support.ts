import type { TokenizedExample } from "../../lib/data/types.ts";
import {
  type CausalLM,
  type PreferenceRow,
  type ProgressReporter,
  packSequences,
  type UnpairedRow,
} from "../../lib/index.ts";
import { preferenceRows } from "./support.ts";

export const HELD_OUT: PreferenceRow[] = preferenceRows.slice(0, 4);
export const TRAIN: PreferenceRow[] = preferenceRows.slice(4);

/** The loss of a policy that is its reference still, as the engine's float32 has it. */
export const LOG_2 = Math.fround(Math.LN2);

/** The log-prob of an answer: Σ over its tokens, computed from the low level. */
export async function answerLogProb(
  model: CausalLM,
  example: TokenizedExample,
  adapter?: string,
): Promise<number> {
  using pass = await model.forward(packSequences([example]), { adapter });
  const logProb = await pass.logProb();
  return example.lossMask.reduce((sum, bit, t) => sum + bit * (logProb[t] as number), 0);
}

/** Keeps the lines that a trainer tells. */
export function notesOf(): { notes: string[]; progress: ProgressReporter } {
  const notes: string[] = [];
  return { notes, progress: { update() {}, note: (text) => void notes.push(text), finish() {} } };
}

/** The answers of pairs, each by itself with a thumb up or down. */
export function thumbsOf(pairs: readonly PreferenceRow[]): UnpairedRow[] {
  return pairs.flatMap(({ prompt, chosen, rejected }) => [
    { prompt, completion: chosen, label: true },
    { prompt, completion: rejected, label: false },
  ]);
}

export const UNPAIRED = thumbsOf(TRAIN);
