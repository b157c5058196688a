import type { Hash } from "node:crypto";
import { type FileHandle, mkdir, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { isRlhfError, messageOf, RlhfError } from "../errors.ts";
import { syncDirectory, writeJson } from "../model/files.ts";
import type { TokenizedExample } from "./types.ts";

/** Feeds a hash with sequences, each after its length. */
export function hashSequence(hash: Hash, tokens: Int32Array): void {
  hash.update(Int32Array.of(tokens.length));
  hash.update(tokens);
}

/** Tokens with the sign bit set where they are learnt. */
export function withMarks({ tokens, lossMask }: TokenizedExample): Int32Array {
  return tokens.map((token, t) => (lossMask[t] ? token | 0x80000000 : token));
}

/** The hash of a data set as checkpoints hold it. */
export function finishHash(hash: Hash): string {
  return hash.digest("hex").slice(0, 32);
}

/** Bytes that are gathered before they are written. */
const BUFFER = 1 << 20;

/** Appends to a file in large pieces. */
class BufferedFile {
  readonly handle: FileHandle;
  readonly #buffer = Buffer.alloc(BUFFER);
  #used = 0;

  constructor(handle: FileHandle) {
    this.handle = handle;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#used + bytes.length > BUFFER) await this.flush();
    if (bytes.length > BUFFER) {
      await this.handle.writeFile(bytes);
      return;
    }
    this.#buffer.set(bytes, this.#used);
    this.#used += bytes.length;
  }

  async flush(): Promise<void> {
    await this.handle.writeFile(this.#buffer.subarray(0, this.#used));
    this.#used = 0;
  }
}

function bytesOf(array: Int32Array | Uint32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/**
 * Writes a directory of tokens: tokens.bin holds all examples one after another as little-endian int32, the sign bit set where a
 * token is learnt; index.bin two uint32 per example, its length and its promptLength; tokens.json, written last, tells of both.
 */
export class TokenFileWriter implements AsyncDisposable {
  readonly #directory: string;
  readonly #tokens: BufferedFile;
  readonly #index: BufferedFile;
  #open = true;

  private constructor(directory: string, tokens: FileHandle, index: FileHandle) {
    this.#directory = directory;
    this.#tokens = new BufferedFile(tokens);
    this.#index = new BufferedFile(index);
  }

  /** Begins a directory; an earlier data set in it is no longer valid. Throws ERR_RLHF_IO. */
  static async create(directory: string): Promise<TokenFileWriter> {
    try {
      await mkdir(directory, { recursive: true });
      await rm(join(directory, "tokens.json"), { force: true });
      const tokens = await open(join(directory, "tokens.bin.tmp"), "w");
      const index = await open(join(directory, "index.bin.tmp"), "w");
      return new TokenFileWriter(directory, tokens, index);
    } catch (error) {
      throw cannotWrite(directory, error);
    }
  }

  async add(example: TokenizedExample): Promise<void> {
    const { tokens, promptLength } = example;
    try {
      await this.#tokens.write(bytesOf(withMarks(example)));
      await this.#index.write(bytesOf(Uint32Array.of(tokens.length, promptLength)));
    } catch (error) {
      throw cannotWrite(this.#directory, error);
    }
  }

  /** Makes what was added a complete data set. */
  async finish(info: object): Promise<void> {
    try {
      for (const file of [this.#tokens, this.#index]) {
        await file.flush();
        await file.handle.sync();
      }
      await this.#close();
      for (const name of ["tokens.bin", "index.bin"])
        await rename(join(this.#directory, `${name}.tmp`), join(this.#directory, name));
      await syncDirectory(this.#directory);
      await writeJson(join(this.#directory, "tokens.json"), info);
    } catch (error) {
      throw isRlhfError(error) ? error : cannotWrite(this.#directory, error);
    }
  }

  async #close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#tokens.handle.close();
    await this.#index.handle.close();
  }

  /** Closes the files; of a data set that was not finished nothing stays. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#close();
    for (const name of ["tokens.bin.tmp", "index.bin.tmp"])
      await rm(join(this.#directory, name), { force: true });
  }
}

function cannotWrite(directory: string, error: unknown): RlhfError {
  return new RlhfError(
    "ERR_RLHF_IO",
    `${directory}: tokens cannot be written: ${messageOf(error)}`,
    { directory },
    { cause: error },
  );
}
