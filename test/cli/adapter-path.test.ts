import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, packSequences, Random, readMetrics } from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { preferenceRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";
import { runCommand, runHere } from "./support.ts";

const tokenizer = tinyTokenizer();

/** A base model with its tokenizer, an adapter that does something, and pairs to learn from. */
async function prepare(directory: string): Promise<{ base: string; adapter: string; data: string }> {
  const paths = {
    base: join(directory, "base"),
    adapter: join(directory, "adapter"),
    data: join(directory, "pairs.jsonl"),
  };
  using model = await tinyModel(tokenizer, "none");
  await model.save(paths.base);
  await tokenizer.save(paths.base);
  model.addAdapter("policy", {
    r: 2,
    alpha: 4,
    targetModules: "all-linear",
    rankPattern: { q_proj: 3 },
    dropout: 0.1,
  });
  for (const { name, shape } of model.parameters()) {
    if (!name.endsWith("lora_B")) continue;
    const random = new Random(2, name);
    await model.writeParameter(
      name,
      Float32Array.from({ length: shape[0]! * shape[1]! }, () => 0.3 * random.normal()),
    );
  }
  await model.saveAdapter("policy", paths.adapter);
  await writeFile(paths.data, preferenceRows.map((row) => JSON.stringify(row)).join("\n"));
  return paths;
}

async function logProbs(model: CausalLM, adapter?: string): Promise<Float32Array> {
  const batch = packSequences([{ tokens: tokenizer.encode("Ann wants a red ball, please.") }]);
  using pass = await model.forward(batch, adapter === undefined ? {} : { adapter });
  return await pass.logProb();
}

describe("command line: adapter_path", () => {
  it("goes on from an adapter, with its start as the reference, and saves the merged model", async () => {
    await withTemporaryDirectory(async (directory) => {
      const { base, adapter, data } = await prepare(directory);
      const output = join(directory, "dpo");
      const model = [
        "--model-path",
        base,
        "--adapter-path",
        adapter,
        "--data-path",
        data,
        "--output-dir",
        output,
      ];
      const run = await runCommand(
        "dpo",
        ...model,
        "--max-steps",
        "2",
        "--batch-size",
        "4",
        "--learning-rate",
        "1e-9",
      );
      assert.equal(run.code, 0, run.stderr);
      // Policy and reference are the same until the first update: ln 2, whatever the adapter does.
      const [first] = readMetrics(join(output, "metrics.jsonl"));
      assert.ok(Math.abs((first?.metrics["loss"] as number) - Math.LN2) < 1e-6, JSON.stringify(first));
      using before = await CausalLM.load(base, { device: "cpu" });
      await before.loadAdapter("policy", adapter);
      using after = await CausalLM.load(output, { device: "cpu" });
      const [actual, expected, plain] = [
        await logProbs(after),
        await logProbs(before, "policy"),
        await logProbs(before),
      ];
      const distance = (a: Float32Array, b: Float32Array): number =>
        Math.max(...a.map((value, t) => Math.abs(value - b[t]!)));
      assert.ok(distance(actual, expected) < 1e-3, `${distance(actual, expected)}`);
      assert.ok(distance(expected, plain) > 0.1, "the adapter changes what the base computes");
    });
  });

  it("goes from stage to stage with save_merged, and each result holds one form", async () => {
    await withTemporaryDirectory(async (directory) => {
      const { base, data } = await prepare(directory);
      const [first, second] = [join(directory, "sft"), join(directory, "dpo")];
      const pipeline = join(directory, "pipeline.yaml");
      const run = async (merged: boolean): Promise<void> => {
        const shared = `model_path: ${base}, data_path: ${data}, max_steps: 1, batch_size: 4, learning_rate: 1e-3`;
        const stages = [
          `{sft: {${shared}, output_dir: ${first}, lora_r: 2, lora_use_rslora: true, lora_dropout: 0.1, save_merged: false}}`,
          `{dpo: {${shared}, output_dir: ${second}, adapter_path: ${first}, save_merged: ${merged}}}`,
        ];
        await writeFile(pipeline, `stages: [${stages.join(", ")}]`);
        const { code, stderr } = await runCommand("run", pipeline);
        assert.equal(code, 0, stderr);
      };
      const forms = async (path: string): Promise<string[]> =>
        (await readdir(path)).filter((name) => /^(adapter_)?config\.json$|safetensors$/.test(name)).sort();
      await run(true);
      assert.deepEqual(await forms(first), ["adapter_config.json", "adapter_model.safetensors"]);
      assert.deepEqual(await forms(second), ["config.json", "model.safetensors"]);
      await run(false);
      assert.deepEqual(await forms(second), ["adapter_config.json", "adapter_model.safetensors"]);
      using model = await CausalLM.load(base, { device: "cpu" });
      await model.loadAdapter("policy", second);
      assert.equal(model.adapters.get("policy")?.useRslora, true);
      assert.equal(model.adapters.get("policy")?.dropout, 0.1);
    });
  });

  it("has its flag in the commands that run a model", async () => {
    await withTemporaryDirectory(async (directory) => {
      const { base, adapter } = await prepare(directory);
      const [input, output] = [join(directory, "in.jsonl"), join(directory, "out.jsonl")];
      const tokens = tokenizer.encode("Ann wants a red ball, please.");
      await writeFile(input, JSON.stringify({ tokens: [...tokens] }));
      const words = ["--model", base, "--adapter", adapter, "--output", output];
      assert.deepEqual(await runHere("logprobs", ...words, "--data-path", input), { code: 0, stderr: "" });
      using model = await CausalLM.load(base, { device: "cpu" });
      await model.loadAdapter("policy", adapter);
      const row = JSON.parse(await readFile(output, "utf8")) as { logProbs: number[] };
      assert.deepEqual(row.logProbs, [...(await logProbs(model, "policy"))]);
      const greedy = ["--temperature", "0", "--max-new-tokens", "6"];
      assert.deepEqual(await runHere("generate", ...words, ...greedy, "--prompt", "Ann"), {
        code: 0,
        stderr: "",
      });
      const answer = JSON.parse(await readFile(output, "utf8")) as { tokens: number[] };
      const settings = { tokenizer, maxNewTokens: 6, temperature: 0, stop: tokenizer.endTokenIds };
      const [expected] = await model.generate(["Ann"], { ...settings, adapter: "policy" });
      const [plain] = await model.generate(["Ann"], settings);
      assert.deepEqual(answer.tokens, [...expected!.tokens]);
      assert.notDeepEqual(answer.tokens, [...plain!.tokens]);
    });
  });

  it("excludes a new adapter, and is no directory to write to", async () => {
    const stage = ["--model-path", "m", "--data-path", "d", "--adapter-path", "a"];
    const both = await runHere("sft", ...stage, "--output-dir", "o", "--lora-r", "4");
    assert.equal(both.code, 2);
    assert.match(both.stderr, /adapter_path and lora_r exclude each other/);
    const over = await runHere("sft", ...stage, "--output-dir", "a");
    assert.equal(over.code, 2);
    assert.match(over.stderr, /output_dir is adapter_path too/);
    const alone = await runHere(
      "sft",
      "--model-path",
      "m",
      "--data-path",
      "d",
      "--output-dir",
      "o",
      "--save-merged",
      "false",
    );
    assert.equal(alone.code, 2);
    assert.match(alone.stderr, /has no effect without lora_r or adapter_path/);
  });
});
