// What `npm install` does in a clone: compiles the addon and the TypeScript. npm does not run it for an installed package.
"use strict";

const { existsSync } = require("node:fs");
const { join, resolve } = require("node:path");
const { buildNative } = require("./build-native.cjs");

const root = resolve(__dirname, "..");

/** Whether the development dependencies are there; `npm install --omit=dev` leaves them out. */
function hasDevelopmentDependencies() {
  try {
    for (const name of ["cmake-js", "typescript", "esbuild"])
      require.resolve(`${name}/package.json`, { paths: [root] });
    return true;
  } catch {
    return false;
  }
}

async function main() {
  const isClone = existsSync(join(root, "binding.gyp")) && existsSync(join(root, "csrc", "node"));
  if (!isClone) return;
  if (!hasDevelopmentDependencies()) {
    console.log("node-rlhf: nothing is built, because the development dependencies are not installed");
    return;
  }
  console.log(
    "node-rlhf: compiling the native engine (some minutes the first time; RLHF_JOBS sets the number of jobs)",
  );
  buildNative({ cuda: process.env.RLHF_CUDA === "ON" });
  console.log("node-rlhf: compiling TypeScript");
  await require("./build-ts.cjs").buildTypeScript();
  console.log("node-rlhf: built");
}

main().catch((error) => {
  console.error(`node-rlhf: ${error.message}`);
  process.exitCode = 1;
});
