import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { RlhfError } from "../errors.ts";
import { writeAtomically } from "./files.ts";
import { readModelTensors, type TensorEntry } from "./safetensors.ts";

/** Names of input embeddings and output heads in all families. */
const VOCABULARY_TENSORS = /(?:^|\.)(?:embed_tokens|wte|embed_in|lm_head|embed_out)\.(?:weight|bias)$/;

/** Bytes of a copy that are in memory at a time. */
const BLOCK = 1 << 22;

const WIDTH: Readonly<Record<string, number>> = { F32: 4, BF16: 2, F16: 2 };

async function* readBlocks(entry: TensorEntry): AsyncGenerator<Buffer> {
  const file = await open(entry.path, "r");
  try {
    for (let at = 0; at < entry.bytes; at += BLOCK) {
      const block = Buffer.alloc(Math.min(BLOCK, entry.bytes - at));
      await readWhole(file, block, entry.offset + at, entry);
      yield block;
    }
  } finally {
    await file.close();
  }
}

async function readWhole(
  file: FileHandle,
  into: Buffer,
  position: number,
  entry: TensorEntry,
): Promise<void> {
  let at = 0;
  while (at < into.length) {
    const { bytesRead } = await file.read(into, at, into.length - at, position + at);
    if (bytesRead === 0)
      throw new RlhfError("ERR_RLHF_WEIGHTS", `${entry.path}: ends inside tensor "${entry.name}"`, {
        tensor: entry.name,
      });
    at += bytesRead;
  }
}

/** The value of a half-precision number. */
function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Half precision, ties to even. */
function toHalf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 2 ** -24)));
  const scaled = size / 2 ** (exponent - 10);
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const rounded = rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
  // A subnormal's bits are its multiple of 2⁻²⁴; adding to the exponent's bits carries where rounding reached the next power of two.
  return exponent === -14 && rounded < 1024 ? sign | rounded : sign | (((exponent + 14) << 10) + rounded);
}

const scratch = new DataView(new ArrayBuffer(4));

/** bfloat16 is the upper half of a float32; ties to even. */
function toBfloat16(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function decode(bytes: Buffer, index: number, dtype: string): number {
  if (dtype === "F32") return bytes.readFloatLE(4 * index);
  const bits = bytes.readUInt16LE(2 * index);
  if (dtype === "F16") return fromHalf(bits);
  scratch.setUint32(0, bits << 16);
  return scratch.getFloat32(0);
}

/** A row of values in a tensor's type. */
export function encodeRow(values: Float64Array, dtype: string): Buffer {
  const bytes = Buffer.alloc(values.length * (WIDTH[dtype] as number));
  values.forEach((value, index) => {
    if (dtype === "F32") bytes.writeFloatLE(value, 4 * index);
    else bytes.writeUInt16LE(dtype === "F16" ? toHalf(value) : toBfloat16(value), 2 * index);
  });
  return bytes;
}

/** The mean of a tensor's first rows, summed in float64, as the bytes of one row. */
async function meanRow(entry: TensorEntry, rows: number): Promise<Buffer> {
  const columns = entry.shape.slice(1).reduce((product, size) => product * size, 1);
  const width = WIDTH[entry.dtype] as number;
  const sums = new Float64Array(columns);
  let index = 0;
  for await (const block of readBlocks(entry))
    for (let at = 0; at < block.length / width && index < rows * columns; at++, index++)
      sums[index % columns] = (sums[index % columns] as number) + decode(block, at, entry.dtype);
  return encodeRow(
    sums.map((sum) => sum / rows),
    entry.dtype,
  );
}

/** A tensor's bytes with rows from `known` on replaced by the mean of those before, up to `rows` of them. */
async function* resized(entry: TensorEntry, known: number, rows: number): AsyncGenerator<Buffer> {
  const rowBytes = entry.bytes / (entry.shape[0] as number);
  const mean = await meanRow(entry, known);
  let left = known * rowBytes;
  for await (const block of readBlocks(entry)) {
    if (left <= 0) break;
    yield block.subarray(0, Math.min(block.length, left));
    left -= block.length;
  }
  for (let row = known; row < rows; row++) yield mean;
}

function checkVocabularyTensor(entry: TensorEntry, known: number): void {
  const rows = entry.shape[0] ?? 0;
  if (rows < known)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${entry.path}: tensor "${entry.name}" has ${rows} rows, but the tokenizer ${known} tokens; they do not belong together`,
      { tensor: entry.name },
    );
  if (WIDTH[entry.dtype] === undefined)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${entry.path}: tensor "${entry.name}" is ${entry.dtype}; tokens can be added to ${Object.keys(WIDTH).join(", ")}`,
      { tensor: entry.name },
    );
}

/**
 * Writes the weights of a model directory into another one as model.safetensors, in their types, with room for more tokens.
 *
 * @returns the rows that the embedding has now
 */
export async function resizeVocabulary(
  directory: string,
  outputDirectory: string,
  { known, wanted, multipleOf }: { known: number; wanted: number; multipleOf: number },
): Promise<number> {
  const { entries, metadata } = await readModelTensors(directory);
  const tensors = [...entries.values()];
  const vocabulary = tensors.filter((entry) => VOCABULARY_TENSORS.test(entry.name));
  const rowsBefore = vocabulary[0]?.shape[0];
  if (rowsBefore === undefined)
    throw new RlhfError(
      "ERR_RLHF_WEIGHTS",
      `${directory}: no embedding was found among its tensors (embed_tokens, wte or embed_in)`,
      { directory },
    );
  for (const entry of vocabulary) checkVocabularyTensor(entry, known);
  const rows = Math.ceil(Math.max(rowsBefore, wanted) / multipleOf) * multipleOf;
  const header: Record<string, unknown> = { __metadata__: { format: "pt", ...metadata } };
  let end = 0;
  for (const { name, dtype, shape, bytes } of tensors) {
    const isVocabulary = VOCABULARY_TENSORS.test(name);
    const begin = end;
    end += isVocabulary ? (bytes / (shape[0] as number)) * rows : bytes;
    header[name] = {
      dtype,
      shape: isVocabulary ? [rows, ...shape.slice(1)] : shape,
      data_offsets: [begin, end],
    };
  }
  const text = JSON.stringify(header);
  const padded = Buffer.from(text + " ".repeat((8 - (Buffer.byteLength(text) % 8)) % 8));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(padded.length));
  await writeAtomically(join(outputDirectory, "model.safetensors"), async (file) => {
    await file.writeFile(Buffer.concat([prefix, padded]));
    for (const entry of tensors) {
      const blocks = VOCABULARY_TENSORS.test(entry.name) ? resized(entry, known, rows) : readBlocks(entry);
      for await (const block of blocks) await file.writeFile(block);
    }
  });
  return rows;
}
