#!/usr/bin/env node
// Packs what a Linux machine with CUDA, but without Node and network, needs to run test:cuda and bench:cuda: two archives and `run`, which
// unpacks them (offline-kit.sh). docs/PERFORMANCE.md says how it is used.
"use strict";

const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const { tmpdir } = require("node:os");
const { basename, dirname, join, resolve } = require("node:path");
const { parseArgs } = require("node:util");

const USAGE = `usage: node scripts/offline-kit.cjs [FOLDER]

Packs node.xz, app.tar.xz and run into FOLDER (default .kit), for: sh FOLDER/run test:cuda. Build everything before:
npm run build:native && npm run build:cuda. It needs tar, xz and strip.
`;

const root = resolve(__dirname, "..");
/** What travels to a GPU machine at the most, with the repository's own files beside it (some MiB). */
const LIMIT = 64 * 2 ** 20;
const BINARIES = ["Release/rlhf.node", "Release/librlhf_cuda.so", "kernels/rlhf_kernels.node"];
/** Files that compiled tests and benches read, by folder or name. */
const DATA = [
  "package.json",
  "test/reference",
  "test/data/fixtures",
  "examples",
  "bench/cuda",
  "bench/peers",
];
const SHARED = ["models/stories260k"];
/** What runs tests, beside the package's own dependencies. */
const TEST_PACKAGES = ["mocha"];
const LIBRARIES = ["libstdc++.so.6", "libgcc_s.so.1"];
const NEVER_LOADED = /\.(?:map|d\.[cm]?ts|md|markdown|flow)$/;

const readJson = (path) => JSON.parse(fs.readFileSync(path, "utf8"));

/** The folders of the packages that are loaded at run time, and of all that they need. */
function runtimePackages() {
  const found = new Map();
  const add = (name, from) => {
    // Not by require.resolve: packages need not export their package.json.
    let folder = join(from, "node_modules", name);
    for (let at = from; !fs.existsSync(folder); folder = join(at, "node_modules", name)) {
      if (dirname(at) === at) throw new Error(`${name} is not installed: npm install`);
      at = dirname(at);
    }
    if (found.has(folder)) return;
    found.set(folder, name);
    for (const needed of Object.keys(readJson(join(folder, "package.json")).dependencies ?? {}))
      add(needed, folder);
  };
  for (const name of [...Object.keys(readJson(join(root, "package.json")).dependencies), ...TEST_PACKAGES])
    add(name, root);
  return [...found.keys()].sort();
}

/** Where a package's folder belongs below the kit's node_modules. */
const modulePath = (folder) => folder.slice(folder.indexOf("node_modules"));

function requireBuilt() {
  for (const file of BINARIES)
    if (!fs.existsSync(join(root, "build", file)))
      throw new Error(`build/${file} is missing: npm run build:native && npm run build:cuda`);
}

const run = (command, ...args) =>
  execFileSync(command, args, { cwd: root, stdio: ["ignore", "ignore", "inherit"] });

function copy(from, to, filter = () => true) {
  fs.cpSync(from, to, { recursive: true, dereference: true, filter });
}

function copyPackages(app) {
  for (const folder of runtimePackages())
    copy(
      folder,
      join(app, modulePath(folder)),
      (path) => path === folder || (basename(path) !== "node_modules" && !NEVER_LOADED.test(path)),
    );
}

/** Everything in TypeScript as JavaScript in the same place. */
function compile(app) {
  const tsc = join(dirname(require.resolve("typescript/package.json", { paths: [root] })), "bin", "tsc");
  run(process.execPath, tsc, "-p", "tsconfig.json", "--noEmit", "false", "--outDir", app, "--rootDir", ".");
  // What names a TypeScript file for the library to import names its JavaScript here.
  const pipeline = join(app, "examples", "quickstart", "pipeline.yaml");
  fs.writeFileSync(pipeline, fs.readFileSync(pipeline, "utf8").replace(/(_module: .*)\.ts$/gm, "$1.js"));
}

function copyBinaries(app) {
  for (const file of BINARIES) {
    const target = join(app, "build", file);
    fs.mkdirSync(dirname(target), { recursive: true });
    run("strip", "--strip-unneeded", "-o", target, join(root, "build", file));
  }
}

/** The C++ runtime that this machine's Node is linked with. */
function copyLibraries(folder) {
  fs.mkdirSync(folder, { recursive: true });
  const linked = execFileSync("ldd", [process.execPath], { encoding: "utf8" });
  for (const name of LIBRARIES) {
    const path = linked
      .split("\n")
      .find((line) => line.includes(name))
      ?.match(/=> (\S+)/)?.[1];
    if (path) fs.copyFileSync(path, join(folder, name));
  }
}

function packNode(folder) {
  const stripped = join(folder, "node");
  run("strip", "--strip-all", "-o", stripped, process.execPath);
  run("xz", "-6", "--force", "-T0", stripped);
}

function packApp(folder, staging) {
  const app = join(staging, "app");
  fs.mkdirSync(app, { recursive: true });
  for (const name of DATA) copy(join(root, name), join(app, name), (path) => !path.endsWith(".ts"));
  compile(app);
  copyPackages(app);
  copyBinaries(app);
  copyLibraries(join(staging, "lib"));
  for (const name of SHARED) copy(join(root, "..", "shared", name), join(staging, "shared", name));
  run("tar", "-C", staging, "-cJf", join(folder, "app.tar.xz"), "app", "lib", "shared");
}

/** Packs a kit into a folder, made anew; returns the bytes of each of its files. */
function packKit(folder) {
  requireBuilt();
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(folder, { recursive: true });
  const staging = fs.mkdtempSync(join(tmpdir(), "rlhf-kit-"));
  try {
    packApp(folder, staging);
    packNode(folder);
    fs.copyFileSync(join(__dirname, "offline-kit.sh"), join(folder, "run"));
  } finally {
    fs.rmSync(staging, { recursive: true, force: true });
  }
  return Object.fromEntries(
    fs.readdirSync(folder).map((name) => [name, fs.statSync(join(folder, name)).size]),
  );
}

function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { help: { type: "boolean", short: "h" } },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const folder = resolve(positionals[0] ?? join(root, ".kit"));
  const sizes = packKit(folder);
  const total = Object.values(sizes).reduce((sum, bytes) => sum + bytes, 0);
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  for (const [name, bytes] of Object.entries(sizes)) console.log(`${name.padEnd(12)} ${mib(bytes)}`);
  console.log(`${"total".padEnd(12)} ${mib(total)} in ${folder}`);
  if (total >= LIMIT)
    throw new Error(`the kit has ${mib(total)}, and ${mib(LIMIT)} is the most that travels`);
}

module.exports = { runtimePackages, BINARIES, DATA, SHARED };

if (require.main === module) {
  try {
    main();
  } catch (error) {
    console.error(`offline-kit: ${error.message}`);
    process.exitCode = 1;
  }
}
