import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadScored } from "../../lib/data/labelled.ts";
import { loadPreferences, streamPreferences } from "../../lib/data/preferences.ts";
import { placeOf } from "../../lib/data/readers.ts";
import { loadSft } from "../../lib/data/sft.ts";
import { temporaryDirectory } from "./support.ts";

const fixture = (name: string): string => fileURLToPath(new URL(`fixtures/${name}.parquet`, import.meta.url));

describe("parquet files", () => {
  const directory = temporaryDirectory();

  it("without compression, with snappy in several row groups and with gzip hold the same rows", async () => {
    const expected = Array.from({ length: 7 }, (_, i) => ({
      prompt: `prompt ${i}`,
      chosen: `good answer ${i} é`,
      rejected: `bad answer ${i} 好`,
      margin: i / 4,
    }));
    for (const codec of ["none", "snappy", "gzip"]) {
      const rows = await loadPreferences(fixture(`pairs-${codec}`));
      assert.deepEqual([...rows], expected, codec);
      assert.deepEqual(
        rows.map((row) => placeOf(row)?.line),
        [1, 2, 3, 4, 5, 6, 7],
      );
    }
  });

  it("with zstd and nested messages are conversations", async () => {
    const rows = await loadSft(fixture("messages-zstd"));
    assert.deepEqual(rows.report.formats, ["messages"]);
    assert.equal(rows.length, 5);
    const turns = [
      { role: "user", content: "question 3" },
      { role: "assistant", content: "answer 3" },
    ];
    assert.deepEqual(rows[3], { messages: [...turns, ...turns] });
  });

  it("of the Chatbot Arena give pairs, without ties or with them", async () => {
    const rows = await loadPreferences(fixture("arena-snappy"));
    assert.deepEqual(
      [...rows],
      [
        ["a0", "b0"],
        ["b1", "a1"],
      ].map(([chosen, rejected]) => ({
        prompt: [{ role: "user", content: "hi" }],
        chosen: [{ role: "assistant", content: chosen }],
        rejected: [{ role: "assistant", content: rejected }],
      })),
    );
    assert.equal(rows.report.preferences?.ties, 2);
    assert.deepEqual(
      rows.report.firstDroppedRows.map((row) => row.line),
      [3, 4],
    );
    const all = await loadPreferences(fixture("arena-snappy"), { ties: "keep" });
    assert.deepEqual(
      all.map((row) => row.tie ?? false),
      [false, false, true, true],
    );
  });

  it("name the row of what is wrong; a null is a key that is missing", async () => {
    await assert.rejects(loadScored(fixture("nulls-zstd"), { format: "prompt-response-score" }), {
      code: "ERR_RLHF_DATA",
      message: /nulls-zstd\.parquet: row 3: row "response" is missing/,
    });
    const rows = await loadScored(fixture("nulls-zstd"), { onBadRow: "skip" });
    assert.deepEqual(
      rows.map((row) => row.score),
      [1.5, -2],
    );
  });

  it("that are absent, cut off or something else are errors", async () => {
    const whole = readFileSync(fixture("pairs-snappy"));
    const cut = join(directory, "cut.parquet");
    writeFileSync(cut, whole.subarray(0, whole.length - 40));
    const damaged = join(directory, "damaged.parquet");
    const bytes = Buffer.from(whole);
    bytes.fill(0xff, 4, 200);
    writeFileSync(damaged, bytes);
    const text = join(directory, "text.parquet");
    writeFileSync(text, '{"prompt": "a"}\n');
    for (const file of [join(directory, "absent.parquet"), cut, damaged, text])
      await assert.rejects(
        loadPreferences(file),
        { code: "ERR_RLHF_DATA", message: /\.parquet: cannot be read/ },
        file,
      );
  });

  it("can be streamed, and stop where the reader stops", async () => {
    const stream = streamPreferences(fixture("pairs-snappy"));
    for await (const row of stream) if (row.prompt === "prompt 1") break;
    assert.equal(stream.report.rowsKept, 2);
    let rows = 0;
    for await (const _ of stream) rows++;
    assert.deepEqual([rows, stream.report.rowsKept], [7, 7]);
  });
});
