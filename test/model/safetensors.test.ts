import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  readModelTensors,
  readSafetensors,
  readTensor,
  writeSafetensors,
} from "../../lib/model/safetensors.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";

const values = Float32Array.of(1, -2, 3.5, 4, 5, 6);

function file(header: unknown, dataBytes: number): Buffer {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([prefix, text, Buffer.alloc(dataBytes)]);
}

describe("safetensors", () => {
  it("writes what it reads, values and shapes", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = join(directory, "x.safetensors");
      await writeSafetensors(path, [
        { name: "a", shape: [2, 3], read: async () => values },
        { name: "b", shape: [1], read: async () => Float32Array.of(9) },
      ]);
      const { entries } = await readSafetensors(path);
      assert.deepEqual(entries.get("a")?.shape, [2, 3]);
      const a = entries.get("a");
      const b = entries.get("b");
      assert.ok(a && b);
      assert.deepEqual(await readTensor(a), values);
      assert.deepEqual(await readTensor(b), Float32Array.of(9));
      assert.equal((await readFile(path)).readBigUInt64LE() % 8n, 0n, "the data begins at a multiple of 8");
    });
  });

  it("a failed write leaves the old file whole", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = join(directory, "x.safetensors");
      await writeSafetensors(path, [{ name: "a", shape: [6], read: async () => values }]);
      const before = await readFile(path);
      const failing = { name: "a", shape: [6], read: () => Promise.reject(new Error("no space")) };
      await assert.rejects(writeSafetensors(path, [failing]), { code: "ERR_RLHF_IO" });
      assert.deepEqual(await readFile(path), before);
    });
  });

  const tensor = (more: object): object => ({
    a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24], ...more },
  });
  const bad: [string, Buffer, RegExp][] = [
    ["an empty file", Buffer.alloc(0), /has 0 bytes/],
    ["a header longer than the file", file(tensor({}), 0).subarray(0, 20), /announces a header/],
    ["an absurd header length", Buffer.alloc(16, 0xff), /announces a header/],
    ["a header that is not JSON", file("{not json", 24), /not valid JSON/],
    ["a header that is a list", file("[]", 24), /not a JSON object/],
    ["a tensor that is a string", file({ a: "x" }, 24), /not described by an object/],
    ["an unknown dtype", file(tensor({ dtype: "Q4" }), 24), /has dtype "Q4"/],
    ["a negative dimension", file(tensor({ shape: [-2, -3] }), 24), /has shape/],
    ["a fractional dimension", file(tensor({ shape: [1.5, 4] }), 24), /has shape/],
    ["offsets that do not fit the shape", file(tensor({ data_offsets: [0, 20] }), 24), /needs 24 bytes/],
    ["offsets past the end", file(tensor({ data_offsets: [8, 32] }), 24), /truncated/],
    ["three offsets", file(tensor({ data_offsets: [0, 24, 24] }), 24), /data_offsets/],
    [
      "overlapping tensors",
      file({ ...tensor({}), b: { dtype: "F32", shape: [6], data_offsets: [4, 28] } }, 28),
      /overlap/,
    ],
  ];
  for (const [what, bytes, message] of bad) {
    it(`refuses ${what}`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const path = join(directory, "bad.safetensors");
        await writeFile(path, bytes);
        await assert.rejects(readSafetensors(path), (error: Error & { code?: string }) => {
          assert.equal(error.code, "ERR_RLHF_WEIGHTS");
          assert.match(error.message, message);
          assert.ok(error.message.includes(path), "the message names the file");
          return true;
        });
      });
    });
  }

  it("refuses an index that leaves the folder or names a tensor that its shard lacks", async () => {
    await withTemporaryDirectory(async (directory) => {
      const index = join(directory, "model.safetensors.index.json");
      await writeFile(index, JSON.stringify({ weight_map: { a: "../elsewhere.safetensors" } }));
      await assert.rejects(readModelTensors(directory), { code: "ERR_RLHF_WEIGHTS" });
      await writeFile(join(directory, "s.safetensors"), file(tensor({}), 24));
      await writeFile(index, JSON.stringify({ weight_map: { missing: "s.safetensors" } }));
      await assert.rejects(readModelTensors(directory), { code: "ERR_RLHF_WEIGHTS" });
    });
  });

  it("says what is missing in a directory without weights", async () => {
    await withTemporaryDirectory(async (directory) => {
      await assert.rejects(readModelTensors(directory), { code: "ERR_RLHF_MODEL" });
    });
  });
});
