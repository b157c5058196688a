import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type CausalLM, isRlhfError, type RlhfErrorCode } from "../../lib/index.ts";

/** What is done, the documented code it must end with, and what the message must say: the file or field, and the cure. */
export type BadCase = readonly [
  what: string,
  code: RlhfErrorCode,
  message: RegExp,
  body: () => unknown | Promise<unknown>,
];

/** Runs each case as a test of its own. */
export function itRefuses(cases: readonly BadCase[]): void {
  for (const [what, code, message, body] of cases)
    it(`refuses ${what}: ${code}`, () => assertRefused(body, code, message));
}

export async function assertRefused(
  body: () => unknown | Promise<unknown>,
  code: RlhfErrorCode,
  message: RegExp,
): Promise<void> {
  await assert.rejects(
    async () => body(),
    (error: Error & { code?: string }) => {
      assert.ok(isRlhfError(error), `no RlhfError: ${error.stack}`);
      assert.equal(error.code, code, error.message);
      assert.match(error.message, message);
      return true;
    },
  );
}

/** The model computes as ever: greedy answers to two prompts. */
export async function answers(model: CausalLM): Promise<number[][]> {
  const prompts = [Int32Array.of(1, 2), Int32Array.of(3)];
  const generated = await model.generate(prompts, { maxNewTokens: 3, temperature: 0 });
  return generated.map(({ tokens }) => [...tokens]);
}

/** Copies of a model directory, each with something wrong. */
export class Variants {
  readonly #base: string;
  readonly #directory: string;
  #count = 0;

  constructor(base: string, directory: string) {
    this.#base = base;
    this.#directory = directory;
  }

  /** A copy that `damage` has changed. */
  make(damage: (directory: string) => void): string {
    const copy = join(this.#directory, `variant-${this.#count++}`);
    mkdirSync(this.#directory, { recursive: true });
    cpSync(this.#base, copy, { recursive: true });
    damage(copy);
    return copy;
  }

  /** A copy in which a JSON file is another. */
  withJson<Content>(file: string, change: (content: Content) => unknown): string {
    return this.make((directory) => {
      const path = join(directory, file);
      writeFileSync(path, JSON.stringify(change(JSON.parse(readFileSync(path, "utf8")) as Content)));
    });
  }
}

/** The parts of a safetensors file. */
export interface TensorFile {
  readonly header: Record<string, Record<string, unknown>>;
  readonly data: Buffer;
}

export function readTensorFile(path: string): TensorFile {
  const bytes = readFileSync(path);
  const end = 8 + Number(bytes.readBigUInt64LE());
  return {
    header: JSON.parse(bytes.subarray(8, end).toString("utf8")) as TensorFile["header"],
    data: bytes.subarray(end),
  };
}

/** Writes a safetensors file; `announced` is the header length that it claims. */
export function writeTensorFile(path: string, header: unknown, data: Uint8Array, announced?: number): void {
  const text = Buffer.from(JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(announced ?? text.length));
  writeFileSync(path, Buffer.concat([prefix, text, data]));
}
