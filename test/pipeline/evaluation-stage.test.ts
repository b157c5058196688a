import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, type EvaluationReport, RewardModel } from "../../lib/index.ts";
import { runPipeline } from "../../lib/pipeline/run.ts";
import { readPipeline, readStage } from "../../lib/pipeline/settings-file.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { preferenceRows, prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";

const METRICS = `
export const metrics = { letters: (prompt, response) => response.length };
export const category = () => "all";
export const checks = ({ models }) =>
  [{ name: "two models", figure: models.length, requirement: "2", holds: models.length === 2 }];
`;

const PIPELINE = `
seed: 1
device: cpu
stages:
  - sft:
      model_path: base
      data_path: sft.jsonl
      output_dir: tuned
      batch_size: 4
      max_steps: 3
      learning_rate: 1e-2
  - evaluate:
      models: { base: base, tuned: tuned }
      prompts_path: prompts.jsonl
      pairs_path: pairs.jsonl
      reward_model_path: reward
      metrics_module: metrics.mjs
      runs: { tuned: tuned }
      output_dir: evaluation
      max_new_tokens: 5
`;

describe("the evaluate stage", () => {
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);
  let file = "";

  before(async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer, "none");
    await model.save(path("base"));
    await tokenizer.save(path("base"));
    using reward = await RewardModel.create(model);
    await reward.save(path("reward"));
    await tokenizer.save(path("reward"));
    const rows = preferenceRows.map(({ prompt, chosen }) => ({ prompt, response: chosen }));
    writeText(directory, "sft.jsonl", jsonLines(rows));
    writeText(directory, "pairs.jsonl", jsonLines(preferenceRows));
    writeText(directory, "prompts.jsonl", jsonLines(prompts));
    writeText(directory, "metrics.mjs", METRICS);
    file = writeText(directory, "pipeline.yaml", PIPELINE);
  });

  async function run(): Promise<{ skipped: boolean[]; summary: Readonly<Record<string, number>> }> {
    const results = await runPipeline(await readPipeline(file), { log: () => {} });
    return { skipped: results.map(({ skipped }) => skipped), summary: results[1]?.summary ?? {} };
  }

  it("reports on the models of the stages before it", async () => {
    const { skipped, summary } = await run();
    assert.deepEqual(skipped, [false, false]);
    const text = readFileSync(path("evaluation/report.json"), "utf8");
    const report = JSON.parse(text) as EvaluationReport;
    assert.deepEqual(
      report.models.map(({ name }) => name),
      ["base", "tuned"],
    );
    assert.equal(report.rewardAccuracy.reward?.accuracy.answers, preferenceRows.length);
    assert.ok((report.models[1]?.metrics.kl?.mean ?? 0) !== 0);
    assert.deepEqual(summary, {
      "checks that hold": 1,
      checks: 1,
      ...Object.fromEntries(
        report.models.flatMap(({ name, metrics }) => [
          [`${name} reward`, metrics.reward?.mean],
          [`${name} letters`, metrics.letters?.mean],
        ]),
      ),
    });
    assert.equal(Object.keys(summary).length, 6);
    assert.match(readFileSync(path("evaluation/report.html"), "utf8"), /<polyline/);
    assert.match(readFileSync(path("evaluation/report.md"), "utf8"), /\| two models \| 2 \| 2 \| holds \|/);
  });

  it("is skipped while nothing changes, and runs again for another model or another module", async () => {
    const before = await run();
    assert.deepEqual(before.skipped, [true, true]);
    writeText(directory, "metrics.mjs", `${METRICS}// changed\n`);
    const { skipped, summary } = await run();
    assert.deepEqual(skipped, [true, false]);
    assert.deepEqual(summary, before.summary);
    using other = await CausalLM.create((await CausalLM.load(path("base"))).hfConfig, { seed: 9 });
    await other.save(path("base"));
    assert.deepEqual((await run()).skipped, [false, false]);
  });

  it("may not write over a model that it compares", async () => {
    writeText(directory, "over.yaml", PIPELINE.replace("output_dir: evaluation", "output_dir: base"));
    await assert.rejects(runPipeline(await readPipeline(path("over.yaml")), { log: () => {} }), {
      code: "ERR_RLHF_CONFIG",
      message: /evaluate: output_dir is models too/,
    });
  });

  it("takes named paths as a mapping or as words, and tells a misspelt key by its line", async () => {
    const words = { prompts_path: "p", output_dir: "o", runs: ["a=b/c=d"] };
    const { settings } = await readStage("evaluate", undefined, { models: ["sft=x", "ppo=y"], ...words });
    assert.deepEqual(settings, { ...words, models: { sft: "x", ppo: "y" }, runs: { a: "b/c=d" } });
    writeText(directory, "words.yaml", PIPELINE.replace("{ base: base, tuned: tuned }", "[base=base]"));
    const [, stage] = await readPipeline(path("words.yaml"));
    assert.ok(stage?.kind === "evaluate");
    assert.deepEqual(stage.settings.models, { base: path("base") });
    writeText(directory, "bad.yaml", PIPELINE.replace("max_new_tokens", "max_new_token"));
    await assert.rejects(readPipeline(path("bad.yaml")), {
      code: "ERR_RLHF_CONFIG",
      message: /bad\.yaml:20:7: unknown key "max_new_token" \(did you mean "max_new_tokens"/,
    });
  });

  it("names what a metrics module lacks", async () => {
    for (const [text, message] of [
      ["export default 1;", /exports none of metrics, category and checks/],
      ["export const checks = 1;", /must export checks as a function/],
    ] as const) {
      const metrics = writeText(directory, `bad-${text.length}.mjs`, text);
      const stage = await readStage("evaluate", undefined, {
        models: { base: path("base") },
        prompts_path: path("prompts.jsonl"),
        output_dir: path("other"),
        metrics_module: metrics,
      });
      await assert.rejects(runPipeline([stage], { log: () => {} }), { code: "ERR_RLHF_CONFIG", message });
    }
  });
});
