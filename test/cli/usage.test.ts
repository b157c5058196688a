import assert from "node:assert/strict";
import { join } from "node:path";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { runCommand, runHere, startCommand } from "./support.ts";

describe("command line: usage and exit codes", () => {
  const directory = temporaryDirectory();

  it("--version and --help end with 0 and name every command", async () => {
    const version = await runCommand("--version");
    assert.equal(version.code, 0);
    assert.match(version.stdout, /^\d+\.\d+\.\d+/);
    const help = await runCommand("--help");
    assert.equal(help.code, 0);
    for (const name of [
      "run",
      "init",
      "sft",
      "reward",
      "ppo",
      "grpo",
      "rloo",
      "reinforce-plus-plus",
      "generate",
      "chat",
      "feature-reward",
      "environment-ppo",
      "logprobs",
      "score",
      "merge",
      "inspect-data",
      "add-tokens",
      "doctor",
    ]) {
      assert.match(help.stdout, new RegExp(`^  ${name}\\b`, "m"));
    }
  });

  it("a reader who has gone, as head does, ends a command without a word", async () => {
    const { code, stderr } = await startCommand(["--help"], false).ended;
    assert.deepEqual({ code, stderr }, { code: 0, stderr: "" });
  });

  it("wrong usage ends with 2 and says what was meant", async () => {
    const cases: [string[], RegExp][] = [
      [["trian"], /unknown command 'trian'/],
      [["generat"], /Did you mean generate\?/],
      [
        ["sft", "--learing-rate", "1"],
        /unknown option '--learing-rate'\s+\(Did you mean --learning-rate\?\)/,
      ],
      [["run"], /missing required argument/],
      [["logprobs", "--model", "m"], /required option '--data-path/],
      [["generate", "--model", "m", "--temperature", "hot"], /expected a number of at least 0/],
      [["generate", "--model", "m"], /either --prompt or --prompts-path/],
    ];
    for (const [words, message] of cases) {
      const { code, stderr } = await runHere(...words);
      assert.equal(code, 2, `${words.join(" ")}: ${stderr}`);
      assert.match(stderr, message);
    }
  });

  it("a wrong configuration ends with 2 and names file, line and column", async () => {
    const file = writeText(
      directory,
      "pipeline.yaml",
      "stages:\n  - sft:\n      model_pth: x\n      data_path: d\n      output_dir: o\n",
    );
    const { code, stderr } = await runHere("run", file);
    assert.equal(code, 2);
    assert.match(stderr, /pipeline\.yaml:3:7: unknown key "model_pth" \(did you mean "model_path"\?\)/);
    assert.match(stderr, /\[ERR_RLHF_CONFIG\]/);
  });

  it("a wrong flag value ends with 2 and names the flag", async () => {
    const { code, stderr } = await runHere(
      "sft",
      "--model-path",
      "m",
      "--data-path",
      "d",
      "--output-dir",
      "o",
      "--batch-size",
      "1.5",
    );
    assert.equal(code, 2);
    assert.match(stderr, /--batch-size: expected int/);
    const words = ["--init", "{hidden_size: 16}", "--data-path", "d", "--output-dir", "o"];
    const inside = await runHere("sft", ...words);
    assert.equal(inside.code, 2);
    assert.match(inside.stderr, /--init: family: expected one of "gpt2"/);
  });

  it("what fails at work ends with 1 and its code", async () => {
    const data = writeText(directory, "rows.jsonl", jsonLines([{ prompt: "a", response: "b" }]));
    const missing = join(directory, "no-model");
    const noModel = await runHere(
      "logprobs",
      "--model",
      missing,
      "--data-path",
      data,
      "--output",
      join(directory, "out.jsonl"),
    );
    assert.equal(noModel.code, 1);
    assert.match(noModel.stderr, /\[ERR_RLHF_(TOKENIZER|MODEL)\]/);
    const noInput = await runHere(
      "sft",
      "--model-path",
      missing,
      "--data-path",
      data,
      "--output-dir",
      join(directory, "o"),
    );
    assert.equal(noInput.code, 1);
    assert.match(
      noInput.stderr,
      /sft: model_path: .*no-model: there is no such file or directory \[ERR_RLHF_IO\]/,
    );
  });
});
