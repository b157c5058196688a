#!/usr/bin/env node
// Builds both addons with AddressSanitizer and UndefinedBehaviorSanitizer in build/sanitize and runs tests with them:
//
//   npm run test:sanitize [-- FILE…]        default: operators, emulator, engine and models
//
// What the sanitizers find ends the run with their report. Linux and GCC or Clang.
"use strict";

const { spawnSync } = require("node:child_process");
const { readFileSync } = require("node:fs");
const { join, resolve } = require("node:path");
const { buildNative } = require("./build-native.cjs");

const root = resolve(__dirname, "..");
const DEFAULT = ["ops", "simt", "engine", "model"].map((folder) => `test/${folder}/**/*.test.ts`);

/** A library that the compiler of the build brings along. */
function libraryOf(compiler, name) {
  const { stdout } = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" });
  return stdout.trim();
}

function main() {
  buildNative({ sanitize: true });
  const cache = readFileSync(join(root, "build/cmake-sanitize/CMakeCache.txt"), "utf8");
  const compiler = /^CMAKE_CXX_COMPILER:\w+=(.*)$/m.exec(cache)?.[1] ?? "c++";
  // Node is not instrumented, so the runtime has to be there before it; libstdc++ too, or the runtime finds no exceptions to intercept.
  const preloaded = ["libasan.so", "libstdc++.so"].map((name) => libraryOf(compiler, name));
  const tests = process.argv.length > 2 ? process.argv.slice(2) : DEFAULT;
  const options = ["--no-config", "-n", "import=tsx", "--timeout", "0", "--bail"];
  const { status } = spawnSync(join(root, "node_modules/.bin/mocha"), [...options, ...tests], {
    cwd: root,
    stdio: "inherit",
    env: {
      ...process.env,
      RLHF_BUILD_DIR: join(root, "build/sanitize"),
      LD_PRELOAD: preloaded.join(":"),
      // Node never frees some of what it takes; the emulator's fibers have stacks of their own.
      ASAN_OPTIONS: "detect_leaks=0:detect_stack_use_after_return=0",
      UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
    },
  });
  process.exitCode = status ?? 1;
}

main();
