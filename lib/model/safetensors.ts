import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { messageOf, RlhfError } from "../errors.ts";
import { readJsonIfPresent, writeAtomically } from "./files.ts";

/*
 * The safetensors format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__"?},
 * then the tensors' bytes. Headers are checked in full before anything is read, since weight files come from strangers.
 */

const BYTES_PER_ELEMENT: Readonly<Record<string, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

const MAX_HEADER_BYTES = 100_000_000;

/** Where one tensor lies. */
export interface TensorEntry {
  readonly name: string;
  readonly path: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly count: number;
  /** First byte in the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** The tensors of a file or of a whole model, by name, and the metadata of the file(s). */
export interface TensorIndex {
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
}

function malformed(path: string, problem: string): RlhfError {
  return new RlhfError("ERR_RLHF_WEIGHTS", `${path}: ${problem}`, { path });
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

/** Checks one header entry against the format and the file's size. */
function readEntry(
  path: string,
  name: string,
  value: unknown,
  dataStart: number,
  dataBytes: number,
): TensorEntry {
  const fail = (problem: string): RlhfError => malformed(path, `tensor "${name}" ${problem}`);
  if (typeof value !== "object" || value === null) throw fail("is not described by an object");
  const { dtype, shape, data_offsets: offsets } = value as Record<string, unknown>;
  if (typeof dtype !== "string" || !Object.hasOwn(BYTES_PER_ELEMENT, dtype))
    throw fail(`has dtype ${JSON.stringify(dtype)}; known are ${Object.keys(BYTES_PER_ELEMENT).join(", ")}`);
  if (!Array.isArray(shape) || !shape.every(isCount)) throw fail(`has shape ${JSON.stringify(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
    throw fail(`has data_offsets ${JSON.stringify(offsets)}`);
  const [begin, end] = offsets as [number, number];
  const count = shape.reduce((product: number, size: number) => product * size, 1);
  const bytes = count * (BYTES_PER_ELEMENT[dtype] as number);
  if (end - begin !== bytes)
    throw fail(`takes bytes ${begin} to ${end}, but ${dtype} [${shape.join(", ")}] needs ${bytes} bytes`);
  if (end > dataBytes)
    throw fail(
      `ends at byte ${end} of the data, but the file holds ${dataBytes}; it is truncated, copy it again`,
    );
  return { name, path, dtype, shape: shape as number[], count, offset: dataStart + begin, bytes };
}

function checkNoOverlap(path: string, entries: readonly TensorEntry[]): void {
  const sorted = entries.filter((entry) => entry.bytes > 0).sort((a, b) => a.offset - b.offset);
  sorted.forEach((entry, index) => {
    const next = sorted[index + 1];
    if (next && entry.offset + entry.bytes > next.offset)
      throw malformed(path, `tensors "${entry.name}" and "${next.name}" overlap`);
  });
}

function checkMetadata(
  path: string,
  metadata: unknown,
): asserts metadata is Record<string, string> | undefined {
  if (metadata === undefined) return;
  const isObject = typeof metadata === "object" && metadata !== null && !Array.isArray(metadata);
  if (!isObject || !Object.values(metadata).every((value) => typeof value === "string"))
    throw malformed(path, "has a __metadata__ that is not an object of strings");
}

async function readHeader(path: string): Promise<{ header: unknown; dataStart: number; fileBytes: number }> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path, "r");
  } catch (error) {
    throw new RlhfError(
      "ERR_RLHF_IO",
      `${path}: cannot be opened: ${messageOf(error)}`,
      { path },
      { cause: error },
    );
  }
  try {
    const status = await file.stat();
    if (!status.isFile()) throw malformed(path, "is not a file; expected a safetensors file");
    const fileBytes = status.size;
    if (fileBytes < 8) throw malformed(path, `has ${fileBytes} bytes; a safetensors file has at least 8`);
    const prefix = Buffer.alloc(8);
    await file.read(prefix, 0, 8, 0);
    const headerBytes = prefix.readBigUInt64LE();
    if (headerBytes > BigInt(Math.min(fileBytes - 8, MAX_HEADER_BYTES)))
      throw malformed(
        path,
        `announces a header of ${headerBytes} bytes in a file of ${fileBytes}; it is truncated or not a safetensors file`,
      );
    const text = Buffer.alloc(Number(headerBytes));
    await file.read(text, 0, text.length, 8);
    try {
      return { header: JSON.parse(text.toString("utf8")), dataStart: 8 + text.length, fileBytes };
    } catch (error) {
      throw malformed(path, `has a header that is not valid JSON: ${messageOf(error)}`);
    }
  } finally {
    await file.close();
  }
}

/** Reads and checks the header of one file. Throws ERR_RLHF_WEIGHTS that names the file, the tensor and what is wrong. */
export async function readSafetensors(path: string): Promise<TensorIndex> {
  const { header, dataStart, fileBytes } = await readHeader(path);
  if (typeof header !== "object" || header === null || Array.isArray(header))
    throw malformed(path, "has a header that is not a JSON object");
  const { __metadata__: metadata, ...tensors } = header as Record<string, unknown>;
  checkMetadata(path, metadata);
  const entries = Object.entries(tensors).map(([name, value]) =>
    readEntry(path, name, value, dataStart, fileBytes - dataStart),
  );
  checkNoOverlap(path, entries);
  return {
    entries: new Map(entries.map((entry) => [entry.name, entry])),
    metadata: metadata ?? {},
  };
}

/**
 * The tensors of a model directory: model.safetensors, or the shards that model.safetensors.index.json names.
 * Throws ERR_RLHF_WEIGHTS; ERR_RLHF_MODEL when the directory holds no weights.
 */
export async function readModelTensors(directory: string): Promise<TensorIndex> {
  const indexPath = join(directory, "model.safetensors.index.json");
  const index = await readJsonIfPresent(indexPath, "ERR_RLHF_WEIGHTS");
  if (!index) {
    const single = join(directory, "model.safetensors");
    const found = await stat(single).catch(() => null);
    if (!found)
      throw new RlhfError(
        "ERR_RLHF_MODEL",
        `${directory}: holds neither model.safetensors nor model.safetensors.index.json; pickled .bin files are not read: convert them with transformers (save_pretrained writes safetensors)`,
        { directory },
      );
    return readSafetensors(single);
  }
  const weightMap = index.weight_map;
  if (typeof weightMap !== "object" || weightMap === null || Array.isArray(weightMap))
    throw malformed(indexPath, "has no weight_map, an object that names each tensor's file");
  const shards = new Map<string, TensorIndex>();
  const entries = new Map<string, TensorEntry>();
  for (const [name, file] of Object.entries(weightMap)) {
    if (typeof file !== "string" || file.includes("/") || file.includes("\\"))
      throw malformed(
        indexPath,
        `places "${name}" in ${JSON.stringify(file)}, expected a file name of the same folder`,
      );
    let shard = shards.get(file);
    if (!shard) {
      const shardPath = join(directory, file);
      if (!(await stat(shardPath).catch(() => null)))
        throw malformed(
          indexPath,
          `places "${name}" in ${file}, which is not in the folder; copy all shards`,
        );
      shard = await readSafetensors(shardPath);
      shards.set(file, shard);
    }
    const entry = shard.entries.get(name);
    if (!entry) throw malformed(indexPath, `places "${name}" in ${file}, which does not hold it`);
    entries.set(name, entry);
  }
  return { entries, metadata: {} };
}

/** The types that `readTensor` reads. */
export function isReadable({ dtype }: TensorEntry): boolean {
  return dtype === "F32" || dtype === "BF16";
}

/** Reads one tensor of F32 or BF16 into memory. */
export async function readTensor(entry: TensorEntry): Promise<Float32Array> {
  if (!isReadable(entry))
    throw malformed(entry.path, `tensor "${entry.name}" is ${entry.dtype}, expected F32 or BF16`);
  const bytes = new Uint8Array(entry.bytes);
  const file = await open(entry.path, "r");
  try {
    let at = 0;
    while (at < bytes.length) {
      const { bytesRead } = await file.read(bytes, at, bytes.length - at, entry.offset + at);
      if (bytesRead === 0) throw malformed(entry.path, `ends inside tensor "${entry.name}"`);
      at += bytesRead;
    }
  } finally {
    await file.close();
  }
  if (entry.dtype === "F32") return new Float32Array(bytes.buffer);
  return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (half) => half << 16).buffer);
}

/** A tensor to write; `read` is called when its turn comes, so that only one is in memory at a time. */
export interface TensorSource {
  readonly name: string;
  readonly shape: readonly number[];
  /** How it is written. Default "F32"; in "BF16" its values have to be numbers of bfloat16 already. */
  readonly dtype?: "F32" | "BF16";
  read(): Promise<Float32Array>;
}

/** Numbers of bfloat16, which are the upper halves of float32's. */
function upperHalves(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(words, (word) => word >>> 16);
}

/** Writes tensors as one safetensors file, atomically. Throws ERR_RLHF_IO. */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): Promise<void> {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let end = 0;
  for (const { name, shape, dtype = "F32" } of tensors) {
    const begin = end;
    end += shape.reduce((product, size) => product * size, BYTES_PER_ELEMENT[dtype] as number);
    header[name] = { dtype, shape, data_offsets: [begin, end] };
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text + " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(padded.length));
  await writeAtomically(path, async (file) => {
    await file.writeFile(Buffer.concat([prefix, padded]));
    for (const tensor of tensors) {
      const read = await tensor.read();
      const values = tensor.dtype === "BF16" ? upperHalves(read) : read;
      await file.writeFile(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    }
  });
}
