import assert from "node:assert/strict";
import { join } from "node:path";
import { readPipeline, readStage } from "../../lib/pipeline/settings-file.ts";
import { closest, editDistance } from "../../lib/suggest.ts";
import { temporaryDirectory, writeText } from "../data/support.ts";

describe("pipeline files", () => {
  const directory = temporaryDirectory();
  const write = (text: string): string => writeText(directory, "pipeline.yaml", text);

  const good = `seed: 7
stages:
  - sft:
      init: { family: llama, hidden_size: 32, num_layers: 2, num_heads: 4, vocab_size: 300 }
      data_path: data/sft.jsonl
      output_dir: /runs/sft
      learning_rate: 1e-3
  - reward:
      base_model: /runs/sft
      data_path: [a.jsonl, b.jsonl]
      output_dir: /runs/reward
      seed: 1
  - ppo:
      sft_model_path: /runs/sft
      reward_model_path: /runs/reward
      prompts_path: prompts.jsonl
      output_dir: /runs/ppo
      num_episodes: 5
      target_kl: null
`;

  it("give stages in order, with the file's defaults, aliases resolved and paths from the file's directory", async () => {
    const stages = await readPipeline(write(good));
    assert.deepEqual(
      stages.map((stage) => stage.kind),
      ["sft", "reward", "ppo"],
    );
    const [sft, reward, ppo] = stages.map((stage) => stage.settings as Record<string, unknown>);
    assert.equal(sft!.data_path, join(directory, "data/sft.jsonl"));
    assert.equal(sft!.learning_rate, 1e-3);
    assert.deepEqual([sft!.seed, reward!.seed, ppo!.seed], [7, 1, 7]);
    assert.equal(reward!.model_path, "/runs/sft");
    assert.deepEqual(reward!.data_path, [join(directory, "a.jsonl"), join(directory, "b.jsonl")]);
    assert.equal(ppo!.model_path, "/runs/sft");
    assert.deepEqual([ppo!.num_iterations, ppo!.target_kl], [5, null]);
  });

  /** Every mistake, with the line and column it is reported at. */
  const mistakes: [name: string, text: string, at: string, message: RegExp][] = [
    [
      "a family that there is not",
      good.replace("family: llama", "family: bert"),
      "4:23",
      /expected one of "gpt2"\|"llama"\|"mistral"\|"qwen2"\|"qwen3"\|"gpt_neox"/,
    ],
    [
      "a key of other families",
      good.replace("family: llama", "family: gpt_neox, num_kv_heads: 2"),
      "4:47",
      /gpt_neox has no num_kv_heads; these have: llama, mistral, qwen2, qwen3/,
    ],
    [
      "an unknown key",
      good.replace("learning_rate", "learing_rate"),
      "7:7",
      /unknown key "learing_rate" \(did you mean "learning_rate"\?\)/,
    ],
    [
      "a key in camelCase",
      good.replace("num_episodes", "numIterations"),
      "18:7",
      /unknown key "numIterations" \(did you mean "num_iterations"\?\)/,
    ],
    [
      "an unknown key at the top",
      good.replace("seed: 7", "sede: 7"),
      "1:1",
      /unknown key "sede" \(did you mean "seed"\?\)/,
    ],
    [
      "an unknown stage",
      good.replace("- ppo:", "- pop:"),
      "13:5",
      /unknown key "pop" \(did you mean "ppo"\?\)/,
    ],
    [
      "nothing but an unknown stage, once",
      "stages:\n  - stf:\n      model_path: x\n",
      "2:5",
      /^[^\n]*unknown key "stf" \(did you mean "sft"\?\)$/,
    ],
    [
      "a stage without its list",
      "seed: 0\nsft:\n  model_path: x\n",
      "2:1",
      /a stage stands in a list: write "stages:" before "- sft:"$/,
    ],
    [
      "a stage's settings alone",
      "model_path: x\nbeta: 0.1\nref_model_path: x\n",
      "1:1",
      /these are settings of one stage \(dpo, kto\): run it with "node-rlhf dpo --config .*"$/,
    ],
    [
      "settings alone whose init is no stage",
      "init: { family: llama }\ndata_path: x\noutput_dir: y\nloss_on: all\n",
      "1:1",
      /these are settings of one stage \(sft\): run it with "node-rlhf sft --config .*"$/,
    ],
    [
      "an unknown key of init",
      good.replace("num_heads", "heads"),
      "4:62",
      /unknown key "heads" \(did you mean "num_heads"\?\)/,
    ],
    ["a key far from all others", good.replace("learning_rate", "zzz"), "7:7", /unknown key "zzz"$/],
    ["a wrong type", good.replace("1e-3", "fast"), "7:22", /learning_rate: expected number, received string/],
    [
      "a value out of range",
      good.replace("1e-3", "-1"),
      "7:22",
      /learning_rate: Too small: expected number to be >0/,
    ],
    [
      "an element of a list out of range",
      good.replace("learning_rate: 1e-3", "betas: [0.9, 2]"),
      "7:20",
      /betas\[1\]: Too big: expected number to be <1/,
    ],
    [
      "one number where there are two",
      good.replace("learning_rate: 1e-3", "betas: 0.9"),
      "7:14",
      /betas: expected two numbers from 0 to below 1$/,
    ],
    [
      "a memory budget in other words",
      good.replace("learning_rate: 1e-3", "memory_budget: lots"),
      "7:22",
      /memory_budget: expected a number of bytes or text such as "12GiB"$/,
    ],
    [
      "epochs of PPO without their length",
      good.replace("num_episodes: 5", "num_epochs: 5"),
      "18:19",
      /num_epochs: has no effect without steps_per_epoch/,
    ],
    [
      "epochs of PPO beside a number of iterations",
      good.replace("num_episodes: 5", "num_episodes: 5\n      steps_per_epoch: 5"),
      "19:24",
      /steps_per_epoch and num_iterations exclude each other/,
    ],
    ["a missing path", good.replace(/ {6}prompts_path: .*\n/, ""), "14:7", /prompts_path: is required/],
    ["a missing key", good.replace("      output_dir: /runs/sft\n", ""), "4:7", /output_dir: is required/],
    [
      "keys that exclude each other",
      good.replace("init: {", "model_path: x\n      init: {"),
      "5:13",
      /model_path and init exclude each other/,
    ],
    [
      "neither of two keys",
      good.replace("      reward_model_path: /runs/reward\n", ""),
      "14:7",
      /one of reward_model_path, reward_module and reward_url is required/,
    ],
    [
      "an alias beside its key",
      good.replace("      base_model", "      model_path: x\n      base_model"),
      "10:7",
      /"base_model" is another name of "model_path"/,
    ],
    [
      "a setting without effect",
      good.replace("num_episodes: 5", "lora_alpha: 5"),
      "18:19",
      /lora_alpha: has no effect without lora_r/,
    ],
    [
      "a module's name where a regular expression is meant to stand",
      good.replace("num_episodes: 5", "lora_r: 4\n      lora_target_modules: q_proj"),
      "19:28",
      /lora_target_modules: expected a list of module names, "all-linear" or a regular expression/,
    ],
    [
      "two stages in one entry",
      good.replace("  - reward:", "    reward:"),
      "3:5",
      /each entry of stages is one stage/,
    ],
    ["a doubled key", good.replace("learning_rate: 1e-3", "data_path: x"), "7:7", /Map keys must be unique/],
    ["broken YAML", "stages: [", "1:10", /./],
    ["no stages", "stages: []\n", "1:9", /stages: Too small/],
    ["an empty file", "", "1:1", /expected object/],
  ];
  for (const [name, text, at, message] of mistakes) {
    it(`${name} is reported at ${at}`, async () => {
      const file = write(text);
      await assert.rejects(readPipeline(file), (error: Error & { code: string }) => {
        assert.equal(error.code, "ERR_RLHF_CONFIG");
        const first = error.message.split("\n")[0]!;
        assert.ok(first.startsWith(`${file}:${at}: `), first);
        assert.match(first, message);
        return true;
      });
    });
  }

  it("with several mistakes report them all, in order", async () => {
    const file = write(
      good.replace("learning_rate", "learing_rate").replace("num_episodes: 5", "clip_range: wide"),
    );
    await assert.rejects(readPipeline(file), (error: Error) => {
      assert.deepEqual(
        error.message.split("\n").map((line) => line.slice(file.length + 1).split(": ")[0]),
        ["7:7", "18:19"],
      );
      return true;
    });
  });

  it("that cannot be read are a configuration error", async () => {
    await assert.rejects(readPipeline(join(directory, "none.yaml")), {
      code: "ERR_RLHF_CONFIG",
      message: /cannot be read: ENOENT/,
    });
  });
});

