import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as library from "../../lib/index.ts";
import { camelCase, stageAliases, stageKinds, stageSchemas } from "../../lib/pipeline/schema.ts";
import { SettingsFile } from "../../lib/pipeline/settings-file.ts";

const guide = readFileSync(new URL("../../docs/GUIDE.md", import.meta.url), "utf8");

describe("the guide", () => {
  for (const kind of stageKinds) {
    it(`names every setting of ${kind}`, () => {
      const keys = Object.keys(stageSchemas[kind].shape);
      const missing = keys.filter(
        (key) => ![key, camelCase(key)].some((name) => guide.includes(`\`${name}\``)),
      );
      assert.deepEqual(missing, []);
    });
  }

  it("shows settings of evaluate that it takes", () => {
    const yaml = [...guide.matchAll(/```yaml\n([\s\S]*?)```/g)].map((match) => match[1] ?? "");
    const example = yaml.find((text) => text.startsWith("models:"));
    const settings = stageSchemas.evaluate.parse(SettingsFile.parse(example ?? "", "guide").value);
    assert.ok(Object.keys(settings).length >= 4);
  });

  it("imports and calls only what the package exports", () => {
    const code = [...guide.matchAll(/```ts\n([\s\S]*?)```/g)].map((match) => match[1]).join("\n");
    const imported = [...code.matchAll(/import \{([^}]*)\}/g)].flatMap((match) =>
      (match[1] ?? "").split(","),
    );
    const called = [...code.matchAll(/(?:await|new|const .* =) ([A-Za-z]+)\(/g)].map(
      (match) => match[1] ?? "",
    );
    const names = [...imported, ...called]
      .map((name) => name.trim())
      .filter((name) => name !== "AbortController");
    assert.ok(names.length > 8, `${names}`);
    for (const name of names) assert.ok(name in library, name);
  });

  it("shows a pipeline of known keys, and aliases that exist", () => {
    const yaml = /```yaml\n([\s\S]*?)```/.exec(guide)?.[1] ?? "";
    const { stages } = SettingsFile.parse(yaml, "guide").value as { stages: Record<string, unknown>[] };
    assert.equal(stages.length, 4);
    for (const stage of stages)
      for (const kind of stageKinds) if (stage[kind] !== undefined) stageSchemas[kind].parse(stage[kind]);
    const aliases = stageKinds.flatMap((kind) => Object.keys(stageAliases[kind]));
    const listed = /aliases \(([^)]*)\)/.exec(guide)?.[1] ?? "";
    const flags = [...listed.matchAll(/`--([a-z-]+)`/g)].map((match) =>
      (match[1] ?? "").replaceAll("-", "_"),
    );
    assert.ok(flags.length > 3);
    for (const flag of flags) assert.ok(aliases.includes(flag), flag);
  });

  it("lists every error code with its meaning, and no other", () => {
    const [beforeTroubles = ""] = guide.split("\n## Troubleshooting\n");
    const listed = [...beforeTroubles.matchAll(/^\| `(ERR_RLHF_\w+)` \| (.*) \|$/gm)].map(
      ([, code, meaning]) => [code, meaning],
    );
    assert.equal(listed.length, Object.keys(library.ERROR_CODES).length, "none is listed twice");
    assert.deepEqual(Object.fromEntries(listed), library.ERROR_CODES);
  });

  it("names in its troubleshooting only settings and metrics that it describes elsewhere", () => {
    const [rest = "", troubles = ""] = guide.split("\n## Troubleshooting\n");
    assert.ok(troubles.length > 1000);
    const names = [...troubles.matchAll(/`([A-Za-z_/]+)`/g)].map((match) => match[1] ?? "");
    const unknown = names.filter((name) => !rest.includes(name));
    assert.deepEqual([...new Set(unknown)], []);
  });
});
