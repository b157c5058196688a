import assert from "node:assert/strict";
import { join } from "node:path";
import { loadPreferences, splitDialogue } from "../../lib/data/preferences.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import { loadSft } from "../../lib/data/sft.ts";
import { itWithShared, jsonLines, sharedFile, temporaryDirectory, writeText } from "./support.ts";

describe("data readers", () => {
  const directory = temporaryDirectory();

  describe("files", () => {
    const rows = [
      { prompt: "a", response: "b" },
      { prompt: "c\u2028d", response: "é" },
    ];

    it("reads .jsonl, .jsonl.gz and .json alike", async () => {
      const files = [
        writeText(directory, "rows.jsonl", jsonLines(rows)),
        writeText(directory, "rows.jsonl.gz", jsonLines(rows)),
        writeText(directory, "rows.json", JSON.stringify(rows, null, 2)),
      ];
      for (const file of files) assert.deepEqual([...(await loadSft(file))], rows, file);
      assert.equal((await loadSft(files)).length, 6);
    });

    it("keeps line separators inside strings, takes CRLF, blank lines and a last line without an end", async () => {
      // U+2028 may stand raw in JSON; it must not end a line.
      const text = `{"prompt":"x\u2028y","response":"1"}\r\n\r\n{"prompt":"z","response":"2"}`;
      const loaded = await loadSft(writeText(directory, "separators.jsonl", text));
      assert.deepEqual(
        [...loaded],
        [
          { prompt: "x\u2028y", response: "1" },
          { prompt: "z", response: "2" },
        ],
      );
      assert.equal(loaded.report.rowsRead, 2);
    });

    it("reads lines longer than a chunk of the file stream", async () => {
      const long = "ü".repeat(300_000);
      const loaded = await loadSft(
        writeText(directory, "long.jsonl", jsonLines([{ text: long }, { text: "short" }])),
      );
      assert.deepEqual(
        [...loaded],
        [
          { prompt: "", response: long },
          { prompt: "", response: "short" },
        ],
      );
    });

    it("names what is wrong with a file", async () => {
      const cases: [string, string | Uint8Array | null, RegExp][] = [
        ["absent.jsonl", null, /absent\.jsonl: cannot be read: ENOENT/],
        ["absent.jsonl.gz", null, /absent\.jsonl\.gz: cannot be read: ENOENT/],
        ["data.csv", "a,b", /unknown kind of data file/],
        ["object.json", '{"prompt": 1}', /object\.json:1: .*must hold an array/],
        ["open.json", '[{"text":"a"},\n{"text":"b"}', /open\.json:2: the array is not closed/],
        [
          "more.json",
          '[{"text":"a"}]\n[{"text":"b"}]',
          /more\.json:2: there is more after the end of the array/,
        ],
        ["empty.json", "[]", /no usable row among 0 read/],
        ["empty.jsonl", "\n\n", /no usable row among 0 read/],
      ];
      for (const [name, text, message] of cases) {
        const file = text === null ? join(directory, name) : writeText(directory, name, text);
        await assert.rejects(loadSft(file), { code: "ERR_RLHF_DATA", message }, name);
      }
    });

    it("reports a .gz file that is damaged", async () => {
      const { gzipSync } = await import("node:zlib");
      const { writeFileSync } = await import("node:fs");
      const packed = gzipSync(
        jsonLines(Array.from({ length: 500 }, (_, index) => ({ text: `row ${index} ${Math.sin(index)}` }))),
      );
      const file = join(directory, "cut.jsonl.gz");
      writeFileSync(file, packed.subarray(0, packed.length / 2));
      await assert.rejects(loadSft(file), {
        code: "ERR_RLHF_DATA",
        message: /cut\.jsonl\.gz: cannot be read: unexpected end of file/,
      });
    });
  });

  describe("bad rows", () => {
    const text = [
      '{"prompt":"a","response":"b"}',
      "{not json",
      '{"prompt":1,"response":"b"}',
      "",
      '{"other":1}',
      '{"prompt":"c","response":" "}',
    ].join("\n");

    it("stop at file and line by default", async () => {
      const file = writeText(directory, "bad.jsonl", text);
      await assert.rejects(loadSft(file), (error: Error & { code: string; details: object }) => {
        assert.equal(error.code, "ERR_RLHF_DATA");
        assert.match(error.message, /bad\.jsonl:2: row is not JSON/);
        assert.deepEqual({ ...error.details, reason: "" }, { file, line: 2, reason: "" });
        return true;
      });
    });

    it("are counted and left out when asked", async () => {
      const file = writeText(directory, "bad.jsonl", text);
      const loaded = await loadSft(file, { onBadRow: "skip" });
      assert.deepEqual([...loaded], [{ prompt: "a", response: "b" }]);
      const { report } = loaded;
      assert.deepEqual([report.rowsRead, report.rowsKept, report.badRows], [5, 1, 4]);
      assert.deepEqual(
        report.firstBadRows.map((row) => row.line),
        [2, 3, 5, 6],
      );
      assert.match(report.firstBadRows[1]!.reason, /"prompt" must be a string, got number/);
      assert.match(report.firstBadRows[2]!.reason, /"prompt" is missing/);
      assert.match(report.firstBadRows[3]!.reason, /"response" is empty/);
    });

    it("in a .json array are found by the line they start on", async () => {
      const file = writeText(
        directory,
        "array.json",
        '[\n  {"text": "a, [b] \\"c\\""},\n\n  {"text": 5},\n  {"text": "d"}\n]\n',
      );
      const loaded = await loadSft(file, { onBadRow: "skip" });
      assert.deepEqual(
        [...loaded],
        [
          { prompt: "", response: 'a, [b] "c"' },
          { prompt: "", response: "d" },
        ],
      );
      assert.deepEqual(loaded.report.firstBadRows, [
        { file, line: 4, reason: '"text" must be a string, got number' },
      ]);
    });

    it("include bytes that are not UTF-8", async () => {
      const bytes = Buffer.concat([
        Buffer.from('{"text":"ok"}\n{"text":"'),
        Buffer.from([0xff, 0xfe]),
        Buffer.from('"}\n'),
      ]);
      const loaded = await loadSft(writeText(directory, "bytes.jsonl", bytes), { onBadRow: "skip" });
      assert.deepEqual(
        loaded.report.firstBadRows.map((row) => [row.line, row.reason]),
        [[2, "is not UTF-8 text"]],
      );
    });

    it("are an error when no other rows are left, which names the first", async () => {
      const file = writeText(directory, "all-bad.jsonl", '\n{"a":1}\n');
      const message =
        /all-bad\.jsonl: no usable row among 1 read; the first bad row is .*all-bad\.jsonl:2: has keys "a"; expected one of: \{prompt, response\}/;
      await assert.rejects(loadSft(file, { onBadRow: "skip" }), { code: "ERR_RLHF_DATA", message });
    });
  });

  describe("formats", () => {
    it("that are not known are refused before a row is read", async () => {
      const format = "promt-response" as "prompt-response";
      await assert.rejects(loadSft("none.jsonl", { format }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /unknown format "promt-response" \(did you mean "prompt-response"\?\)/,
      });
    });

    it("of fine-tuning data are detected", async () => {
      const messages = [
        { role: "user", content: "q" },
        { role: "assistant", content: "a" },
      ];
      const cases: [object, object][] = [
        [
          { document: "d", target: "t" },
          { prompt: "d", response: "t" },
        ],
        [{ text: "t" }, { prompt: "", response: "t" }],
        [{ messages }, { messages }],
      ];
      for (const [row, expected] of cases) {
        assert.deepEqual(
          [...(await loadSft(writeText(directory, "format.jsonl", jsonLines([row]))))],
          [expected],
        );
      }
    });

    it("of preferences serve fine-tuning too: the chosen answer is learnt", async () => {
      const pair = { prompt: "p", chosen: "good", rejected: "bad" };
      const dialogue = { chosen: "\n\nHuman: q\n\nAssistant: a", rejected: "\n\nHuman: q\n\nAssistant: " };
      const loaded = await loadSft([
        writeText(directory, "pair.jsonl", jsonLines([pair])),
        writeText(directory, "dialogue.jsonl", jsonLines([dialogue])),
      ]);
      assert.deepEqual([...loaded], [{ prompt: "p", response: "good" }]);
      assert.equal(loaded.report.preferences?.emptyReply, 1);
    });

    it("can be named, and then bind every row", async () => {
      const file = writeText(
        directory,
        "named.jsonl",
        jsonLines([{ prompt: "p", response: "r", text: "t" }]),
      );
      assert.deepEqual([...(await loadSft(file, { format: "text" }))], [{ prompt: "", response: "t" }]);
      await assert.rejects(loadSft(file, { format: "messages" }), {
        code: "ERR_RLHF_DATA",
        message: /"messages" is missing/,
      });
    });

    it("of prompts may be strings and objects, whose other keys are kept", async () => {
      const file = writeText(directory, "prompts.jsonl", jsonLines(["a", { prompt: "b", topic: 3 }]));
      assert.deepEqual(
        [...(await loadPrompts(file))],
        [{ prompt: "a" }, { prompt: "b", metadata: { topic: 3 } }],
      );
    });

    it("of preferences with a prompt keep the margin and drop empty and equal answers", async () => {
      const rows = [
        { prompt: "p", chosen: "a", rejected: "b", margin: 0.5 },
        { prompt: "p", chosen: "a", rejected: "a" },
        { prompt: "p", chosen: " ", rejected: "b" },
      ];
      const loaded = await loadPreferences(writeText(directory, "pairs.jsonl", jsonLines(rows)));
      assert.deepEqual([...loaded], [rows[0]]);
      assert.deepEqual(loaded.report.preferences, {
        multiTurn: 0,
        differingPrompts: 0,
        emptyReply: 1,
        identical: 1,
        ties: 0,
      });
    });
  });

  describe("HH-RLHF", () => {
    it("dialogues are split before the last answer", () => {
      assert.deepEqual(splitDialogue("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"), {
        prompt: "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
        response: " d",
      });
      assert.equal(splitDialogue("\n\nHuman: a"), null);
    });

    itWithShared(
      "harmless-base test split: 2,312 rows, 1,650 with several turns, 5 with differing prompts, 4 with an empty reply",
      async () => {
        const file = sharedFile("data/hh-rlhf/harmless-test.jsonl.gz");
        const { report, length } = await loadPreferences(file);
        assert.deepEqual(report.formats, ["hh-rlhf"]);
        assert.deepEqual([report.rowsRead, report.rowsKept, report.badRows, length], [2312, 2303, 0, 2303]);
        assert.deepEqual(report.preferences, {
          multiTurn: 1650,
          differingPrompts: 5,
          emptyReply: 4,
          identical: 0,
          ties: 0,
        });
      },
    );
  });
});
