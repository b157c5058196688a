import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { createProgram } from "../../lib/cli/program.ts";
import * as library from "../../lib/index.ts";
import {
  camelCase,
  type StageKind,
  stageAliases,
  stageKinds,
  stageSchemas,
} from "../../lib/pipeline/schema.ts";
import { SettingsFile } from "../../lib/pipeline/settings-file.ts";

const [guide = "", readme = ""] = ["docs/GUIDE.md", "README.md"].map((file) =>
  readFileSync(new URL(`../../${file}`, import.meta.url), "utf8"),
);

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

  it("shows settings of single stages that these take", () => {
    const yaml = [...guide.matchAll(/```yaml\n([\s\S]*?)```/g)].map((match) => match[1] ?? "");
    const firstKeys = {
      evaluate: "models",
      "feature-reward": "data_path",
      "environment-ppo": "environment_module",
    };
    for (const [kind, key] of Object.entries(firstKeys)) {
      const example = yaml.find((text) => text.startsWith(`${key}:`));
      const { value } = SettingsFile.parse(example ?? "", "guide");
      assert.ok(Object.keys(stageSchemas[kind as StageKind].parse(value)).length >= 4, kind);
    }
    assert.equal(yaml.length, 1 + Object.keys(firstKeys).length, "the pipeline is the other one");
  });

  it("and the README show commands and flags that there are", () => {
    const shown = [guide, readme].flatMap((text) => [
      ...text.matchAll(/^(?:npx )?node-rlhf ([^\n#]+)/gm),
      ...text.matchAll(/`node-rlhf ([^`|]+)`/g),
    ]);
    assert.ok(shown.length > 12, `${shown.length}`);
    for (const [line, words = ""] of shown) {
      let command: Command | undefined = createProgram();
      const [first, ...rest] = words.trim().split(/\s+/);
      if (first === "<command>") continue;
      const named = (name: string | undefined): Command | undefined =>
        command?.commands.find((each) => each.name() === name);
      command = named(first);
      assert.ok(command, line);
      if (named(rest[0])) command = named(rest[0]);
      const known = command?.options.map(({ long }) => long) ?? [];
      for (const flag of words.match(/(?<=\s)--[a-z-]+/g) ?? []) assert.ok(known.includes(flag), line);
    }
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
