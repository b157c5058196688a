import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";
import { type NamesOf, refuseUnknownOptions } from "../option-names.ts";
import type { PromptEncoder } from "./encode.ts";
import { finishHash, hashSequence, TokenFileWriter, withMarks } from "./token-files.ts";
import {
  SFT_OPTIONS,
  sftRows,
  type Tokenized,
  type TokenizeReport,
  type TokenizeSftOptions,
} from "./tokenize.ts";
import { tokenizeEach, tokenizeInSlices } from "./tokenize-slices.ts";
import type { SftRow, TokenizedExample } from "./types.ts";

export interface TokenDatasetOptions extends TokenizeSftOptions {
  /**
   * Keeps the tokens in files of this directory and reads them when a step needs them, so that a data set may be larger than
   * memory: 16 bytes of memory per example remain. Left out: the tokens are held in memory.
   */
  readonly directory?: string;
  /** What the tokens follow from. A directory that was written with the same key is taken as it is. */
  readonly key?: string;
  readonly signal?: AbortSignal;
}

const TOKEN_DATASET_OPTIONS: NamesOf<TokenDatasetOptions> = {
  ...SFT_OPTIONS,
  directory: true,
  key: true,
  signal: true,
};

/** What describes a directory of tokens. Written last: without it the directory is incomplete. */
export interface TokenDatasetInfo {
  readonly version: 1;
  readonly key: string | null;
  readonly hash: string;
  readonly report: TokenizeReport;
}

/** Tokenised examples for fine-tuning: what a trainer takes in place of rows, in memory or in files. */
export abstract class TokenDataset {
  /** What tokenising did. */
  readonly report: TokenizeReport;
  /** Of all tokens and what is learnt of them: tells data sets apart. */
  readonly hash: string;

  protected constructor(report: TokenizeReport, hash: string) {
    this.report = report;
    this.hash = hash;
  }

  /** All examples where they are held in memory, else null. */
  abstract readonly examples: readonly TokenizedExample[] | null;
  /** How many examples there are. */
  abstract readonly length: number;
  /** Tokens of the longest example. */
  abstract readonly longest: number;
  /** Some examples, in the order of the indices. Throws ERR_RLHF_ARGUMENT for one that does not exist. */
  abstract get(indices: ArrayLike<number>): Promise<TokenizedExample[]>;
  /** Closes files; a data set in memory has none. */
  abstract close(): Promise<void>;

  /** Examples in memory. */
  static of({ examples, report }: Tokenized<TokenizedExample>): TokenDataset {
    return new MemoryDataset(examples, report);
  }

  /**
   * Tokenises rows, an array or a stream such as `streamSft` gives, without keeping the event loop to itself for long. Throws what
   * reading the rows throws, ERR_RLHF_DATA when nothing is left, and ERR_RLHF_ABORTED.
   */
  static async create(
    rows: Iterable<SftRow> | AsyncIterable<SftRow>,
    tokenizer: PromptEncoder,
    options: TokenDatasetOptions = {},
  ): Promise<TokenDataset> {
    refuseUnknownOptions("TokenDataset.create", options, TOKEN_DATASET_OPTIONS);
    const { directory, key = null, signal, ...tokenize } = options;
    const rowTokenizer = sftRows(tokenizer, tokenize);
    if (directory === undefined) {
      const { examples, report } = await tokenizeInSlices(rows, rowTokenizer, { signal });
      return new MemoryDataset(examples, report);
    }
    if (key !== null && (await readInfo(directory))?.key === key) return TokenDataset.open(directory);
    const hash = createHash("sha256");
    await using writer = await TokenFileWriter.create(directory);
    const report = await tokenizeEach(rows, rowTokenizer, { signal }, (example) => {
      hashSequence(hash, withMarks(example));
      return writer.add(example);
    });
    await writer.finish({ version: 1, key, hash: finishHash(hash), report } satisfies TokenDatasetInfo);
    return TokenDataset.open(directory);
  }

  /** Opens a directory that `create` wrote. Throws ERR_RLHF_DATA when it is none, incomplete or damaged. */
  static async open(directory: string): Promise<TokenDataset> {
    const info = await readInfo(directory);
    if (info === null)
      throw new RlhfError("ERR_RLHF_DATA", `${directory}: is no complete data set of tokens; make it again`, {
        directory,
      });
    return FileDataset.openFiles(directory, info);
  }
}

