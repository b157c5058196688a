import { existsSync } from "node:fs";
import { join } from "node:path";
import { messageOf, throwIfAborted } from "../errors.ts";
import { readSafetensors, readTensor, writeSafetensors } from "../model/safetensors.ts";

/** How the log-probs of a reference are measured. */
export interface ReferenceMeasure<Example> {
  /** Answers of one example; that many log-probs it has. */
  readonly answers: number;
  /** Log-probs of the answers of examples that make one forward pass: example after example. */
  readonly measure: (examples: readonly Example[]) => Promise<Float32Array>;
}

export interface PrecomputeOptions<Example> {
  /** Shares examples out to forward passes. */
  readonly microBatches: (examples: readonly Example[]) => Example[][];
  /** Where the result is kept, so that it is measured once; undefined: nowhere. */
  readonly file: string | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly note?: ((text: string) => void) | undefined;
}

/** Examples between two looks at the signal, and chunks between two saves. */
const EXAMPLES_PER_CHUNK = 512;
const CHUNKS_PER_SAVE = 16;

const TENSOR = "logProbs";

/** The file of precomputed log-probs of a reference on some data; the key is a hash of all they depend on. */
export function referenceFile(outputDir: string, key: string): string {
  return join(outputDir, "reference", `${key.slice(0, 32)}.safetensors`);
}

/** A reference's log-probs of answers, by example. Each example is measured once. */
export class ReferenceLogProbs<Example extends object> {
  readonly #how: ReferenceMeasure<Example>;
  readonly #known = new Map<Example, Float32Array>();

  constructor(how: ReferenceMeasure<Example>) {
    this.#how = how;
  }

  /** Log-probs of the examples of one forward pass, example after example; those not known yet are measured. */
  async of(examples: readonly Example[]): Promise<Float32Array> {
    const { answers } = this.#how;
    const unknown = examples.filter((example) => !this.#known.has(example));
    if (unknown.length > 0) {
      const measured = await this.#how.measure(unknown);
      unknown.forEach((example, i) => {
        this.#known.set(example, measured.slice(answers * i, answers * (i + 1)));
      });
    }
    const result = new Float32Array(answers * examples.length);
    examples.forEach((example, i) => {
      result.set(this.#known.get(example) as Float32Array, answers * i);
    });
    return result;
  }

  /** Forgets all: the reference has changed. */
  clear(): void {
    this.#known.clear();
  }

  /**
   * Measures all examples, but for those that the file has from an earlier, perhaps interrupted, call with the same ones.
   * Throws ERR_RLHF_ABORTED, with what was measured kept in the file, when the signal is raised.
   */
  async precompute(examples: readonly Example[], options: PrecomputeOptions<Example>): Promise<void> {
    const { microBatches, file, signal, note = () => {} } = options;
    if (file !== undefined) await this.#load(file, examples, note);
    const missing = examples.filter((example) => !this.#known.has(example));
    if (missing.length === 0) {
      note(`reference log-probs of ${examples.length} examples taken from ${file}`);
      return;
    }
    let known = examples.length - missing.length;
    try {
      for (let start = 0, chunk = 1; start < missing.length; start += EXAMPLES_PER_CHUNK, chunk++) {
        const some = missing.slice(start, start + EXAMPLES_PER_CHUNK);
        for (const microBatch of microBatches(some)) {
          throwIfAborted(signal, "measuring the reference");
          await this.of(microBatch);
        }
        const tenth = (count: number): number => Math.floor((10 * count) / examples.length);
        if (tenth(known + some.length) > tenth(known))
          note(`reference log-probs of ${known + some.length} of ${examples.length} examples measured`);
        known += some.length;
        if (file !== undefined && chunk % CHUNKS_PER_SAVE === 0) await this.#save(file, examples);
      }
    } finally {
      if (file !== undefined) await this.#save(file, examples);
    }
  }

  /** NaN stands for what has not been measured. */
  async #load(file: string, examples: readonly Example[], note: (text: string) => void): Promise<void> {
    if (!existsSync(file)) return;
    const { answers } = this.#how;
    try {
      const entry = (await readSafetensors(file)).entries.get(TENSOR);
      if (entry?.count !== answers * examples.length) return;
      const values = await readTensor(entry);
      examples.forEach((example, i) => {
        const own = values.slice(answers * i, answers * (i + 1));
        if (!own.some(Number.isNaN)) this.#known.set(example, own);
      });
    } catch (error) {
      note(`${messageOf(error)}; the reference is measured again`);
    }
  }

  async #save(file: string, examples: readonly Example[]): Promise<void> {
    const { answers } = this.#how;
    const values = new Float32Array(answers * examples.length).fill(Number.NaN);
    examples.forEach((example, i) => {
      const own = this.#known.get(example);
      if (own) values.set(own, answers * i);
    });
    const shape = [examples.length, answers];
    await writeSafetensors(file, [{ name: TENSOR, shape, read: () => Promise.resolve(values) }]);
  }
}
