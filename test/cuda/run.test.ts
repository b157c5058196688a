import assert from "node:assert/strict";
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { cudaBenches } from "../../bench/cuda/benches.ts";
import { statedLimits } from "../../bench/cuda/limits.ts";
import { kernels } from "../support/kernels.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { chosenParts, conclusionOf } from "./parts.ts";

const ROOT = join(import.meta.dirname, "../..");

/** What test:cuda and bench:cuda do in a process of their own, in which there is no GPU. */
function runWith(settings: NodeJS.ProcessEnv, script: string, ...args: string[]): SpawnSyncReturns<string> {
  const { RLHF_TEST_BACKENDS: _, RLHF_TEST_DEVICE: __, ...env } = process.env;
  return spawnSync(process.execPath, ["--import", "tsx", join(ROOT, script), ...args], {
    encoding: "utf8",
    cwd: ROOT,
    env: { ...env, CUDA_VISIBLE_DEVICES: "", ...settings },
  });
}

const run = (script: string, ...args: string[]): SpawnSyncReturns<string> => runWith({}, script, ...args);

describe("commands for a GPU", () => {
  for (const [name, script] of [
    ["test:cuda", "test/cuda/run.ts"],
    ["bench:cuda", "bench/cuda/run.ts"],
  ] as const)
    it(`${name} without a GPU fails and says what is missing`, () => {
      const { status, stdout, stderr } = run(script);
      assert.equal(status, 1);
      assert.match(stderr, new RegExp(`^${name}: ERR_RLHF_(NO|OLD)_CUDA\\w*: \\S`, "m"));
      assert.equal(stdout, "");
    });

  it("test:cuda runs the tests of another device by name, and fails where one fails or there is none", () => {
    const ops = ["ops", "--backend", "simt:apart", "--grep"];
    const passing = run("test/cuda/run.ts", ...ops, "simt:apart rmsNormForward: 65×129");
    assert.equal(passing.status, 0, passing.stdout + passing.stderr);
    assert.match(passing.stdout, /simt:apart; \d+ ops.*\n {2}2 passing.*== ops: passed/s);
    const none = run("test/cuda/run.ts", ...ops, "no test has this name");
    assert.equal(none.status, 1);
    assert.match(none.stdout, /failed: ops/);
    const late = run("test/cuda/run.ts", "ops", "--backend", "simt:apart", "--minutes", "0");
    assert.equal(late.status, 1);
    assert.match(late.stdout, /its time was over.*FAILED: no test had begun.*failed: ops/s);
    assert.match(run("test/cuda/run.ts", "everything", "--backend", "simt").stderr, /no part "everything"/);
  });

  it("test:cuda says which parts it left out and why, by its exit code too", () => {
    const h200 = { backend: "cuda", computeCapability: 90, sanitizer: "/usr/bin/compute-sanitizer" };
    const all = chosenParts([], h200);
    assert.deepEqual(all.leftOut, []);
    assert.deepEqual(conclusionOf([], all.leftOut), { line: "all parts passed", exitCode: 0 });

    const bare = chosenParts([], { ...h200, sanitizer: undefined });
    const sanitized = ["memcheck", "racecheck", "memcheck-hopper", "racecheck-hopper"];
    assert.deepEqual(
      bare.leftOut,
      sanitized.map((name) => `${name} (compute-sanitizer is not installed)`),
    );
    assert.deepEqual([...bare.parts, ...sanitized], all.parts);
    const { line, exitCode } = conclusionOf([], bare.leftOut);
    assert.match(line, /^passed; left out: memcheck \(compute-sanitizer is not installed\), /);
    assert.equal(exitCode, 2);
    assert.deepEqual(conclusionOf(["ops"], ["ppo (why)"]), {
      line: "failed: ops; left out: ppo (why)",
      exitCode: 1,
    });

    const older = chosenParts([], { ...h200, computeCapability: 80 });
    assert.match(older.leftOut.join(), /^hopper \(not a GPU of compute capability 9\.0\),memcheck-hopper/);
    assert.throws(
      () => chosenParts(["hopper"], { ...h200, computeCapability: 80 }),
      /^Error: hopper: not a GPU/,
    );
  });

  it("test:cuda tells in its last line what it left out", () => {
    const late = run("test/cuda/run.ts", "--backend", "simt:apart", "--minutes", "0");
    assert.equal(late.status, 1);
    const last = late.stdout.trimEnd().split("\n").at(-1)!;
    assert.match(
      last,
      /^failed: ops, hopper, .*; left out: parity \(only on a GPU\), .*, racecheck-hopper \(only on a GPU\)$/,
    );
    const named = run("test/cuda/run.ts", "memcheck", "--backend", "simt:apart");
    assert.equal(named.status, 1);
    assert.match(named.stderr, /test:cuda: memcheck: only on a GPU/);
  });

  it("test:cuda names a test that hangs, ends the process or loses the device, and goes on behind it", () => {
    const where = ["--backend", "simt:apart", "--patience", "3"];
    const { status, stdout } = run("test/cuda/run.ts", "test/cuda/fixtures/ends-badly.ts", ...where);
    assert.equal(status, 1);
    const told = stdout.split("\n").filter((line) => /^(FAILED|ended|the device|== test.*FAILED)/.test(line));
    assert.deepEqual(
      told.map((line) => line.replace(/, \d+ s$/, "")),
      [
        "FAILED: fixture fails",
        "ended: its test takes more than 3 s",
        "FAILED: fixture hangs, as a kernel that waits for ever",
        "FAILED: fixture ends the process",
        "FAILED: fixture loses the device",
        "the device is lost: an illegal memory access was encountered",
        "FAILED: fixture loses the device",
        "== test/cuda/fixtures/ends-badly.ts: FAILED",
      ],
    );
    assert.match(stdout, /a wrong result.*whatever came of it.*\n {2}1 passing/s);
  });

  it("test:cuda runs Hopper's kernels", () => {
    const { status, stdout } = run(
      "test/cuda/run.ts",
      "hopper",
      "--backend",
      "simt:apart",
      "--grep",
      "one token, narrow",
    );
    assert.equal(status, 0, stdout);
    assert.match(stdout, /\n {2}2 passing.*== hopper: passed/s);
  });

  it("bench:cuda measures and writes results as they come, here on the emulator", async () => {
    await withTemporaryDirectory(async (directory) => {
      const options = [
        "--backend",
        "simt:apart",
        "--shrink",
        "256",
        "--python",
        "none",
        "--repetitions",
        "3",
      ];
      const names = ["linearForward", "rmsNorm", "adamW"];
      const { status, stdout, stderr } = run("bench/cuda/run.ts", ...names, ...options, "--out", directory);
      assert.equal(status, 0, stdout + stderr);
      const report = JSON.parse(readFileSync(join(directory, "cuda-simt-apart.json"), "utf8"));
      assert.ok(report.copyBytesPerSecond > 0);
      assert.deepEqual(
        report.results.map(({ op }: { op: string }) => op),
        [...Array(4).fill("linearForward"), "rmsNormForward", "rmsNormBackward", "adamW", "adamW", "adamW"],
      );
      for (const { seconds, bytes, error } of report.results) {
        assert.equal(error, undefined);
        assert.ok(seconds > 0 && bytes > 0);
      }
    });
  });

  it("bench:cuda shows Hopper's kernels beside the portable ones where the device has them", async () => {
    await withTemporaryDirectory(async (directory) => {
      const where = ["--backend", "simt:apart", "--python", "none", "--out", directory];
      const small = [...where, "--shrink", "64", "--repetitions", "2"];
      const settings = { RLHF_CUDA_CAPABILITY: "90" };
      const { status, stdout, stderr } = runWith(
        settings,
        "bench/cuda/run.ts",
        "linear",
        "attention",
        "squaredNorm",
        ...small,
      );
      assert.equal(status, 0, stdout + stderr);
      const lines = stdout.split("\n").filter((line) => line.includes("without Hopper's kernels"));
      assert.deepEqual(
        lines.map((line) => line.split(" ")[0]),
        [
          ...Array.from({ length: 2 }, () => ["linearForward", "linearForward", "linearBackward"]),
          ...Array.from({ length: 4 }, () => ["attentionForward", "attentionBackward"]),
        ].flat(),
      );
    });
  });

  it("bench:cuda ends a kernel that does not, and names it", () => {
    const hung = run("test/cuda/fixtures/never-ends.ts", "0.5");
    assert.equal(hung.signal, "SIGKILL");
    assert.match(hung.stderr, /ended: a kernel that waits for ever had not ended after 0\.5 s/);
    assert.equal(run("test/cuda/fixtures/never-ends.ts", "60", "stops").status, 0);
  });

  it("every op of the CUDA backend has a bench", () => {
    const benched = new Set(cudaBenches(512).map(({ op }) => op));
    assert.deepEqual(
      kernels.operators("simt:apart").filter((op) => !benched.has(op)),
      [],
    );
  });

  it("every bench is of an op that exists, with arguments that it takes", () => {
    const known = new Set(kernels.operators("cpu"));
    for (const { op, args } of cudaBenches(512)) {
      assert.ok(known.has(op), op);
      const fields = new Set(kernels.operatorFields(op).map(({ name }) => name));
      for (const name of Object.keys(args())) assert.ok(fields.has(name), `${op}: ${name}`);
    }
  });

  it("limits are the data sheet's, else those of the device's clocks", () => {
    const device = kernels.deviceLimits("simt:apart");
    assert.deepEqual(statedLimits({ ...device, model: "NVIDIA H200" }), {
      flops: 989e12,
      bandwidth: 4.8e12,
      source: "data sheet",
    });
    const clocks = {
      computeCapability: 90,
      multiprocessors: 132,
      clockHz: 1.83e9,
      memoryBytesPerSecond: 4.9e12,
    };
    const { flops, bandwidth } = statedLimits({ ...device, ...clocks });
    assert.ok(Math.abs(flops / 989e12 - 1) < 0.01);
    assert.equal(bandwidth, 4.9e12);
    assert.deepEqual([statedLimits(device).flops, statedLimits(device).bandwidth], [0, 0]);
  });
});