async function readInfo(directory: string): Promise<TokenDatasetInfo | null> {
  try {
    const info = JSON.parse(await readFile(join(directory, "tokens.json"), "utf8")) as TokenDatasetInfo;
    return info.version === 1 ? info : null;
  } catch {
    // Missing or unreadable: it has to be made either way.
    return null;
  }
}

function checkIndex(index: number, length: number): void {
  if (Number.isInteger(index) && index >= 0 && index < length) return;
  throw new RlhfError("ERR_RLHF_ARGUMENT", `TokenDataset: there is no example ${index}, it has ${length}`, {
    index,
  });
}

class MemoryDataset extends TokenDataset {
  readonly examples: readonly TokenizedExample[];

  constructor(examples: readonly TokenizedExample[], report: TokenizeReport) {
    const hash = createHash("sha256");
    for (const example of examples) hashSequence(hash, withMarks(example));
    super(report, finishHash(hash));
    this.examples = examples;
  }

  get length(): number {
    return this.examples.length;
  }

  get longest(): number {
    return this.examples.reduce((longest, { tokens }) => Math.max(longest, tokens.length), 0);
  }

  get(indices: ArrayLike<number>): Promise<TokenizedExample[]> {
    return Promise.resolve(
      Array.from(indices, (index) => {
        checkIndex(index, this.length);
        return this.examples[index] as TokenizedExample;
      }),
    );
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Examples in the files that TokenFileWriter wrote. */
class FileDataset extends TokenDataset {
  readonly examples = null;
  readonly #path: string;
  readonly #file: FileHandle;
  /** Uint32Array[2·N]: of each example its length and its promptLength. */
  readonly #index: Uint32Array;
  /** Float64Array[N+1]: tokens before each example; 2⁵³ of them are enough. */
  readonly #offsets: Float64Array;

  private constructor(path: string, file: FileHandle, index: Uint32Array, info: TokenDatasetInfo) {
    super(info.report, info.hash);
    this.#path = path;
    this.#file = file;
    this.#index = index;
    this.#offsets = new Float64Array(index.length / 2 + 1);
    for (let example = 0; example < this.length; example++)
      this.#offsets[example + 1] = (this.#offsets[example] as number) + (index[2 * example] as number);
  }

  static async openFiles(directory: string, info: TokenDatasetInfo): Promise<FileDataset> {
    const path = join(directory, "tokens.bin");
    const damaged = (why: string): RlhfError =>
      new RlhfError("ERR_RLHF_DATA", `${directory}: ${why}; make the data set of tokens again`, {
        directory,
      });
    let bytes: Buffer;
    let file: FileHandle;
    try {
      bytes = await readFile(join(directory, "index.bin"));
      file = await open(path, "r");
    } catch (error) {
      throw damaged(messageOf(error));
    }
    const index = new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    const dataset = new FileDataset(path, file, index, info);
    const tokens = dataset.#offsets[dataset.length] as number;
    const { size } = await file.stat();
    if (dataset.length === info.report.examples && size === 4 * tokens) return dataset;
    await file.close();
    throw damaged(
      `holds ${dataset.length} examples and ${size / 4} tokens, not those that tokens.json tells of`,
    );
  }

  get length(): number {
    return this.#index.length / 2;
  }

  get longest(): number {
    let longest = 0;
    for (let example = 0; example < this.length; example++)
      longest = Math.max(longest, this.#index[2 * example] as number);
    return longest;
  }

  get(indices: ArrayLike<number>): Promise<TokenizedExample[]> {
    return Promise.all(Array.from(indices, (index) => this.#read(index)));
  }

  async #read(example: number): Promise<TokenizedExample> {
    checkIndex(example, this.length);
    const tokens = new Int32Array(this.#index[2 * example] as number);
    const bytes = new Uint8Array(tokens.buffer);
    for (let at = 0; at < bytes.length; ) {
      const position = 4 * (this.#offsets[example] as number) + at;
      const { bytesRead } = await this.#file.read(bytes, at, bytes.length - at, position);
      if (bytesRead === 0)
        throw new RlhfError("ERR_RLHF_DATA", `${this.#path}: ends inside example ${example}`);
      at += bytesRead;
    }
    // The sign bit marks what is learnt.
    const lossMask = Uint8Array.from(tokens, (token) => (token < 0 ? 1 : 0));
    for (let t = 0; t < tokens.length; t++) tokens[t] = (tokens[t] as number) & 0x7fffffff;
    return { tokens, promptLength: this.#index[2 * example + 1] as number, lossMask };
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
