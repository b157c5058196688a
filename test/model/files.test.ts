import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { mergeLora } from "../../lib/model/adapters.ts";
import { writeAtomically, writeFileAtomically } from "../../lib/model/files.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";

describe("files written atomically", () => {
  it("sweep up what a killed writer of the same file left, and nothing else", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = join(directory, "model.safetensors");
      const ended = spawnSync(process.execPath, ["--version"]).pid;
      const others = [
        `model.safetensors.${process.pid}.9.tmp`,
        `other.${ended}.0.tmp`,
        "model.safetensors.tmp",
      ];
      for (const name of [...others, `model.safetensors.${ended}.0.tmp`])
        await writeFile(join(directory, name), "part");
      await writeFileAtomically(path, "whole");
      assert.deepEqual((await readdir(directory)).sort(), [...others, "model.safetensors"].sort());
    });
  });

  it("do not mix when one process writes a file twice at a time", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = join(directory, "x");
      const write = (letter: string): Promise<void> =>
        writeAtomically(path, async (file) => {
          for (let i = 0; i < 20; i++) {
            await file.write(letter);
            await nextTurn();
          }
        });
      await Promise.all([write("a"), write("b")]);
      assert.match(await readFile(path, "utf8"), /^(a{20}|b{20})$/);
      assert.deepEqual(await readdir(directory), ["x"]);
    });
  });
});

describe("mergeLora", () => {
  it("lets the event loop go on while a large layer is merged", async () => {
    const [size, r] = [1500, 8];
    const a = new Float32Array(r * size).fill(0.5);
    const b = new Float32Array(size * r).fill(0.25);
    let merging = true;
    let turns = 0;
    const merged = mergeLora(new Float32Array(size * size), a, b, { rank: r, scale: 2 }, false).finally(
      () => {
        merging = false;
      },
    );
    while (merging) {
      await nextTurn();
      turns++;
    }
    assert.ok(turns >= 4, `${turns} turns`);
    assert.ok((await merged).every((value) => value === 2 * 8 * 0.125));
  });
});
