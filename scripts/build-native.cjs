#!/usr/bin/env node
// Builds the native addon with CMake (through cmake-js) in this package, be it a clone or an installed package.
"use strict";

const { spawnSync } = require("node:child_process");
const { availableParallelism } = require("node:os");
const { dirname, join, resolve } = require("node:path");
const { parseArgs } = require("node:util");

const USAGE = `usage: node-rlhf-build [--cuda] [--sanitize memory|threads | --coverage] [--target NAME]

Compiles build/Release/rlhf.node. Needs CMake 3.22 or newer and a C++20 compiler.

  --cuda      also compile the CUDA backend, build/Release/librlhf_cuda.so (needs nvcc; RLHF_CUDA=ON does the same)
  --sanitize  a second build with AddressSanitizer and UndefinedBehaviorSanitizer (memory) or ThreadSanitizer (threads),
              in build/sanitize-memory or build/sanitize-threads
  --coverage  a second build with gcov instrumentation, in build/coverage
  --target    only this CMake target, such as rlhf or rlhf_kernels (in a clone: the tests' addon)

RLHF_JOBS sets the number of compiler processes (default: one per CPU).
A second build is loaded where RLHF_BUILD_DIR names its folder.
`;

const root = resolve(__dirname, "..");

/** The folder of cmake-js, wherever the package manager put it: beside this package, above it or in the user's project. */
function findCmakeJs() {
  try {
    return dirname(require.resolve("cmake-js/package.json", { paths: [root, process.cwd()] }));
  } catch {
    throw new Error(
      "cmake-js is not installed, and the build needs it: npm install --save-dev cmake-js node-addon-api, then try again",
    );
  }
}

/** Configures and builds one CMake build folder; `options` become CMake cache variables. Throws if a step fails. */
function runCmake(buildFolder, options, target) {
  const cli = join(findCmakeJs(), "bin", "cmake-js");
  const common = ["--directory", root, "--out", join(root, "build", buildFolder), "--config", "Release"];
  for (const [name, value] of Object.entries(options)) common.push(`--CD${name}=${value}`);
  const jobs = process.env.RLHF_JOBS || String(availableParallelism());
  const steps = [
    ["configure", ...common],
    ["build", ...common, "--parallel", jobs, ...(target ? ["--target", target] : [])],
  ];
  for (const step of steps) {
    const result = spawnSync(process.execPath, [cli, ...step], { cwd: root, stdio: "inherit" });
    if (result.error) throw result.error;
    if (result.status !== 0)
      throw new Error(`the native build failed in its ${step[0]} step; the reason is above`);
  }
}

/** Instrumented builds, by the folder below build/. */
const VARIANTS = {
  "sanitize-memory": { RLHF_SANITIZE: "address,undefined" },
  "sanitize-threads": { RLHF_SANITIZE: "thread" },
  coverage: { RLHF_COVERAGE: "ON" },
};

/** Settings that send both addons of an instrumented build to a folder of its own. */
function variantOptions(variant) {
  return {
    ...VARIANTS[variant],
    RLHF_CUDA: "OFF",
    RLHF_OUTPUT_DIRECTORY: join(root, "build", variant, "Release"),
    RLHF_KERNELS_OUTPUT_DIRECTORY: join(root, "build", variant, "kernels"),
  };
}

/**
 * Builds what the options ask for. The CUDA backend has a CMake folder of its own, so that building the addon without it
 * leaves its objects alone. CMake's folders lie below build/ because node-gyp keeps a Makefile of its own in build/.
 */
function buildNative({ cuda = false, sanitize, coverage = false, target } = {}) {
  if (sanitize !== undefined || coverage) {
    const variant = coverage ? "coverage" : `sanitize-${sanitize}`;
    if (!VARIANTS[variant]) throw new Error(`--sanitize takes memory or threads, not ${sanitize}`);
    runCmake(`cmake-${variant}`, variantOptions(variant), target);
    return;
  }
  runCmake("cmake", { RLHF_CUDA: "OFF" }, target);
  if (cuda) runCmake("cmake-cuda", { RLHF_CUDA: "ON" }, "rlhf_cuda");
}

function main() {
  const { values } = parseArgs({
    options: {
      cuda: { type: "boolean", default: process.env.RLHF_CUDA === "ON" },
      sanitize: { type: "string" },
      coverage: { type: "boolean" },
      target: { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  buildNative(values);
}

module.exports = { buildNative, runCmake };

if (require.main === module) {
  try {
    main();
  } catch (error) {
    process.stderr.write(`node-rlhf-build: ${error.message}\n`);
    process.exitCode = 1;
  }
}
