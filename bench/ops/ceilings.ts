import { kernels } from "../../test/support/kernels.ts";
import type { Compute, Work } from "./op-bench.ts";

/**
 * Measures operations a second on so many threads. In bfloat16x3 one is three in bfloat16; in float32 it is a multiply-add, or six in bfloat16
 * where those are faster.
 */
export const peakOf: Readonly<Record<Compute, (threads: number) => number>> = {
  float32: (threads) => Math.max(kernels.multiplyAddPeak(threads), kernels.bfloat16Peak(threads) / 6),
  bfloat16x3: (threads) => kernels.bfloat16Peak(threads) / 3,
  bfloat16: (threads) => kernels.bfloat16Peak(threads),
};

/**
 * What this machine reaches on so many threads, measured in this run: multiply-adds on registers, products in bfloat16 on operands in the
 * first-level cache, and going through arrays of a size. Other work on the machine can only lower them, so the best of the run counts.
 */
export class Ceilings {
  readonly threads: number;
  #best: Record<Compute, number> = { float32: 0, bfloat16x3: 0, bfloat16: 0 };
  #multiplyAdds = 0;
  readonly #streaming = new Map<string, number>();

  constructor(threads: number) {
    this.threads = threads;
  }

  /** Floating-point operations a second of products, measured once more. */
  peak(compute: Compute): number {
    this.#best[compute] = Math.max(this.#best[compute], peakOf[compute](this.threads));
    return this.#best[compute];
  }

  /** The same of multiply-adds in float32. */
  multiplyAdds(): number {
    this.#multiplyAdds = Math.max(this.#multiplyAdds, kernels.multiplyAddPeak(this.threads));
    return this.#multiplyAdds;
  }

  /** Bytes a second through arrays as large as those of the work, from whatever cache holds them; measured once more. */
  streaming({ readBytes, writtenBytes, updatedBytes }: Work): number {
    const key = `${readBytes} ${writtenBytes} ${updatedBytes}`;
    const now = kernels.streamingRate(this.threads, { readBytes, writtenBytes, updatedBytes });
    const best = Math.max(now, this.#streaming.get(key) ?? 0);
    this.#streaming.set(key, best);
    return best;
  }
}
