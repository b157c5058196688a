import assert from "node:assert/strict";
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, posix } from "node:path";
import { bareEnvironment, type PackedTarball, packRelease, repository } from "./stage.ts";

describe("the published package", function () {
  this.timeout(300_000);

  let folder: string;
  let consumer: string;
  let tarball: PackedTarball;
  let environment: NodeJS.ProcessEnv;
  let installation: SpawnSyncReturns<string>;

  function runInConsumer(command: string, args: string[]): SpawnSyncReturns<string> {
    return spawnSync(command, args, { cwd: consumer, env: environment, encoding: "utf8" });
  }

  before(() => {
    folder = mkdtempSync(join(tmpdir(), "node-rlhf-package-"));
    consumer = join(folder, "consumer");
    mkdirSync(consumer);
    tarball = packRelease(folder);
    environment = bareEnvironment(folder);
    installation = runInConsumer("npm", [
      "install",
      tarball.path,
      "--prefer-offline",
      "--no-audit",
      "--no-fund",
      "--foreground-scripts",
    ]);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  it("holds the prebuilt binary, the types and what a build by hand needs", () => {
    const binary = new RegExp(`^prebuilds/${process.platform}-${process.arch}/node-rlhf\\..*node$`);
    assert.equal(tarball.files.filter((file) => binary.test(file)).length, 1);
    const required = [
      "dist/index.js",
      "dist/index.d.ts",
      "dist/cli/main.js",
      "CMakeLists.txt",
      "scripts/build-native.cjs",
      "LICENSE",
    ];
    assert.deepEqual(
      required.filter((file) => !tarball.files.includes(file)),
      [],
    );
  });

  it("holds nothing that makes npm compile, and none of the repository's own parts", () => {
    const unwanted = /^(?:binding\.gyp|lib|test|bench|cmake\/kernels|csrc\/(?:ref|simt|node\/kernels))/;
    assert.deepEqual(
      tarball.files.filter((file) => unwanted.test(file)),
      [],
    );
    const manifest = JSON.parse(readFileSync(join(repository, "package.json"), "utf8"));
    for (const script of ["preinstall", "install", "postinstall"]) assert.ok(!(script in manifest.scripts));
  });

  it("holds every header that its native sources include", () => {
    const missing: string[] = [];
    for (const file of tarball.files.filter((path) => /^csrc\/.*\.(?:cc|h|cu|cuh)$/.test(path))) {
      const text = readFileSync(join(repository, file), "utf8");
      for (const [, header] of text.matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)) {
        // The emulator's headers are asked for by the tests' build alone, behind RLHF_SIMT.
        if (file.startsWith("csrc/cuda/") && header!.startsWith("simt/")) continue;
        const candidates = [posix.join("csrc", header!), posix.join(posix.dirname(file), header!)];
        if (!candidates.some((path) => tarball.files.includes(path))) missing.push(`${file}: ${header}`);
      }
    }
    assert.deepEqual(missing, []);
  });

  it("installs with no compiler on PATH, running no script and building nothing", () => {
    for (const tool of ["cc", "g++", "clang++", "cmake", "make", "ninja", "python3"]) {
      assert.notEqual(runInConsumer(tool, ["--version"]).error, undefined, `${tool} is on the bare PATH`);
    }
    const output = installation.stdout + installation.stderr;
    assert.equal(installation.status, 0, output);
    assert.doesNotMatch(output, /node-gyp|cmake|compiling/i);
    const installed = join(consumer, "node_modules/node-rlhf");
    assert.deepEqual(
      ["build", "binding.gyp", "scripts/prepare.cjs"].filter((path) => existsSync(join(installed, path))),
      [],
    );
  });

  it("is imported there and trains a step", () => {
    copyFileSync(join(repository, "test/package/train-step.mjs"), join(consumer, "train-step.mjs"));
    const run = runInConsumer("node", ["train-step.mjs", join(folder, "model")]);
    assert.equal(run.status, 0, run.stderr);
    const { before, after, gradNorm } = JSON.parse(run.stdout) as Record<string, number>;
    assert.ok(gradNorm! > 0 && Number.isFinite(gradNorm), `gradient norm ${gradNorm}`);
    assert.ok(after! < before!, `the loss went from ${before} to ${after}`);
  });

  it("puts the command line tool on the path of npm scripts", () => {
    const run = runInConsumer("node_modules/.bin/node-rlhf", ["--help"]);
    assert.equal(run.status, 0, run.stderr);
    assert.match(run.stdout, /node-rlhf/);
  });

  it("explains itself where there is no binary for the platform", () => {
    const prebuilds = join(consumer, "node_modules/node-rlhf/prebuilds");
    assert.ok(existsSync(prebuilds));
    renameSync(prebuilds, `${prebuilds}.away`);
    const script = `
      import("node-rlhf")
        .then(({ CausalLM }) => CausalLM.create({
          model_type: "gpt2", vocab_size: 8, n_embd: 8, n_layer: 1, n_head: 1, n_positions: 8
        }))
        .catch((error) => console.log(error.code + "\\n" + error.message));`;
    const run = runInConsumer("node", ["--input-type=module", "--eval", script]);
    renameSync(`${prebuilds}.away`, prebuilds);
    assert.match(run.stdout, /^ERR_RLHF_NO_BINARY\n/, run.stderr);
    assert.match(run.stdout, /npx node-rlhf-build/);
  });
});
