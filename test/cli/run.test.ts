import assert from "node:assert/strict";
import { appendFileSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { readMetrics } from "../../lib/monitor/metrics.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { type Outcome, runCommand, startCommand } from "./support.ts";

/** A pipeline that takes a second or two, into output directories below `runs`. */
function pipeline(runs: string, sftSteps: number): string {
  return `seed: 1
device: cpu
stages:
  - sft:
      init: { family: llama, hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 264, max_position_embeddings: 64 }
      data_path: sft.jsonl
      output_dir: ${runs}/sft
      eval_fraction: 0.2
      batch_size: 4
      max_steps: ${sftSteps}
      save_steps: 5
      learning_rate: 1e-3
  - reward:
      model_path: ${runs}/sft
      data_path: pairs.jsonl
      output_dir: ${runs}/reward
      eval_fraction: 0.2
      batch_size: 4
      max_steps: 6
      learning_rate: 1e-3
  - ppo:
      model_path: ${runs}/sft
      reward_model_path: ${runs}/reward
      prompts_path: prompts.jsonl
      output_dir: ${runs}/ppo
      num_iterations: 2
      batch_size: 4
      max_new_tokens: 6
      num_minibatches: 2
      dual_clip: 3
      kl_estimator: full
      kl_loss_coefficient: 0.1
      kl_loss_direction: forward
      shape_rewards: true
      reward_clip: 5
      length_penalty: 0.01
      length_penalty_start: 4
      diversity_bonus: 0.1
      diversity_measure: overlap
      missing_eos_penalty: 0.5
      value_model: separate
      value_init: reward
`;
}

describe("command line: run", function () {
  this.timeout(240_000);
  const directory = temporaryDirectory();

  before(() => {
    const animals = ["cat", "dog", "hen", "cow", "pig"];
    const rows = animals.flatMap((animal) =>
      ["sat", "ran"].map((verb) => ({ prompt: `the ${animal}`, response: ` ${verb} down` })),
    );
    writeText(directory, "sft.jsonl", jsonLines(rows));
    writeText(
      directory,
      "pairs.jsonl",
      jsonLines(rows.map(({ prompt }) => ({ prompt, chosen: " sat down", rejected: " ran off" }))),
    );
    writeText(directory, "prompts.jsonl", jsonLines(animals.map((animal) => `the ${animal}`)));
  });

  function ok(outcome: Outcome): string {
    assert.equal(outcome.code, 0, outcome.stderr);
    return outcome.stderr;
  }

  it("runs all stages, then skips them, then repeats only what is no longer complete", async () => {
    const file = writeText(directory, "whole.yaml", pipeline("whole", 20));
    const first = ok(await runCommand("run", file));
    for (const line of ["[1/3] sft: done", "[2/3] reward: done", "[3/3] ppo: done"])
      assert.ok(first.includes(line), first);
    const policy = readFileSync(join(directory, "whole/ppo/model.safetensors"));
    const records = readMetrics(join(directory, "whole/ppo/metrics.jsonl"));
    assert.ok(records.length >= 2);
    for (const name of [
      "objective/diversity",
      "objective/raw_scores",
      "policy/dual_clipfrac_avg",
      "policy/kl_avg",
    ])
      assert.ok(Number.isFinite(records.at(-1)?.metrics[name]), name);

    const second = ok(await runCommand("run", file));
    assert.equal(second.match(/complete in .*, skipped/g)?.length, 3, second);

    rmSync(join(directory, "whole/ppo/model.safetensors"));
    const third = ok(await runCommand("run", file));
    assert.equal(third.match(/skipped/g)?.length, 2, third);
    assert.ok(
      policy.equals(readFileSync(join(directory, "whole/ppo/model.safetensors"))),
      "the same seed gives the same policy",
    );

    appendFileSync(join(directory, "prompts.jsonl"), jsonLines(["a cat"]));
    const fourth = ok(await runCommand("run", file));
    assert.match(fourth, /\[2\/3\] reward: complete/);
    assert.match(fourth, /\[3\/3\] ppo: writing to/, "new prompts make the stage new");
  });

  it("Ctrl-C ends with 130 after a checkpoint, says how to go on, and going on gives the bytes of a run left alone", async () => {
    const steps = 400;
    ok(await runCommand("run", writeText(directory, "alone.yaml", pipeline("alone", steps))));
    const file = writeText(directory, "stopped.yaml", pipeline("stopped", steps));
    const running = startCommand(["run", file]);
    await running.said("[1/3] sft: writing to");
    await running.said("sft ");
    await new Promise((resolve) => setTimeout(resolve, 300));
    running.interrupt();
    const stopped = await running.ended;
    assert.equal(stopped.code, 130, stopped.stderr);
    assert.match(
      stopped.stderr,
      /sft was interrupted; .*To go on, run "node-rlhf run .*stopped\.yaml" again \[ERR_RLHF_ABORTED\]/,
    );
    const on = ok(await runCommand("run", file));
    assert.match(on, /\[1\/3\] sft: going on in/);
    const firstStep = Number(/^sft (\d+)\/400/m.exec(on)?.[1]);
    assert.ok(firstStep > 1, `the first step after going on is ${firstStep}`);
    for (const stage of ["sft", "ppo"]) {
      const [a, b] = ["alone", "stopped"].map((runs) =>
        readFileSync(join(directory, runs, stage, "model.safetensors")),
      );
      assert.ok(a!.equals(b!), `${stage}/model.safetensors`);
    }
  });

  it("one stage from flags, with a reward function of the user's", async () => {
    const reward = writeText(
      directory,
      "reward.mjs",
      "export default (prompt, response) => (response.includes('a') ? 1 : 0);\n",
    );
    const words = [
      "--sft-model-path",
      join(directory, "whole/sft"),
      "--reward-module",
      reward,
      "--prompts-path",
      join(directory, "prompts.jsonl"),
    ];
    const settings = [
      "--num-episodes",
      "1",
      "--batch-size",
      "4",
      "--max-new-tokens",
      "4",
      "--lora-r",
      "2",
      "--num-minibatches",
      "1",
    ];
    ok(await runCommand("ppo", ...words, "--output-dir", join(directory, "flags"), ...settings));
    ok(
      await runCommand(
        "generate",
        "--model",
        join(directory, "flags"),
        "--prompt",
        "the cat",
        "--max-new-tokens",
        "3",
      ),
    );
  });

  it("a reward function that fails ends with 1 and says what it was asked", async () => {
    const reward = writeText(directory, "bad-reward.mjs", "export default () => Number.NaN;\n");
    const words = [
      "--model-path",
      join(directory, "whole/sft"),
      "--reward-module",
      reward,
      "--prompts-path",
      join(directory, "prompts.jsonl"),
    ];
    const outcome = await runCommand(
      "ppo",
      ...words,
      "--output-dir",
      join(directory, "nan"),
      "--num-iterations",
      "1",
      "--batch-size",
      "2",
      "--max-new-tokens",
      "3",
    );
    assert.equal(outcome.code, 1);
    assert.match(outcome.stderr, /must return a finite number.*\[ERR_RLHF_REWARD\]/s);
  });

  it("a reward module without a default export is an error", async () => {
    const reward = writeText(directory, "empty-reward.mjs", "export const reward = 1;\n");
    const words = [
      "--model-path",
      join(directory, "whole/sft"),
      "--reward-module",
      reward,
      "--prompts-path",
      join(directory, "prompts.jsonl"),
    ];
    const outcome = await runCommand("ppo", ...words, "--output-dir", join(directory, "none"));
    assert.equal(outcome.code, 1);
    assert.match(outcome.stderr, /must have a default export \(prompt, response\) => number/);
  });
});
