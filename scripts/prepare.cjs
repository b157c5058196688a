// What `npm install` does in a clone: compiles the addon and the TypeScript. npm does not run it for an installed package.
"use strict";

const { spawnSync } = require("node:child_process");
const { existsSync } = require("node:fs");
const { dirname, join, resolve } = require("node:path");
const { buildNative } = require("./build-native.cjs");

const root = resolve(__dirname, "..");

/** The folder of a development dependency, or undefined where `npm install --omit=dev` left it out. */
function findDevelopmentDependency(name) {
  try {
    return dirname(require.resolve(`${name}/package.json`, { paths: [root] }));
  } catch {
    return undefined;
  }
}

function buildTypeScript() {
  const typescript = findDevelopmentDependency("typescript");
  const result = spawnSync(process.execPath, [join(typescript, "bin", "tsc"), "-p", "tsconfig.build.json"], {
    cwd: root,
    stdio: "inherit",
  });
  if (result.status !== 0) throw new Error("the TypeScript build failed; the reason is above");
}

function main() {
  const isClone = existsSync(join(root, "binding.gyp")) && existsSync(join(root, "csrc", "node"));
  if (!isClone) return;
  if (!findDevelopmentDependency("cmake-js") || !findDevelopmentDependency("typescript")) {
    console.log("node-rlhf: nothing is built, because the development dependencies are not installed");
    return;
  }
  console.log(
    "node-rlhf: compiling the native engine (some minutes the first time; RLHF_JOBS sets the number of jobs)",
  );
  buildNative({ cuda: process.env.RLHF_CUDA === "ON" });
  console.log("node-rlhf: compiling TypeScript");
  buildTypeScript();
  console.log("node-rlhf: built");
}

try {
  main();
} catch (error) {
  console.error(`node-rlhf: ${error.message}`);
  process.exitCode = 1;
}
