import type { PackedBatch } from "../model/batch.ts";
import type { Rollout } from "./rollouts.ts";

/** Whether there is a place after a rollout's end: where it was cut off, there is none. */
export function hasEndPlace(rollout: Rollout | undefined): boolean {
  return rollout?.finishReason === "stop";
}

/**
 * A packed batch with one row more behind each answer that ended itself: where `rewardPlacement` "after-end" gives the score. The value
 * that belongs to it is the head on the answer's last hidden state, where values of tokens stand too: at the row before.
 */
export class EndPlaces {
  /** Int32Array[S+1], of the longer batch. */
  readonly offsets: Int32Array;
  /** Float32Array[N + places]: 1 at response tokens and at the new rows. */
  readonly mask: Float32Array;
  readonly #rows: Int32Array;
  /** The new row of each sequence; −1 for none. */
  readonly #ends: Int32Array;

  constructor({ offsets, mask, sequences }: PackedBatch, rollouts: readonly Rollout[]) {
    this.offsets = new Int32Array(sequences + 1);
    this.#rows = new Int32Array(mask.length);
    this.#ends = new Int32Array(sequences).fill(-1);
    let row = 0;
    for (let s = 0; s < sequences; s++) {
      for (let t = offsets[s] as number; t < (offsets[s + 1] as number); t++) this.#rows[t] = row++;
      if (hasEndPlace(rollouts[s])) this.#ends[s] = row++;
      this.offsets[s + 1] = row;
    }
    this.mask = new Float32Array(row);
    this.#rows.forEach((at, t) => {
      this.mask[at] = mask[t] as number;
    });
    for (const at of this.#ends) if (at >= 0) this.mask[at] = 1;
  }

  /** A per-token array of the batch, with what `ends` has for the sequence, or 0, in the new rows. */
  insert(values: Float32Array, ends?: Float32Array): Float32Array {
    const longer = new Float32Array(this.mask.length);
    this.#rows.forEach((at, t) => {
      longer[at] = values[t] as number;
    });
    this.#ends.forEach((at, s) => {
      if (ends && at >= 0) longer[at] = ends[s] as number;
    });
    return longer;
  }

  /** A per-token array without the new rows. */
  remove(longer: Float32Array): Float32Array {
    return Float32Array.from(this.#rows, (at) => longer[at] as number);
  }

  /** What stands in the new rows, Float32Array[S]; 0 for sequences without one. */
  read(longer: Float32Array): Float32Array {
    return Float32Array.from(this.#ends, (at) => (at < 0 ? 0 : (longer[at] as number)));
  }
}
