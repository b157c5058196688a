import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { copyFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import type { NativeBinding } from "../../lib/engine/native.ts";
import { CausalLM, chooseDevice, type DeviceName, Engine, RlhfError } from "../../lib/index.ts";
import { readModelConfig } from "../../lib/model/config.ts";
import { withEnvironment } from "../support/kernels.ts";
import { withPlugin } from "../support/plugins.ts";
import { TINY_GPT2, withTemporaryDirectory } from "../support/tiny.ts";

const CUDA_ERRORS = [
  "ERR_RLHF_NO_CUDA",
  "ERR_RLHF_NO_CUDA_DRIVER",
  "ERR_RLHF_OLD_CUDA_DRIVER",
  "ERR_RLHF_NO_CUDA_DEVICE",
  "ERR_RLHF_UNSUPPORTED",
];
const BUILD = resolve(process.env["RLHF_BUILD_DIR"] ?? join(import.meta.dirname, "../../build"), "Release");
const PLUGIN = "librlhf_cuda.so";

/** The addon in a directory of its own, beside what `prepare` puts there. */
async function withAddon(
  prepare: (plugin: string) => Promise<unknown>,
  body: (addon: NativeBinding) => void,
): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const addon = join(directory, "rlhf.node");
    await copyFile(join(BUILD, "rlhf.node"), addon);
    await prepare(join(directory, PLUGIN));
    body(createRequire(import.meta.url)(addon) as NativeBinding);
  });
}

/** Statuses with which the plug-in opens no device (csrc/ops/context.h), and what they are here. */
const REFUSALS = [
  [4, "ERR_RLHF_MEMORY", "starting CUDA on the device: out of memory\nCheck nvidia-smi"],
  [6, "ERR_RLHF_INTERNAL", "counting CUDA devices: system not yet initialized\nCheck nvidia-smi"],
  [8, "ERR_RLHF_NO_CUDA_DRIVER", "no NVIDIA driver was found\nInstall one"],
  [9, "ERR_RLHF_OLD_CUDA_DRIVER", "the NVIDIA driver supports CUDA 12.4\nUpdate the driver"],
  [10, "ERR_RLHF_NO_CUDA_DEVICE", 'cuda:0 has compute capability 7.5\nUse device "cpu"'],
] as const;

/** The addon beside a CUDA backend that refuses. */
async function withRefusal(refusal: string, body: (addon: NativeBinding) => void): Promise<void> {
  await withPlugin("refusing", async (build) => {
    const addon = createRequire(import.meta.url)(join(build, "Release", "rlhf.node")) as NativeBinding;
    withEnvironment("RLHF_REFUSAL", refusal, () => body(addon));
  });
}

/** The addon beside the emulator in the place of the CUDA backend. */
function withEmulator(body: (addon: NativeBinding) => Promise<void>): Promise<void> {
  return withPlugin("emulated", (build) =>
    body(createRequire(import.meta.url)(join(build, "Release", "rlhf.node")) as NativeBinding),
  );
}

