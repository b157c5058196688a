import assert from "node:assert/strict";
import { Command } from "commander";
import { addStageFlags, stageFlags } from "../../lib/cli/flags.ts";
import { type StageKind, stageAliases, stageKinds, stageSchemas } from "../../lib/pipeline/schema.ts";
import type { FlagSettings } from "../../lib/pipeline/settings-file.ts";

function parse(kind: StageKind, words: readonly string[]): FlagSettings {
  const command = new Command(kind).exitOverride().configureOutput({ writeErr() {} });
  addStageFlags(command, kind);
  command.parse([...words], { from: "user" });
  return stageFlags(command, kind);
}

describe("flags of the stages", () => {
  it("are the YAML keys with dashes, all of them", () => {
    for (const kind of stageKinds) {
      const command = new Command(kind);
      addStageFlags(command, kind);
      const flags = new Set(command.options.map((option) => option.long));
      for (const key of Object.keys(stageSchemas[kind].shape))
        assert.ok(flags.has(`--${key.replaceAll("_", "-")}`), `${kind} ${key}`);
    }
  });

  it("all say what they are, and which words they may be", () => {
    for (const kind of stageKinds) {
      const command = new Command();
      addStageFlags(command, kind);
      for (const { flags, description, hidden } of command.options)
        assert.ok(hidden || description !== "", `${kind} ${flags}`);
    }
    const dpo = new Command();
    addStageFlags(dpo, "dpo");
    const help = (flag: string): string | undefined =>
      dpo.options.find(({ long }) => long === flag)?.description;
    assert.match(help("--schedule") ?? "", /^course of .* \(constant, linear, cosine\)$/);
    assert.equal(help("--seed"), "everything random follows from it");
  });

  it("take two numbers as words or as one list", () => {
    for (const words of [["0.9", "0.95"], ["[0.9, 0.95]"]])
      assert.deepEqual(parse("sft", ["--betas", ...words]), { betas: [0.9, 0.95] });
  });

  it("take numbers, booleans, lists, null and text as the setting wants them", () => {
    const words = [
      "--learning-rate",
      "1e-3",
      "--batch-size",
      "8",
      "--model-path",
      "42",
      "--whiten-rewards",
      "--whiten-advantages",
      "false",
    ];
    assert.deepEqual(
      parse("ppo", [...words, "--target-kl", "null", "--stop", "5", "</s>", "--prompts-path", "a.jsonl"]),
      {
        learning_rate: 1e-3,
        batch_size: 8,
        model_path: "42",
        whiten_rewards: true,
        whiten_advantages: false,
        target_kl: null,
        stop: [5, "</s>"],
        prompts_path: "a.jsonl",
      },
    );
    assert.deepEqual(
      parse("sft", [
        "--data-path",
        "a.jsonl",
        "b.jsonl",
        "--lora-target-modules",
        "q_proj",
        "--init",
        "{family: llama, hidden_size: 8, num_layers: 1, num_heads: 2, vocab_size: 300}",
      ]),
      {
        data_path: ["a.jsonl", "b.jsonl"],
        lora_target_modules: ["q_proj"],
        init: { family: "llama", hidden_size: 8, num_layers: 1, num_heads: 2, vocab_size: 300 },
      },
    );
  });

  it("have the names that tutorials use", () => {
    assert.deepEqual(
      parse("sft", ["--model-name", "m", "--data-path", "d", "--output-dir", "o", "--max-steps", "9"]),
      {
        model_path: "m",
        data_path: "d",
        output_dir: "o",
        max_steps: 9,
      },
    );
    assert.deepEqual(parse("sft", ["--base-model", "m"]), { model_path: "m" });
    assert.deepEqual(parse("reward", ["--sft-model-path", "m"]), { model_path: "m" });
    const ppo = [
      "--sft-model-path",
      "m",
      "--reward-model-path",
      "r",
      "--prompts-path",
      "p",
      "--num-episodes",
      "3",
      "--steps-per-epoch",
      "4",
    ];
    assert.deepEqual(parse("ppo", ppo), {
      model_path: "m",
      reward_model_path: "r",
      prompts_path: "p",
      num_iterations: 3,
      steps_per_epoch: 4,
    });
  });

  it("and aliases stand for keys that exist", () => {
    for (const kind of stageKinds) {
      for (const key of Object.values(stageAliases[kind]))
        assert.ok(key in stageSchemas[kind].shape, `${kind} ${key}`);
    }
  });

  it("refuse a setting given under two names", () => {
    assert.throws(() => parse("sft", ["--model-path", "a", "--base-model", "b"]), {
      code: "ERR_RLHF_USAGE",
      message: "--base-model is another name of --model-path, which is given too",
    });
  });

  it("keep a value that fits no type for the schema to report", () => {
    assert.deepEqual(parse("sft", ["--learning-rate", "fast"]), { learning_rate: "fast" });
  });
});
