import assert from "node:assert/strict";
import fc from "fast-check";
import { splitConversations } from "../../lib/data/conversations.ts";
import { ArraySplitter } from "../../lib/data/json-array.ts";
import { loadScored, loadUnpaired } from "../../lib/data/labelled.ts";
import { loadPreferences } from "../../lib/data/preferences.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import type { RawRow } from "../../lib/data/raw-row.ts";
import { placeOf } from "../../lib/data/readers.ts";
import { loadSft } from "../../lib/data/sft.ts";
import type { ChatMessage } from "../../lib/data/types.ts";
import { jsonLines, temporaryDirectory, writeText } from "./support.ts";

const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });

describe("formats of data rows", () => {
  const directory = temporaryDirectory();
  const rowsFile = (...rows: unknown[]): string => writeText(directory, "rows.jsonl", jsonLines(rows));

  describe("of preferences", () => {
    const reply = { prompt: [user("q")], chosen: [assistant("good")], rejected: [assistant("bad")] };

    it("as lists of messages: replies alone, whole conversations, a prompt as text", async () => {
      const cases = [
        reply,
        { chosen: [user("q"), assistant("good")], rejected: [user("q"), assistant("bad")] },
        { prompt: "q", chosen: [user("q"), assistant("good")], rejected: [user("q"), assistant("bad")] },
        { prompt: "q", chosen: [assistant("good")], rejected: [assistant("bad")] },
        { prompt: [user("q")], chosen: "good", rejected: "bad" },
        { prompt: user("q"), chosen: assistant("good"), rejected: assistant("bad") },
      ];
      for (const row of cases)
        assert.deepEqual([...(await loadPreferences(rowsFile(row)))], [reply], JSON.stringify(row));
      const { report } = await loadPreferences(rowsFile(cases[1]));
      assert.deepEqual(report.formats, ["chat-pair"]);
    });

    it("as Chatbot Arena battles of several turns keep each side's own turns", async () => {
      const row = {
        conversation_a: [user("1"), assistant("a1"), user("2"), assistant("a2")],
        conversation_b: [user("1"), assistant("b1"), user("2"), assistant("b2")],
        winner: "model_b",
      };
      assert.deepEqual(
        [...(await loadPreferences(rowsFile(row)))],
        [
          {
            prompt: [user("1")],
            chosen: [assistant("b1"), user("2"), assistant("b2")],
            rejected: [assistant("a1"), user("2"), assistant("a2")],
          },
        ],
      );
    });

    it("that are wrong say how", async () => {
      const battle = {
        conversation_a: [user("1"), assistant("a")],
        conversation_b: [user("1"), assistant("b")],
      };
      const cases: [object, RegExp][] = [
        [{ ...battle, winner: "model_c" }, /"winner" must be "model_a", .* got "model_c"/],
        [battle, /"winner" must be .* got undefined/],
        [
          { ...battle, conversation_b: [user("2"), assistant("b")], winner: "tie" },
          /do not begin with the same/,
        ],
        [
          { prompt: [user("q")], chosen: [user("x")], rejected: [assistant("y")] },
          /conversations that do not begin/,
        ],
        [
          { prompt: "q", chosen: [user("q")], rejected: [{ role: "x" }] },
          /"rejected\[0\]" must be \{role, content\}/,
        ],
        [{ prompt: "q", chosen: [], rejected: [assistant("y")] }, /"chosen" is empty/],
        [
          { prompt: "q", chosen: "a", rejected: "b", margin: "1" },
          /"margin" must be a finite number, got string/,
        ],
        [
          { prompt: { other: 1 }, chosen: "a", rejected: "b" },
          /"prompt" must be a string, a list of messages or an/,
        ],
      ];
      for (const [row, message] of cases)
        await assert.rejects(loadPreferences(rowsFile(row)), { code: "ERR_RLHF_DATA", message });
    });

    it("cut conversations after what they share, and lose none of it", () => {
      const message = fc.record(
        {
          role: fc.constantFrom("user", "assistant", "system"),
          content: fc.constantFrom("x", "y"),
        },
        { noNullPrototype: true },
      );
      const conversation = fc.array(message, { minLength: 1, maxLength: 6 });
      fc.assert(
        fc.property(conversation, conversation, (a, b) => {
          const [prompt, first, second] = splitConversations(a, b);
          assert.deepEqual([...prompt, ...first], a);
          assert.deepEqual([...prompt, ...second], b);
          if (prompt.length > 0) assert.equal(first[0]?.role, "assistant");
        }),
      );
    });
  });

  describe("of fine-tuning", () => {
    it("take prompt and completion, as text or as messages, and no answer with a thumb down", async () => {
      const rows = await loadSft(
        rowsFile(
          { prompt: "p", completion: "c" },
          { prompt: [user("q")], completion: [assistant("a")] },
          { prompt: "p", completion: "good", label: true },
          { prompt: "p", completion: "bad", label: false },
        ),
      );
      assert.deepEqual(
        [...rows],
        [
          { prompt: "p", response: "c" },
          { prompt: [user("q")], response: [assistant("a")] },
          { prompt: "p", response: "good" },
        ],
      );
      assert.equal(rows.report.droppedRows, 1);
      assert.match(rows.report.firstDroppedRows[0]!.reason, /label false/);
    });
  });

  describe("of labelled answers", () => {
    it("take labels as booleans or numbers", async () => {
      const rows = await loadUnpaired(
        rowsFile(
          { prompt: "p", completion: "a", label: true },
          { prompt: [user("q")], completion: "b", label: 0 },
        ),
      );
      assert.deepEqual(
        [...rows],
        [
          { prompt: "p", completion: "a", label: true },
          { prompt: [user("q")], completion: [assistant("b")], label: false },
        ],
      );
      for (const [label, message] of [
        ["yes", /"label" must be true or false, got "yes"/],
        [undefined, /"label" is missing/],
      ] as const)
        await assert.rejects(loadUnpaired(rowsFile({ prompt: "p", completion: "a", label })), {
          code: "ERR_RLHF_DATA",
          message,
        });
    });

    it("take a preference as two answers", async () => {
      const rows = await loadUnpaired(rowsFile({ prompt: "p", chosen: "a", rejected: "b" }));
      assert.deepEqual(
        [...rows],
        [
          { prompt: "p", completion: "a", label: true },
          { prompt: "p", completion: "b", label: false },
        ],
      );
      assert.deepEqual([rows.report.rowsRead, rows.report.rowsKept], [1, 2]);
    });

    it("take scores", async () => {
      const row = { prompt: "p", response: "r", score: -0.5 };
      assert.deepEqual([...(await loadScored(rowsFile(row)))], [row]);
      await assert.rejects(loadScored(rowsFile({ ...row, score: "high" })), {
        code: "ERR_RLHF_DATA",
        message: /"score" must be a finite number, got string/,
      });
    });
  });

  describe("of prompts", () => {
    it("take strings, objects and conversations, less the answers at their end", async () => {
      const rows = await loadPrompts(
        rowsFile(
          "a",
          { prompt: "b" },
          { prompt: { text: "c" }, topic: 1 },
          { prompt: [user("q"), assistant("a")] },
          { messages: [user("q"), assistant("a"), user("r")], topic: 2 },
        ),
      );
      assert.deepEqual(
        [...rows],
        [
          { prompt: "a" },
          { prompt: "b" },
          { prompt: "c", metadata: { topic: 1 } },
          { prompt: "q", messages: [user("q")] },
          { prompt: "r", messages: [user("q"), assistant("a"), user("r")], metadata: { topic: 2 } },
        ],
      );
    });
  });

  it("duplicates are left out when asked, over all files", async () => {
    const a = writeText(directory, "a.jsonl", jsonLines([{ text: "x" }, { text: "y" }, { text: "x" }]));
    const b = writeText(directory, "b.jsonl", jsonLines([{ text: "y", id: 7 }, { text: "z" }]));
    assert.equal((await loadSft([a, b])).length, 5);
    const rows = await loadSft([a, b], { duplicates: "drop" });
    assert.deepEqual(
      rows.map((row) => ("response" in row ? row.response : "")),
      ["x", "y", "z"],
    );
    assert.deepEqual(
      rows.report.firstDroppedRows.map(({ file, line }) => [file, line]),
      [
        [a, 3],
        [b, 1],
      ],
    );
    assert.deepEqual(placeOf(rows[2]!), { file: b, line: 2 });
  });

  it("an array is cut into its elements the same wherever the file's chunks end", () => {
    fc.assert(
      fc.property(
        fc.array(fc.jsonValue(), { maxLength: 6 }),
        fc.constantFrom(undefined, 1, "\t"),
        fc.integer({ min: 1, max: 9 }),
        fc.constantFrom("", "\ufeff"),
        (values, indent, size, mark) => {
          const text = JSON.stringify(values, null, indent);
          const bytes = Buffer.from(mark + text);
          const splitter = new ArraySplitter("x.json");
          const rows: RawRow[] = [];
          for (let at = 0; at < bytes.length; at += size)
            rows.push(...splitter.push(bytes.subarray(at, at + size)));
          splitter.end();
          const read = rows.map((row) => JSON.parse("text" in row ? row.text! : "") as unknown);
          assert.deepEqual(read, JSON.parse(text));
        },
      ),
    );
  });
});