describe("one stage's settings", () => {
  const directory = temporaryDirectory();

  it("come from a file and from flags, which win", async () => {
    const file = writeText(
      directory,
      "sft.yaml",
      "base_model: model\ndata_path: d.jsonl\noutput_dir: out\nlearning_rate: 1e-3\n",
    );
    const { settings } = await readStage("sft", file, { learning_rate: 5e-4, output_dir: "elsewhere" });
    assert.deepEqual(settings, {
      model_path: join(directory, "model"),
      data_path: join(directory, "d.jsonl"),
      output_dir: "elsewhere",
      learning_rate: 5e-4,
    });
  });

  it("in a file are reported with their place, as flags by the flag", async () => {
    const file = writeText(
      directory,
      "sft.yaml",
      "model_path: model\ndata_path: d.jsonl\noutput_dir: out\nbatchsize: 4\n",
    );
    const inFile = {
      code: "ERR_RLHF_CONFIG",
      message: `${file}:4:1: unknown key "batchsize" (did you mean "batch_size"?)`,
    };
    await assert.rejects(readStage("sft", file, {}), inFile);
    const flags = { model_path: "m", data_path: "d", output_dir: "o", learning_rate: "fast" };
    const asFlag = { code: "ERR_RLHF_USAGE", message: "--learning-rate: expected number, received string" };
    await assert.rejects(readStage("sft", undefined, flags), asFlag);
    await assert.rejects(readStage("sft", undefined, { ...flags, learning_rate: 1, data_path: undefined }), {
      code: "ERR_RLHF_USAGE",
      message: /^--data-path: /,
    });
    const pipeline = writeText(directory, "pipeline.yaml", "stages:\n  - sft:\n      model_path: x\n");
    await assert.rejects(readStage("sft", pipeline, {}), {
      code: "ERR_RLHF_CONFIG",
      message: `${pipeline}:1:1: this is a pipeline: run it with "node-rlhf run ${pipeline}"`,
    });
  });
});

describe("did you mean", () => {
  it("counts insertions, deletions, substitutions and swaps", () => {
    assert.deepEqual(
      [
        editDistance("", "abc"),
        editDistance("kitten", "sitting"),
        editDistance("abcd", "acbd"),
        editDistance("same", "same"),
      ],
      [3, 3, 1, 0],
    );
  });

  it("takes the nearest candidate, whatever its spelling, and none that is far", () => {
    const keys = ["learning_rate", "batch_size", "seed"];
    assert.equal(closest("learningRate", keys), "learning_rate");
    assert.equal(closest("batch-sise", keys), "batch_size");
    assert.equal(closest("temperature", keys), null);
  });
});