describe("devices", () => {
  it("cuda without its backend names the file and the command that makes it", async () => {
    await withAddon(
      async () => {},
      (addon) =>
        assert.throws(() => addon.requireCuda(), {
          code: "ERR_RLHF_NO_CUDA",
          message:
            /^there is no CUDA backend beside the addon\nThe CUDA backend is \/.*\/librlhf_cuda\.so\. .*build:cuda/,
        }),
    );
  });

  it("a file that is no library, and a library that is another one", async () => {
    await withAddon(
      (plugin) => writeFile(plugin, "not a library"),
      (addon) =>
        assert.throws(() => addon.requireCuda(), {
          code: "ERR_RLHF_NO_CUDA",
          message: /^the CUDA backend cannot be loaded: .*librlhf_cuda\.so: .*\n/,
        }),
    );
    await withAddon(
      (plugin) => copyFile(join(BUILD, "rlhf.node"), plugin),
      (addon) =>
        assert.throws(() => new addon.Engine({ device: "cuda" }), {
          code: "ERR_RLHF_NO_CUDA",
          message: /a function is missing/,
        }),
    );
  });

  for (const [status, code, words] of REFUSALS)
    it(`a CUDA backend that opens no device: ${code}, with its words`, () =>
      withRefusal(`${status} ${words}`, (addon) => {
        for (const open of [() => addon.requireCuda(), () => new addon.Engine({ device: "cuda" })])
          assert.throws(open, { code, message: words });
      }));

  it("a CUDA backend of other sources is not used", () =>
    withRefusal("sources", (addon) =>
      assert.throws(() => addon.requireCuda(), {
        code: "ERR_RLHF_NO_CUDA",
        message: /^the CUDA backend was built from other sources than this addon\n.*build:cuda/,
      }),
    ));

  it("every reason for which the CUDA backend opens no device has a cure", () => {
    const source = readFileSync(join(import.meta.dirname, "../../csrc/cuda/device.cu"), "utf8");
    const errors = source.split("throw Error(").slice(1);
    assert.equal(errors.length, 6);
    for (const error of errors) assert.match(error.slice(0, error.indexOf(");\n")), /"[^"]*\\n[A-Z]/);
  });

  it("memory of a device's own is counted as it is taken", () =>
    withEmulator((addon) =>
      withEnvironment("RLHF_SIMT_MEMORY", String(2 ** 20), async () => {
        const engine = new addon.Engine({ device: "cuda" });
        const { memoryBytes, freeBytes } = engine.limits();
        assert.deepEqual([memoryBytes, freeBytes], [2 ** 20, 2 ** 20]);
        const model = await engine.createModel(readModelConfig(TINY_GPT2, "test"), false);
        const { weights } = engine.memory().held;
        const held = 2 ** 20 - engine.limits().freeBytes;
        assert.ok(held >= weights && held < 1.1 * weights, `${held} bytes, ${weights} of weights`);
        const wide = readModelConfig({ ...TINY_GPT2, n_embd: 240 }, "test");
        await assert.rejects(engine.createModel(wide, false), { code: "ERR_RLHF_MEMORY" });
        model.dispose();
        engine.dispose();
      }),
    ));

  it("cuda refuses a model whose heads are too wide when it is made, and says what to do", async () => {
    await withEmulator(async (addon) => {
      const config = readModelConfig({ ...TINY_GPT2, n_embd: 272, n_head: 2 }, "test");
      const [cuda, cpu] = [new addon.Engine({ device: "cuda" }), new addon.Engine({ device: "cpu" })];
      await assert.rejects(cuda.createModel(config, false), {
        code: "ERR_RLHF_UNSUPPORTED",
        message:
          /heads are 136 wide, and the simt:apart backend has kernels for heads up to 128: use device "cpu"/,
      });
      assert.equal(cuda.memory().allocations, 0);
      (await cpu.createModel(config, false)).dispose();
      await assert.rejects(
        cpu.createModel({ ...config, heads: 1, kvHeads: 1, headDim: 1032, hidden: 1032 }, false),
        {
          code: "ERR_RLHF_UNSUPPORTED",
          message: /heads up to 1024: use a model with narrower heads/,
        },
      );
      for (const engine of [cuda, cpu]) engine.dispose();
    });
  });

  // In a process that sees no GPU, so that it is the same everywhere; without nvcc there is no such file, and that is what is said.
  it("the CUDA backend of this build, where there is one, is opened and says which driver or GPU it lacks", () => {
    const { error, stderr, stdout } = spawnSync(
      process.execPath,
      ["-e", `require(${JSON.stringify(join(BUILD, "rlhf.node"))}).requireCuda()`],
      { encoding: "utf8", env: { ...process.env, CUDA_VISIBLE_DEVICES: "" } },
    );
    assert.deepEqual([error, stdout], [undefined, ""]);
    const [code, message] = existsSync(join(BUILD, PLUGIN))
      ? [
          /ERR_RLHF_(NO_CUDA_DRIVER|OLD_CUDA_DRIVER|NO_CUDA_DEVICE)'/,
          /^Error: .*driver.*\n(Install|Update|Check) .*, or use device "cpu"$/m,
        ]
      : [
          /ERR_RLHF_NO_CUDA'/,
          /^Error: there is no CUDA backend beside the addon\nThe CUDA backend is .*build:cuda/m,
        ];
    assert.match(stderr, code);
    assert.match(stderr, message);
  });

  it("cuda is used or an error, never another device in silence", async () => {
    try {
      assert.match(Engine.shared({ device: "cuda" }).info.device, /^cuda:\d+$/);
    } catch (error) {
      assert.ok(error instanceof RlhfError && CUDA_ERRORS.includes(error.code), String(error));
      await assert.rejects(CausalLM.create(TINY_GPT2, { device: "cuda" }), { code: error.code });
    }
  });

  it("auto says what it chose and why, and takes it", () => {
    const { device, reason } = chooseDevice();
    assert.match(reason, /^auto: ./);
    assert.ok(Engine.shared().info.device.startsWith(device));
    assert.deepEqual(chooseDevice("cpu"), { device: "cpu", reason: "asked for" });
    assert.throws(() => chooseDevice("gpu" as DeviceName), {
      code: "ERR_RLHF_ARGUMENT",
      message: /got "gpu"/,
    });
  });
});
