import { RlhfError } from "../errors.ts";

/**
 * Counter-based random numbers: Philox 4×32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
 * The n-th number is a function of (seed, stream, n) alone, so a run that is resumed needs only the counter to go on with
 * the same numbers, and streams of different names never share any.
 */

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;
const ROUNDS = 10;

/** High 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + Math.floor((aLow * bLow) / 0x10000);
  const carry = aLow * bHigh + (middle & 0xffff);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0;
}

/**
 * One Philox 4×32-10 block: four 32-bit words from a counter of four words and a key of two.
 * Pure; the known-answer vectors of the Random123 distribution hold for it.
 */
export function philox4x32(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = mulHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0) >>> 0;
    const high1 = mulHigh(MULTIPLIER_1, c2);
    const low1 = Math.imul(MULTIPLIER_1, c2) >>> 0;
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** FNV-1a, 32 bits: turns a stream's name into a word of the counter. */
function hashName(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}

/** Where a generator stands; plain data for checkpoints. */
export interface RandomState {
  readonly seed: number;
  readonly stream: string;
  /** 32-bit words drawn so far. */
  readonly position: number;
}

/** A seeded stream of random numbers. The same (seed, stream) gives the same numbers on every platform. */
export class Random {
  readonly seed: number;
  readonly stream: string;
  #position = 0;
  #streamHash: number;
  #block: readonly [number, number, number, number] = [0, 0, 0, 0];
  #blockIndex = -1;

  /** @param seed an integer from 0 to 2^53 − 1   @param stream names independent uses of one seed, e.g. "shuffle" */
  constructor(seed: number, stream = "") {
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `Random: seed must be an integer from 0 to 2^53 - 1, got ${seed}`,
        { seed },
      );
    }
    this.seed = seed;
    this.stream = stream;
    this.#streamHash = hashName(stream);
  }

  /** A generator that goes on where `state()` was taken. */
  static restore(state: RandomState): Random {
    const random = new Random(state.seed, state.stream);
    random.#position = state.position;
    return random;
  }

  /** Where the generator stands. */
  state(): RandomState {
    return { seed: this.seed, stream: this.stream, position: this.#position };
  }

  /** A uniform integer in [0, 2^32). */
  uint32(): number {
    const blockIndex = Math.floor(this.#position / 4);
    if (blockIndex !== this.#blockIndex) {
      const low = blockIndex >>> 0;
      const high = Math.floor(blockIndex / 0x100000000);
      this.#block = philox4x32(
        [low, high, this.#streamHash, 0],
        [this.seed >>> 0, Math.floor(this.seed / 0x100000000)],
      );
      this.#blockIndex = blockIndex;
    }
    const word = this.#block[this.#position % 4] as number;
    this.#position++;
    return word;
  }

  /** A uniform number in [0, 1) with 53 random bits. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 0x4000000 + low) / 0x20000000000000;
  }

  /** A uniform integer in [0, bound), without modulo bias. */
  integer(bound: number): number {
    if (!Number.isInteger(bound) || bound < 1 || bound > 0x100000000) {
      throw new RlhfError(
        "ERR_RLHF_ARGUMENT",
        `Random.integer: bound must be an integer from 1 to 2^32, got ${bound}`,
        { bound },
      );
    }
    const limit = 0x100000000 - (0x100000000 % bound);
    let word = this.uint32();
    while (word >= limit) word = this.uint32();
    return word % bound;
  }

  /** A standard normal number (Box-Muller; uses two uniform draws). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** One of the items, uniformly. */
  pick<T>(items: readonly T[]): T {
    return items[this.integer(items.length)] as T;
  }

  /** A uniformly random order of 0 … n−1 (Fisher-Yates). */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, index) => index);
    for (let last = n - 1; last > 0; last--) {
      const other = this.integer(last + 1);
      const moved = order[last] as number;
      order[last] = order[other] as number;
      order[other] = moved;
    }
    return order;
  }

  /** A shuffled copy. */
  shuffle<T>(items: readonly T[]): T[] {
    return Array.from(this.permutation(items.length), (index) => items[index] as T);
  }
}
