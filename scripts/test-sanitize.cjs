#!/usr/bin/env node
// Builds both addons with sanitizers and runs tests with them:
//
//   npm run test:sanitize [-- FILE…]            AddressSanitizer and UndefinedBehaviorSanitizer, in build/sanitize-memory;
//                                               default: operators, emulator, engine and models
//   npm run test:sanitize -- --threads [FILE…]  ThreadSanitizer, in build/sanitize-threads; default: trainers, and parity
//                                               tests of models large enough to be shared out over threads
//
// What the sanitizers find ends the run with their report. Linux and GCC or Clang.
"use strict";

const { spawnSync } = require("node:child_process");
const { readFileSync } = require("node:fs");
const { join, resolve } = require("node:path");
const { buildNative } = require("./build-native.cjs");

const root = resolve(__dirname, "..");
const inFolders = (...folders) => folders.map((folder) => `test/${folder}/**/*.test.ts`);

const KINDS = {
  memory: {
    runtime: "libasan.so",
    tests: inFolders("ops", "simt", "engine", "model"),
    // Node never frees some of what it takes; the emulator's fibers have stacks of their own.
    environment: {
      ASAN_OPTIONS: "detect_leaks=0:detect_stack_use_after_return=0",
      UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
    },
  },
  threads: {
    runtime: "libtsan.so",
    tests: [
      ...["batch-invariance", "generation", "trajectories"].map((name) => `test/parity/${name}.test.ts`),
      ...inFolders("trainers"),
    ],
    // Node is not instrumented, so what it does by means that are not seen looks like a race.
    environment: {
      TSAN_OPTIONS: `halt_on_error=1:suppressions=${join(__dirname, "thread-sanitizer.supp")}`,
    },
  },
};

/** A library that the compiler of the build brings along. */
function libraryOf(compiler, name) {
  const { stdout } = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" });
  return stdout.trim();
}

function main() {
  const given = process.argv.slice(2);
  const name = given[0] === "--threads" ? "threads" : "memory";
  const files = name === "threads" ? given.slice(1) : given;
  const { runtime, tests, environment } = KINDS[name];
  buildNative({ sanitize: name });
  const cache = readFileSync(join(root, `build/cmake-sanitize-${name}/CMakeCache.txt`), "utf8");
  const compiler = /^CMAKE_CXX_COMPILER:\w+=(.*)$/m.exec(cache)?.[1] ?? "c++";
  // Node is not instrumented, so the runtime has to be there before it; libstdc++ too, or the runtime finds no exceptions to intercept.
  const preloaded = [runtime, "libstdc++.so"].map((library) => libraryOf(compiler, library));
  const options = ["--no-config", "-n", "import=tsx", "--timeout", "0", "--bail"];
  const mocha = join(root, "node_modules/mocha/bin/mocha.js");
  const { status } = spawnSync(process.execPath, [mocha, ...options, ...(files.length > 0 ? files : tests)], {
    cwd: root,
    stdio: "inherit",
    env: {
      ...process.env,
      ...environment,
      RLHF_BUILD_DIR: join(root, `build/sanitize-${name}`),
      LD_PRELOAD: preloaded.join(":"),
    },
  });
  process.exitCode = status ?? 1;
}

main();
