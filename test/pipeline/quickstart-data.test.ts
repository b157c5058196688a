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
    for (const load of [
      () => loadSft(file("sft.jsonl")),
      () => loadPreferences(file("preferences.jsonl")),
      () => loadPrompts(file("prompts.jsonl")),
    ]) {
      const { report } = await load();
      assert.equal(report.rowsKept, report.rowsRead);
    }
  });

  it("holds out prompts that PPO does not see", async () => {
    const seen = new Set((await loadPrompts(file("prompts.jsonl"))).map((row) => row.prompt));
    const heldOut = await loadPrompts(file("held-out-prompts.jsonl"));
    assert.ok(heldOut.length >= 10 && heldOut.every((row) => !seen.has(row.prompt)));
  });
});
