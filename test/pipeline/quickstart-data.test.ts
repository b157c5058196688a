import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { makeData } from "../../examples/quickstart/make-data.ts";
import { loadPreferences } from "../../lib/data/preferences.ts";
import { loadPrompts } from "../../lib/data/prompts.ts";
import { loadSft } from "../../lib/data/sft.ts";

const file = (name: string): string =>
  fileURLToPath(new URL(`../../examples/quickstart/data/${name}`, import.meta.url));

describe("the quickstart's data", () => {
  it("is what make-data.ts writes, and small", () => {
    const data = makeData();
    for (const [name, text] of Object.entries(data))
      assert.equal(readFileSync(file(name), "utf8"), text, name);
    assert.ok(Object.values(data).join("").length < 200_000);
  });

  it("is read without a bad row", async () => {
    for (const part of ["", "held-out-"]) {
      for (const load of [
        () => loadSft(file(`${part}sft.jsonl`)),
        () => loadPreferences(file(`${part}preferences.jsonl`)),
        () => loadPrompts(file(`${part}prompts.jsonl`)),
      ]) {
        const { report } = await load();
        assert.equal(report.rowsKept, report.rowsRead);
      }
    }
  });

  it("holds questions out that no other file asks", async () => {
    const heldOut = new Set((await loadPrompts(file("held-out-prompts.jsonl"))).map((row) => row.prompt));
    assert.ok(heldOut.size >= 10);
    const others = ["sft.jsonl", "preferences.jsonl", "prompts.jsonl"].map((name) =>
      readFileSync(file(name), "utf8"),
    );
    for (const prompt of heldOut) {
      assert.ok(
        others.every((text) => !text.includes(JSON.stringify(prompt))),
        prompt,
      );
    }
  });
});
