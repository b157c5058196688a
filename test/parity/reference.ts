import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Where the files made by test/reference/make_*.py lie. */
export const REFERENCE = fileURLToPath(new URL("../reference/", import.meta.url));

/** The directory of one of the tiny models. */
export const modelDirectory = (name: string): string => `${REFERENCE}models/${name}`;

export function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(REFERENCE + name, "utf8")) as T;
}

/** The float32 and int32 tensors of one reference file. */
export class ReferenceTensors {
  readonly #bytes: Buffer;
  readonly #base: number;
  readonly #entries: Map<string, { dtype: string; data_offsets: [number, number] }>;

  constructor(name: string) {
    this.#bytes = readFileSync(REFERENCE + name);
    const headerBytes = Number(this.#bytes.readBigUInt64LE(0));
    this.#base = 8 + headerBytes;
    const header = JSON.parse(this.#bytes.toString("utf8", 8, this.#base)) as Record<string, never>;
    delete header["__metadata__"];
    this.#entries = new Map(Object.entries(header));
  }

  names(prefix = ""): string[] {
    return [...this.#entries.keys()].filter((name) => name.startsWith(prefix)).sort();
  }

  #slice(name: string, dtype: string): ArrayBuffer {
    const entry = this.#entries.get(name);
    if (entry?.dtype !== dtype) throw new Error(`the reference file has no ${dtype} tensor ${name}`);
    const [begin, end] = entry.data_offsets;
    return Uint8Array.from(this.#bytes.subarray(this.#base + begin, this.#base + end)).buffer;
  }

  floats(name: string): Float32Array {
    return new Float32Array(this.#slice(name, "F32"));
  }

  integers(name: string): Int32Array {
    return new Int32Array(this.#slice(name, "I32"));
  }

  /** The sequences of `tokens` and `offsets`, apart. */
  sequences(): Int32Array[] {
    const tokens = this.integers("tokens");
    const offsets = this.integers("offsets");
    return Array.from(offsets.subarray(1), (end, i) => tokens.slice(offsets[i], end));
  }
}
