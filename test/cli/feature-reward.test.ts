import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { FeatureRewardModel, FeatureRewardTrainer, loadFeatures, readMetrics } from "../../lib/index.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { runCommand, runHere } from "./support.ts";

/** Vectors whose reward is the first number; the second says nothing. */
const vector = (i: number): number[] => [Math.sin(i), Math.cos(7 * i)];
const PAIRS = Array.from({ length: 60 }, (_, i) => {
  const [a, b] = [vector(i), vector(i + 100)];
  return (a[0] as number) > (b[0] as number) ? { chosen: a, rejected: b } : { chosen: b, rejected: a };
});
const SCORED = Array.from({ length: 20 }, (_, i) => ({ features: vector(i), score: vector(i)[0] as number }));
const ROWS = [...PAIRS, ...SCORED, { chosen: [0, 1], rejected: [0, 2], tie: true, margin: 0 }];

describe("command line: feature-reward", () => {
  const directory = temporaryDirectory();
  const path = (name: string): string => join(directory, name);
  const settings = (name: string, keys = ""): string =>
    writeText(
      directory,
      `${name}.yaml`,
      `data_path: rows.jsonl\noutput_dir: ${name}\nhidden_dim: 8\neval_fraction: 0.2\nlearning_rate: 1.0e-2\nnum_epochs: 40\nseed: 4\n${keys}`,
    );
  before(() => void writeText(directory, "rows.jsonl", jsonLines(ROWS)));

  it("learns pairs and scores of a file, saves the model, and is not run again", async () => {
    const words = ["feature-reward", "--config", settings("learnt", "save_steps: 10\n")];
    const { code, stderr } = await runCommand(...words);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /data: 81 of 81 rows/);
    const [, ...losses] = /eval\/loss before ([\d.]+), eval\/loss after ([\d.]+)/.exec(stderr) ?? [];
    const [untrained, trained] = losses.map(Number) as [number, number];
    assert.ok(trained < 0.85 * untrained, stderr);
    const model = await FeatureRewardModel.load(path("learnt"));
    assert.deepEqual([model.config.inputDim, model.config.hiddenDim], [2, 8]);
    const [low, high] = await model.predict([
      [-0.9, 0],
      [0.9, 0],
    ]);
    assert.ok((low as number) < (high as number));
    assert.ok(existsSync(path("learnt/checkpoint-80/trainer.json")));
    const stage = readFileSync(path("learnt.yaml"), "utf8");
    const pipeline = `stages:\n  - feature-reward:\n${stage.replace(/^(?=.)/gm, "      ")}`;
    const again = await runCommand("run", writeText(directory, "pipeline.yaml", pipeline));
    assert.equal(again.code, 0, again.stderr);
    assert.match(again.stderr, /feature-reward: complete in .*skipped/);
    const more = [
      "--model-path",
      path("learnt"),
      "--data-path",
      path("rows.jsonl"),
      "--output-dir",
      path("more"),
    ];
    const further = await runCommand("feature-reward", ...more, "--max-steps", "2", "--eval-fraction", "0");
    assert.equal(further.code, 0, further.stderr);
    assert.equal(readMetrics(path("more/metrics.jsonl")).length, 2);
    assert.deepEqual((await FeatureRewardModel.load(path("more"))).scale, model.scale);
  });

  it("--estimate says what the run takes, trains nothing, and is right", async () => {
    const { code, stdout } = await runCommand(
      "feature-reward",
      "--config",
      settings("estimated"),
      "--estimate",
    );
    assert.equal(code, 0);
    for (const use of ["weights", "gradients", "optimizer", "scratch", "arrays", "total", "budget"])
      assert.match(stdout, new RegExp(`^${use} +[\\d.]+ \\w+$`, "m"));
    assert.ok(!existsSync(path("estimated")));
    // Threads that no other test has, so that the engine is this run's alone.
    const model = FeatureRewardModel.create({ inputDim: 2, hiddenDim: 8, threads: 7 });
    const data = await loadFeatures(path("rows.jsonl"));
    using trainer = new FeatureRewardTrainer({ model, trainData: data, evalData: data });
    const { bytes, total } = await trainer.estimateMemory();
    const parameters = 2 * 8 + 8 + 8 * 8 + 8 + 8 + 1;
    assert.deepEqual([bytes.weights, bytes.optimizer], [4 * parameters, 8 * parameters]);
    for await (const _ of trainer.steps());
    await trainer.evaluate();
    const { peak } = model.engine.memory();
    assert.deepEqual([bytes.scratch, bytes.arrays], [peak.scratch, peak.arrays]);
    assert.equal(total, 16 * parameters + peak.scratch + peak.arrays);
  });

  it("names a row, key or flag that is wrong before anything is done", async () => {
    const withRow = (row: object, file: string): string[] => [
      "--data-path",
      writeText(directory, file, jsonLines([ROWS[0] as object, row])),
    ];
    const cases: [string[], number, RegExp][] = [
      [
        withRow({ chosen: [1, 2], rejected: [1] }, "bad1.jsonl"),
        1,
        /bad\d\.jsonl:2: row has 2 numbers in "chosen" and 1 in "rejected"/,
      ],
      [
        withRow({ chosen: [1, 2], rejected: [1, 2], margin: "x" }, "bad2.jsonl"),
        1,
        /bad\d\.jsonl:2: row "margin" must be a finite/,
      ],
      [
        withRow({ features: ["a"], score: 1 }, "bad3.jsonl"),
        1,
        /bad\d\.jsonl:2: row "features" must be a list of finite numbers/,
      ],
      [withRow({ features: [1, 2] }, "bad4.jsonl"), 1, /bad\d\.jsonl:2: row "chosen" is missing/],
      [withRow({ features: [1, 2, 3], score: 1 }, "bad5.jsonl"), 1, /inputDim is 2/],
      [["--hiden-dim", "4"], 2, /Did you mean --hidden-dim\?/],
      [["--model-path", path("learnt")], 2, /hidden_dim: has no effect beside model_path/],
      [["--loss", "bradley"], 2, /--loss: expected one of "bradley-terry"/],
    ];
    for (const [flags, expected, message] of cases) {
      const { code, stderr } = await runHere("feature-reward", "--config", settings("wrong"), ...flags);
      assert.match(stderr, message);
      assert.equal(code, expected, stderr);
    }
    assert.ok(!existsSync(path("wrong/metrics.jsonl")));
  });
});
