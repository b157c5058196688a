// Builds dist/: types by tsc, JavaScript by esbuild. Loading some bundled files takes half the time of loading every source on its own.
"use strict";

const { spawnSync } = require("node:child_process");
const { rmSync } = require("node:fs");
const { join, resolve } = require("node:path");

const root = resolve(__dirname, "..");

/** Writes the types of every source; throws where one has an error. */
function writeTypes(folder) {
  const tsc = require
    .resolve("typescript/package.json", { paths: [root] })
    .replace("package.json", "bin/tsc");
  const result = spawnSync(process.execPath, [tsc, "-p", "tsconfig.build.json", "--outDir", folder], {
    cwd: root,
    stdio: "inherit",
  });
  if (result.status !== 0) throw new Error("the TypeScript build failed; the reason is above");
}

/** Bundles the library and the command line tool. What both use stands in chunks/ once, so that a class is one class in both. */
async function writeBundles(folder) {
  await require("esbuild").build({
    absWorkingDir: root,
    entryPoints: ["lib/index.ts", "lib/cli/main.ts"],
    outdir: folder,
    chunkNames: "chunks/[name]-[hash]",
    bundle: true,
    splitting: true,
    packages: "external",
    format: "esm",
    platform: "node",
    target: "node20.19",
    sourcemap: true,
    logLevel: "warning",
  });
}

/** Builds `folder` anew. */
async function buildTypeScript(folder = join(root, "dist")) {
  rmSync(folder, { recursive: true, force: true });
  writeTypes(folder);
  await writeBundles(folder);
}

module.exports = { buildTypeScript };

if (require.main === module) {
  buildTypeScript(process.argv[2] && resolve(process.argv[2])).catch((error) => {
    console.error(`node-rlhf: ${error.message}`);
    process.exitCode = 1;
  });
}
