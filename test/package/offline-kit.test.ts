import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";
import { itWithShared, sharedFile } from "../data/support.ts";

interface OfflineKit {
  runtimePackages(): string[];
  readonly DATA: readonly string[];
  readonly SHARED: readonly string[];
}

const ROOT = join(import.meta.dirname, "../..");
const SCRIPTS = join(ROOT, "scripts");

/** What can be seen without packing it, which takes a minute. */
describe("offline kit", () => {
  const kit = createRequire(import.meta.url)(join(SCRIPTS, "offline-kit.cjs")) as OfflineKit;

  it("takes the packages that run time and tests need, with what they need, and no tool that makes things", () => {
    const packages = kit.runtimePackages();
    const names = packages.map((folder) => folder.slice(folder.lastIndexOf("node_modules/") + 13));
    // minimatch is what mocha needs.
    for (const name of ["mocha", "minimatch", "@huggingface/tokenizers", "zod", "node-gyp-build"])
      assert.ok(names.includes(name), name);
    for (const name of ["typescript", "esbuild", "tsx", "@biomejs/biome", "cmake-js"])
      assert.ok(!names.includes(name), name);
    assert.equal(new Set(packages).size, packages.length);
    for (const folder of packages) assert.ok(existsSync(join(folder, "package.json")), basename(folder));
  });

  it("takes files that are there", () => {
    for (const path of kit.DATA) assert.ok(existsSync(join(ROOT, path)), path);
  });

  itWithShared("takes models that are there", async () => {
    for (const path of kit.SHARED) assert.ok(existsSync(sharedFile(path)), path);
  });

  it("has a launcher that a plain shell reads", () => {
    const run = spawnSync("sh", ["-n", join(SCRIPTS, "offline-kit.sh")], { encoding: "utf8" });
    assert.deepEqual([run.status, run.stderr], [0, ""]);
  });
});
