import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, Tokenizer } from "../../lib/index.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { runCommand, runHere } from "./support.ts";

const ROWS = ["the cat sat on the mat", "the dog ran", "the cat ran", "the mat lay"].map((text) => ({
  text,
}));
const SIZES = {
  family: "qwen3",
  hidden_size: 16,
  num_layers: 2,
  num_heads: 4,
  num_kv_heads: 2,
  vocab_size: 270,
};

describe("command line: init", () => {
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);
  const bytes = (name: string): Buffer => readFileSync(path(`${name}/model.safetensors`));
  const flags = (changes: object = {}): string[] =>
    Object.entries({ ...SIZES, data_path: path("rows.jsonl"), ...changes }).flatMap(([key, value]) => [
      `--${key.replaceAll("_", "-")}`,
      String(value),
    ]);
  before(() => void writeText(directory, "rows.jsonl", jsonLines(ROWS)));

  it("makes a model and its tokenizer, and is not run again for the same settings", async () => {
    const words = ["init", ...flags({ output_dir: path("made"), seed: 5 })];
    const { code, stderr } = await runCommand(...words);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /data: 4 of 4 rows/);
    const tokenizer = await Tokenizer.load(path("made"));
    using model = await CausalLM.load(path("made"));
    const { hidden, layers, heads, kvHeads, vocab, tiedEmbeddings } = model.config;
    assert.deepEqual([hidden, layers, heads, kvHeads, tiedEmbeddings], [16, 2, 4, 2, true]);
    assert.equal(vocab, tokenizer.vocabSize);
    assert.ok(tokenizer.encode("the cat").length < "the cat".length, "it was trained on the rows");
    const weights = model
      .parameters()
      .reduce((sum, { shape }) => sum + shape.reduce((product, extent) => product * extent, 1), 0);
    assert.match(stderr, new RegExp(`weights ${weights.toLocaleString("en-US")}, tokens ${vocab}`));
    const again = await runCommand(...words);
    assert.equal(again.code, 0, again.stderr);
    assert.match(again.stderr, /init: complete in .*skipped/);
  });

  it("makes in a pipeline the model that sft makes for itself; another seed makes another", async () => {
    const sizes = JSON.stringify(SIZES);
    const sft = "data_path: rows.jsonl, eval_data_path: rows.jsonl, max_steps: 2";
    const pipeline = `
seed: 5
stages:
  - init: { ...SIZES, data_path: rows.jsonl, output_dir: base }
  - init: { ...SIZES, data_path: rows.jsonl, output_dir: other, seed: 6 }
  - sft: { model_path: base, output_dir: tuned, ${sft} }
  - sft: { init: ${sizes}, output_dir: alone, ${sft} }
`.replaceAll("...SIZES", sizes.slice(1, -1));
    const { code, stderr } = await runCommand("run", writeText(directory, "pipeline.yaml", pipeline));
    assert.equal(code, 0, stderr);
    assert.ok(bytes("tuned").equals(bytes("alone")));
    assert.ok(!bytes("tuned").equals(bytes("base")));
    assert.ok(!bytes("other").equals(bytes("base")));
  });

  it("names a key or flag that is wrong before anything is done", async () => {
    const wrong = { output_dir: path("wrong") };
    const file = writeText(
      directory,
      "init.yaml",
      "family: llama\nhidden_siz: 16\nnum_layers: 1\nnum_heads: 2\nvocab_size: 300\ndata_path: rows.jsonl\noutput_dir: wrong\n",
    );
    const cases: [string[], RegExp][] = [
      [["--config", file], /init\.yaml:2:1: unknown key "hidden_siz" \(did you mean "hidden_size"\?\)/],
      [flags({ ...wrong, family: "gpt2" }), /--num-kv-heads: gpt2 has no num_kv_heads; these have: llama/],
      [flags({ ...wrong, family: "bert" }), /--family: expected one of "gpt2"\|"llama"/],
      [flags({ ...wrong, num_layers: 0 }), /--num-layers: /],
      [flags(), /--output-dir: is required/],
      [flags({ ...wrong, model_path: "m" }), /unknown option '--model-path'/],
      [[...flags(wrong), "--hiden-size", "3"], /Did you mean --hidden-size\?/],
    ];
    for (const [words, message] of cases) {
      const { code, stderr } = await runHere("init", ...words);
      assert.match(stderr, message);
      assert.equal(code, 2, stderr);
    }
    assert.ok(!existsSync(path("wrong")));
  });
});
