import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, readMetrics } from "../../lib/index.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";
import { runCommand, runHere } from "./support.ts";

describe("command line: grpo, rloo and reinforce-plus-plus", () => {
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);
  const REWARD = "export default (_prompt, response) => response.length / 10;\n";

  before(async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer);
    await model.save(path("start"));
    await tokenizer.save(path("start"));
    writeText(directory, "reward.mjs", REWARD);
    writeText(directory, "prompts.jsonl", jsonLines(prompts.map((prompt) => ({ prompt }))));
  });

  const stage = (name: string, keys: string): string =>
    writeText(
      directory,
      `${name}.yaml`,
      `model_path: start\nprompts_path: prompts.jsonl\neval_prompts_path: prompts.jsonl\nreward_module: reward.mjs\noutput_dir: ${name}\nnum_iterations: 2\nmax_new_tokens: 5\nlearning_rate: 1.0e-3\n${keys}`,
    );

  it("a stage from YAML and flags trains, saves a model, and is not run again", async () => {
    const runs: [string, string, string[], rollouts: number][] = [
      ["grpo", "batch_size: 8\ngroup_size: 4\nratio_level: sequence\nloss_aggregation: dr_grpo\n", [], 16],
      [
        "rloo",
        "batch_size: 6\n",
        [
          "--num-generations",
          "3",
          "--kl-coefficient",
          "0.1",
          "--kl-loss-coefficient",
          "0.2",
          "--lora-r",
          "4",
        ],
        12,
      ],
      ["reinforce-plus-plus", "batch_size: 6\n", ["--baseline", "group", "--group-size", "2"], 12],
    ];
    for (const [kind, keys, flags, rollouts] of runs) {
      const words = [kind, "--config", stage(kind, keys), ...flags];
      const { code, stderr } = await runCommand(...words);
      assert.equal(code, 0, stderr);
      const records = readMetrics(path(`${kind}/metrics.jsonl`));
      assert.equal(records.length, 2);
      const metrics = records[1]?.metrics ?? {};
      assert.equal(metrics["episode"], rollouts);
      assert.equal(
        metrics["objective/kl"] === undefined,
        kind === "grpo",
        "GRPO keeps no reference by default",
      );
      assert.equal(Number.isFinite(metrics["policy/kl_avg"]), kind === "rloo");
      assert.ok(Number.isFinite(metrics["eval/objective/scores"]));
      using model = await CausalLM.load(path(kind), { device: "cpu" });
      assert.ok(model.vocabSize > 0);
      const again = await runCommand(...words);
      assert.equal(again.code, 0);
      assert.match(again.stdout + again.stderr, /complete/);
    }
  });

  it("keys that do not go together, or are another stage's, are named before anything is done", async () => {
    const cases: [string, string, RegExp][] = [
      ["grpo", "batch_size: 12\n", /batch_size.*must be a multiple of group_size \(8\)/s],
      ["rloo", "batch_size: 3\n", /batch_size.*must be a multiple of group_size \(2\)/s],
      ["rloo", "scale_rewards: none\n", /scale_rewards/],
      ["grpo", "min_new_tokens: 6\n", /min_new_tokens.*must not be over max_new_tokens \(5\)/s],
      ["grpo", "group_size: 1\n", /group_size.*must be at least 2/s],
      ["rloo", "kl_loss_direction: both\n", /kl_loss_direction.*"reverse".*"forward"/s],
      ["reinforce-plus-plus", "baseline: group\n", /group_size.*must be at least 2/s],
      ["reinforce-plus-plus", "lambda: 1\n", /lambda/],
    ];
    for (const [kind, keys, message] of cases) {
      const { code, stderr } = await runHere(kind, "--config", stage("wrong", keys));
      assert.equal(code, 2, stderr);
      assert.match(stderr, message);
    }
    assert.ok(!existsSync(path("wrong")));
  });

  it("--estimate tells the memory without training", async () => {
    const words = ["grpo", "--config", stage("estimated", "batch_size: 8\n"), "--estimate"];
    const { code, stdout, stderr } = await runCommand(...words);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^optimizer .*^total .*^budget /ms);
    assert.ok(!existsSync(path("estimated/metrics.jsonl")));
  });
});
