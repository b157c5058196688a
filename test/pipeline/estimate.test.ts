import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, type MemoryEstimate, RewardModel } from "../../lib/index.ts";
import { estimateStage } from "../../lib/pipeline/run.ts";
import type { TrainingKind, TrainingStage } from "../../lib/pipeline/schema.ts";
import { readStage } from "../../lib/pipeline/settings-file.ts";
import { runCommand } from "../cli/support.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { preferenceRows, prompts, sftRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";

describe("the memory estimate of a stage", () => {
  const directory = temporaryDirectory();
  const model = join(directory, "model");
  const rewardModel = join(directory, "reward");
  const output = join(directory, "output");
  let sft = "";
  let pairs = "";
  let promptFile = "";

  before(async () => {
    const tokenizer = tinyTokenizer();
    using made = await tinyModel(tokenizer, "none");
    await made.save(model);
    await tokenizer.save(model);
    await RewardModel.create(made).save(rewardModel);
    await tokenizer.save(rewardModel);
    sft = writeText(directory, "sft.jsonl", jsonLines(sftRows));
    pairs = writeText(directory, "pairs.jsonl", jsonLines(preferenceRows));
    promptFile = writeText(directory, "prompts.jsonl", jsonLines(prompts));
  });

  async function estimate(kind: TrainingKind, settings: Record<string, unknown>): Promise<MemoryEstimate> {
    const stage = await readStage(kind, undefined, { model_path: model, output_dir: output, ...settings });
    return estimateStage(stage as TrainingStage);
  }

  /** Bytes of models, in whichever form they are held. */
  const heldIn = ({ bytes }: MemoryEstimate): number => bytes.weights + bytes.packedWeights;

  it("follows from its settings, and runs nothing", async () => {
    const full = await estimate("sft", { data_path: sft });
    using loaded = await CausalLM.load(model);
    const matrices = loaded
      .parameters()
      .reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    assert.ok(full.bytes.optimizer >= 8 * matrices && full.bytes.gradients >= 4 * matrices);
    assert.equal(full.bytes.packedWeights, 0);
    const recomputed = await estimate("sft", { data_path: sft, recompute_layers: true });
    assert.ok(recomputed.bytes.activations < full.bytes.activations);
    const lora = await estimate("sft", { data_path: sft, lora_r: 2 });
    assert.ok(lora.bytes.optimizer < full.bytes.optimizer / 2 && lora.bytes.packedWeights > 0);
    const narrow = await estimate("sft", { data_path: sft, lora_r: 2, dtype: "bfloat16" });
    assert.ok(heldIn(narrow) < heldIn(lora) && narrow.bytes.packedWeights === 0);
    assert.ok(!existsSync(output), "nothing is written");
  });

  it("counts references, reward models and generation", async () => {
    const dpo = await estimate("dpo", { data_path: pairs });
    const orpo = await estimate("orpo", { data_path: pairs });
    assert.ok(heldIn(dpo) > 1.8 * heldIn(orpo), "a copy of the weights is the reference");
    const settings = { prompts_path: promptFile, reward_model_path: rewardModel, max_new_tokens: 8 };
    const ppo = await estimate("ppo", settings);
    assert.ok(heldIn(ppo) > 2.5 * heldIn(orpo), "policy, reference and reward model");
    assert.ok(ppo.bytes.cache > 0);
    assert.ok((await estimate("reward", { data_path: pairs })).bytes.optimizer > 0);
    assert.ok(!existsSync(output), "nothing is written");
  });

  it("is printed by the command line", async () => {
    const files = ["--model-path", model, "--data-path", sft, "--output-dir", output];
    const words = ["sft", ...files, "--gradient-checkpointing", "--memory-budget", "3GiB", "--estimate"];
    const { code, stdout, stderr } = await runCommand(...words);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^weights {9}[ \d.]+ KiB$/m);
    assert.match(stdout, /^optimizer {7}[ \d.]+ KiB$/m);
    assert.match(stdout, /^total [ \d.]+ MiB\nbudget [ ]+3\.00 GiB$/m);
    assert.ok(!existsSync(output), "nothing is written");
  });

  it("over the budget stops the stage before its model is loaded", async () => {
    const files = ["--model-path", model, "--data-path", sft, "--output-dir", output];
    const { code, stderr } = await runCommand("sft", ...files, "--memory-budget", "10 kB");
    assert.equal(code, 1);
    assert.match(stderr, /ERR_RLHF_MEMORY|over the memory budget/);
  });
});
