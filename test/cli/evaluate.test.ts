import assert from "node:assert/strict";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, type EvaluationReport } from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";
import { runCommand, runHere } from "./support.ts";

const MODULE = `
export const metrics = { letters: (prompt, response) => response.length };
export const category = (row) => row.prompt.startsWith("A") ? "a" : null;
export const checks = ({ models }) => [
  { name: "compares", figure: models.length, requirement: "at least 2", holds: models.length >= 2 },
  { name: "is long", figure: models[0].metrics.length.mean, requirement: "at least 99", holds: false },
];
`;

/** Two models, prompts and modules in a directory. */
async function writeInputs(directory: string): Promise<void> {
  const tokenizer = tinyTokenizer();
  using first = await tinyModel(tokenizer, "none");
  using second = await CausalLM.create(first.hfConfig, { seed: 8, device: "cpu" });
  for (const [name, model] of [
    ["sft", first],
    ["ppo", second],
  ] as const) {
    await model.save(join(directory, name));
    await tokenizer.save(join(directory, name));
  }
  await mkdir(join(directory, "run"));
  await writeFile(join(directory, "run", "metrics.jsonl"), '{"step":1,"loss":2}\n{"step":2,"loss":1}\n');
  await writeFile(join(directory, "prompts.json"), JSON.stringify(prompts));
  await writeFile(join(directory, "metrics.mjs"), MODULE);
  await writeFile(join(directory, "reward.mjs"), "export default (prompt, response) => -response.length;");
}

async function readReport(directory: string): Promise<EvaluationReport> {
  return JSON.parse(await readFile(join(directory, "report.json"), "utf8")) as EvaluationReport;
}

describe("node-rlhf evaluate", () => {
  it("compares models as file and flags say, and writes three reports", async () => {
    await withTemporaryDirectory(async (directory) => {
      await writeInputs(directory);
      const file = join(directory, "evaluation.yaml");
      await writeFile(
        file,
        [
          "models: { sft: sft, ppo: ppo }",
          "prompts_path: prompts.json",
          "output_dir: out",
          "reward_module: reward.mjs",
          "metrics_module: metrics.mjs",
          "runs: { training: run }",
          "max_new_tokens: 6",
          "num_samples: 3",
        ].join("\n"),
      );
      const first = await runCommand("evaluate", "--config", file, "--num-samples", "2");
      assert.equal(first.code, 0, first.stderr);
      const report = await readReport(join(directory, "out"));
      assert.deepEqual(
        [report.baseline, report.settings.answersPerPrompt, report.models.map(({ name }) => name)],
        ["sft", 2, ["sft", "ppo"]],
      );
      for (const { metrics } of report.models) {
        assert.equal(metrics.letters?.answers, 8);
        assert.equal(metrics.reward?.mean, -(metrics.letters?.mean ?? 0));
      }
      assert.equal(report.models[1]?.categories.a?.letters?.answers, 2);
      assert.match(first.stdout, /wins by reward +[\d.]+ %/);
      assert.match(
        first.stdout,
        /\nholds {2}compares: 2 \(at least 2\)\nFAILS {2}is long: [\d.]+ \(at least 99\)\n/,
      );
      assert.match(await readFile(join(directory, "out", "report.html"), "utf8"), /<polyline/);
      assert.match(await readFile(join(directory, "out", "report.md"), "utf8"), /## Win rate against sft/);
    });
  });

  it("takes everything from flags, and gives the same report for the same seed", async () => {
    await withTemporaryDirectory(async (directory) => {
      await writeInputs(directory);
      const path = (name: string): string => join(directory, name);
      const models = [`sft=${path("sft")}`, `ppo=${path("ppo")}`];
      const words = ["--prompts-path", path("prompts.json"), "--max-new-tokens", "4", "--baseline", "ppo"];
      const run = (out: string) =>
        runCommand("evaluate", "--models", ...models, ...words, "--output-dir", path(out));
      for (const { code, stderr } of await Promise.all([run("a"), run("b")])) assert.equal(code, 0, stderr);
      const report = await readReport(path("a"));
      assert.equal(report.baseline, "ppo");
      assert.ok((report.models[0]?.metrics.kl?.mean ?? 0) > 0);
      assert.deepEqual(report, await readReport(path("b")));
    });
  });

  it("tells what is wrong with file, line and what was meant", async () => {
    await withTemporaryDirectory(async (directory) => {
      const file = join(directory, "evaluation.yaml");
      const cases: [yaml: string, message: RegExp][] = [
        [
          "models: { a: b }\nprompts_path: p\noutput_dir: o\nnum_sample: 2",
          /:4:1: unknown key "num_sample" \(did you mean "num_samples"/,
        ],
        ["models: 3\nprompts_path: p\noutput_dir: o", /:1:9: models: expected name: path/],
        [
          "models: { a: b }\nprompts_path: p\noutput_dir: o\nreward_model_path: r\nreward_module: m",
          /:5:16: reward_module: reward_model_path and reward_module exclude each other/,
        ],
      ];
      for (const [yaml, message] of cases) {
        await writeFile(file, yaml);
        const { code, stderr } = await runHere("evaluate", "--config", file);
        assert.equal(code, 2, stderr);
        assert.match(stderr, message);
      }
      const missing = await runHere("evaluate", "--models", "a=b", "--output-dir", "o");
      assert.deepEqual([missing.code, /--prompts-path: is required/.test(missing.stderr)], [2, true]);
      await writeFile(join(directory, "bad.mjs"), "export const metrics = { a: 1 };");
      await writeFile(file, "models: { a: b }\nprompts_path: p\noutput_dir: o\nmetrics_module: bad.mjs");
      const bad = await runHere("evaluate", "--config", file);
      assert.match(bad.stderr, /bad\.mjs: the metrics module must export metrics as an object of functions/);
      assert.equal(bad.code, 2);
    });
  });
});
