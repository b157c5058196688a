import assert from "node:assert/strict";
import { copyFile, mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, packSequences, RewardModel } from "../../lib/index.ts";
import { modelDirectory, REFERENCE } from "../parity/reference.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { runHere } from "./support.ts";

const BATCH = packSequences([{ tokens: Int32Array.of(5, 9, 12, 7, 30, 4) }]);

async function logProbs(model: CausalLM, adapter?: string): Promise<Float32Array> {
  using pass = await model.forward(BATCH, adapter === undefined ? {} : { adapter });
  return await pass.logProb();
}

describe("command line: merge", () => {
  for (const base of ["gpt2", "llama"]) {
    it(`makes one model of ${base} and an adapter of peft's`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const adapter = `${REFERENCE}adapters/${base}-all-linear`;
        const output = join(directory, "merged");
        const words = [
          "merge",
          "--model",
          modelDirectory(base),
          "--adapter",
          adapter,
          "--output-dir",
          output,
        ];
        assert.deepEqual(await runHere(...words), { code: 0, stderr: "" });
        using model = await CausalLM.load(modelDirectory(base), { device: "cpu" });
        await model.loadAdapter("a", adapter);
        using merged = await CausalLM.load(output, { device: "cpu" });
        const [actual, expected] = [await logProbs(merged), await logProbs(model, "a")];
        assert.notDeepEqual(expected, await logProbs(model));
        for (const [t, value] of expected.entries())
          assert.ok(Math.abs(actual[t]! - value) < 1e-4, `${actual[t]} ${value}`);
      });
    });
  }

  it("makes one reward model of a base and a reward model's adapter, with the adapter's tokenizer", async () => {
    await withTemporaryDirectory(async (directory) => {
      const [adapter, output] = [join(directory, "adapter"), join(directory, "merged")];
      await mkdir(adapter);
      for (const file of ["adapter_config.json", "adapter_model.safetensors"])
        await copyFile(`${REFERENCE}adapters/reward-llama-adapter/${file}`, join(adapter, file));
      const base = modelDirectory("reward-llama");
      const words = ["merge", "--model", base, "--adapter", adapter, "--output-dir", output];
      assert.deepEqual(await runHere(...words), { code: 0, stderr: "" });
      using backbone = await CausalLM.load(base, { device: "cpu" });
      using lent = await RewardModel.load(adapter, { backbone });
      using merged = await RewardModel.load(output, { device: "cpu" });
      const [[actual], [expected]] = [await merged.score([BATCH.tokens]), await lent.score([BATCH.tokens])];
      assert.ok(Math.abs(actual! - expected!) < 1e-4 * Math.abs(expected!), `${actual} ${expected}`);
      assert.deepEqual((await readdir(output)).sort(), ["config.json", "model.safetensors"]);
    });
  });

  it("writes over neither base nor adapter, and refuses what is no adapter", async () => {
    const base = modelDirectory("llama");
    const adapter = `${REFERENCE}adapters/llama`;
    for (const [output, flag] of [
      [base, "--model"],
      [`${adapter}/`, "--adapter"],
    ] as const) {
      const { code, stderr } = await runHere(
        "merge",
        "--model",
        base,
        "--adapter",
        adapter,
        "--output-dir",
        output,
      );
      assert.equal(code, 2);
      assert.ok(stderr.includes(`--output-dir is the directory of ${flag}`), stderr);
    }
    const { code, stderr } = await runHere(
      "merge",
      "--model",
      base,
      "--adapter",
      base,
      "--output-dir",
      "nowhere",
    );
    assert.equal(code, 1);
    assert.match(stderr, /adapter_config\.json: does not exist/);
  });
});
