import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Calibration, loadReward, RewardEnsemble } from "../../lib/index.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import type { RewardStage, Stage } from "../../lib/pipeline/schema.ts";
import { readPipeline, readStage } from "../../lib/pipeline/settings-file.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { preferenceRows, prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";

describe("reward stages", function () {
  this.timeout(60_000);
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);

  before(async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer, "none");
    await model.save(path("base"));
    await tokenizer.save(path("base"));
    const scored = preferenceRows
      .slice(0, 4)
      .map(({ prompt, chosen }) => ({ prompt, response: chosen, score: 1 }));
    // Pairs and scored answers take turns in one file.
    writeText(
      directory,
      "rows.jsonl",
      jsonLines([...preferenceRows, ...scored].sort((a, b) => (a.prompt < b.prompt ? -1 : 1))),
    );
    writeText(directory, "prompts.jsonl", jsonLines(prompts));
  });

  function stage(output: string, more: Partial<RewardStage> = {}): Stage {
    const settings: RewardStage = {
      model_path: path("base"),
      data_path: path("rows.jsonl"),
      output_dir: path(output),
      device: "cpu",
      eval_fraction: 0.3,
      learning_rate: 3e-3,
      batch_size: 4,
      max_steps: 8,
      ...more,
    };
    return { kind: "reward", settings };
  }

  async function run(
    stages: readonly Stage[],
    signal?: AbortSignal,
  ): Promise<{ log: string; summaries: object[] }> {
    const lines: string[] = [];
    const results = await runPipeline(stages, {
      log: (line) => lines.push(line),
      ...(signal ? { signal } : {}),
    });
    return { log: lines.join("\n"), summaries: results.map((result) => result.summary) };
  }

  const weights = (name: string): Buffer => readFileSync(path(`${name}/model.safetensors`));

  it("train on pairs and scores, and leave statistics and calibration beside the weights", async () => {
    const { summaries } = await run([stage("one")]);
    assert.ok("eval/accuracy after" in (summaries[0] as object), JSON.stringify(summaries));
    const calibration = JSON.parse(readFileSync(path("one/calibration.json"), "utf8")) as Calibration;
    assert.equal(calibration.bins.length, 10);
    assert.ok(calibration.pairs > 0 && calibration.brier >= 0 && calibration.ece >= 0);
    using reward = await loadReward(path("one"), { device: "cpu" });
    assert.ok(!(reward instanceof RewardEnsemble));
    assert.ok((reward.statistics?.deviation ?? 0) > 0);
    await run([stage("raw", { normalize_reward: false })]);
    assert.ok(!readdirSync(path("raw")).includes("reward_statistics.json"));
    assert.ok(weights("raw").equals(weights("one")), "statistics change no weight");
  });

  it("the examples on HH-RLHF are stages, and seeds and combinations that make no sense are not", async () => {
    const example = fileURLToPath(new URL("../../examples/hh-rlhf/pipeline.yaml", import.meta.url));
    const stages = await readPipeline(example);
    assert.deepEqual(
      stages.map(({ kind }) => kind),
      ["sft", "reward", "reward", "dpo", "ppo", "evaluate"],
    );
    assert.equal((stages[1] as { settings: RewardStage }).settings.overlong, "truncate-prompt");
    const file = (text: string): string =>
      writeText(
        directory,
        "stage.yaml",
        `model_path: base\ndata_path: rows.jsonl\noutput_dir: out\n${text}\n`,
      );
    for (const [text, message] of [
      ["combine: min", /combine.*has no effect without members over 1/],
      ["members: 0", /members/],
      ["loss: pairwise", /loss/],
      ["label_smoothing: 0.5", /label_smoothing/],
    ] as const)
      await assert.rejects(readStage("reward", file(text), {}), { code: "ERR_RLHF_CONFIG", message });
  });

  it("members make an ensemble that PPO learns from; complete members are skipped, a lost one is trained again", async () => {
    const ensemble = stage("ensemble", {
      members: 2,
      combine: "mean-std",
      kappa: 0.5,
      freeze_base: true,
      head: "mlp",
    });
    const ppo: Stage = {
      kind: "ppo",
      settings: {
        model_path: path("base"),
        reward_model_path: path("ensemble"),
        prompts_path: path("prompts.jsonl"),
        output_dir: path("ppo"),
        device: "cpu",
        num_iterations: 2,
        batch_size: 4,
        max_new_tokens: 6,
        lora_r: 2,
      },
    };
    const { log, summaries } = await run([ensemble, ppo]);
    assert.match(log, /member 2 of 2: done/);
    assert.ok("eval/reward_spread after" in (summaries[0] as object));
    assert.ok(!weights("ensemble/member-0").equals(Buffer.alloc(0)));
    const heads = [0, 1].map((i) => readFileSync(path(`ensemble/member-${i}/heads.safetensors`)));
    assert.ok(!heads[0]?.equals(heads[1] as Buffer), "the seeds differ");
    const metrics = readFileSync(path("ppo/metrics.jsonl"), "utf8");
    assert.match(metrics, /objective\/reward_spread/);

    assert.equal((await run([ensemble, ppo])).log.match(/skipped/g)?.length, 2);
    rmSync(path("ensemble/member-1/heads.safetensors"));
    const again = (await run([ensemble, ppo])).log;
    assert.match(again, /member 1 of 2: complete in .*, skipped/);
    assert.match(again, /member 2 of 2: done/);
    assert.match(again, /\[2\/2\] ppo: complete/, "the same members give the same policy");
    assert.ok(readFileSync(path("ensemble/member-1/heads.safetensors")).equals(heads[1] as Buffer));
  });

  it("an ensemble that was interrupted in a member ends in the bits of one left alone", async () => {
    const settings = { members: 2, save_steps: 3, max_steps: 60 };
    await run([stage("whole", settings)]);
    const controller = new AbortController();
    const begun = (): boolean => existsSync(path("cut/member-1/checkpoint-6"));
    const timer = setInterval(() => begun() && controller.abort(), 1);
    await assert.rejects(run([stage("cut", settings)], controller.signal), { code: "ERR_RLHF_ABORTED" });
    clearInterval(timer);
    assert.ok(begun() && !existsSync(path("cut/member-1/model.safetensors")), "cut off in the second member");
    const { log: resumed } = await run([stage("cut", settings)]);
    assert.match(resumed, /member 1 of 2: complete/);
    for (const member of ["member-0", "member-1"])
      assert.ok(weights(`cut/${member}`).equals(weights(`whole/${member}`)), member);
  });
});
