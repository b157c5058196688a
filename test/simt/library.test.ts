import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { withPlugin } from "../support/plugins.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const MOCHA = join(dirname(createRequire(import.meta.url).resolve("mocha/package.json")), "bin", "mocha.js");

/** Tests of the library that any device can pass. Each is held to PyTorch's or transformers' results, to bits or to counts. */
const TESTS = [
  "parity/ppo",
  "parity/trajectories",
  "parity/generation",
  "parity/statistics",
  "parity/gradients",
  "parity/lora",
  "parity/kl",
  "parity/reward-model",
  "parity/mixed-precision",
  "parity/bfloat16-weights",
  "parity/engines",
  "parity/feature-reward",
  "trainers/device-copies",
];

/** Larger ones, of which the emulator, being slow, runs the cases whose titles match. */
const PARTS: Readonly<Record<string, string>> = {
  "parity/batch-invariance": "llama: (alone|with a copy)",
  "model/memory": "the memory estimate equals (?!.* 80000$)",
};

/** Mocha's own limit cannot end what waits for a child. */
const LIMIT_MS = 300_000;

async function passes(file: string, titles = "", environment: NodeJS.ProcessEnv = {}): Promise<void> {
  await withPlugin("emulated", async (build) => {
    const options = ["--no-config", "--timeout", "0", "--reporter", "json", "--grep", titles];
    const { status, signal, stdout, stderr } = spawnSync(
      process.execPath,
      ["--import", "tsx", MOCHA, ...options, join(ROOT, "test", `${file}.test.ts`)],
      {
        cwd: ROOT,
        encoding: "utf8",
        timeout: LIMIT_MS,
        killSignal: "SIGKILL",
        maxBuffer: 1 << 28,
        env: {
          ...process.env,
          RLHF_BUILD_DIR: build,
          RLHF_TEST_DEVICE: "cuda",
          ...environment,
        },
      },
    );
    assert.equal(status, 0, `exit code ${status}, signal ${signal}: ${stdout}${stderr}`);
    const { stats } = JSON.parse(stdout.slice(stdout.indexOf("{"))) as { stats: { passes: number } };
    assert.ok(stats.passes > 0);
  });
}

/**
 * The library with device "cuda" where there is no GPU: the addon opens the emulator in the place of the CUDA backend, whose memory
 * is its own, so that what trainers, passes and generation ask of a GPU is what the CUDA sources then do.
 */
describe("the library on device cuda, emulated", function () {
  this.timeout(2 * LIMIT_MS);
  for (const name of TESTS) it(`passes test/${name}.test.ts`, () => passes(name));
  for (const [file, titles] of Object.entries(PARTS))
    it(`passes a part of test/${file}.test.ts`, () => passes(file, titles));
  // Its vocabulary and the widths of some of its layers are large enough for Hopper's kernels.
  it("passes test/parity/mixed-precision.test.ts on a device of compute capability 9.0", () =>
    passes("parity/mixed-precision", "", { RLHF_CUDA_CAPABILITY: "90" }));
  it("takes the GPU's memory for its budget, and not the machine's", () =>
    passes("model/memory", "is by default", { RLHF_SIMT_MEMORY: String(2 ** 24) }));
});
