import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rename } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, readMetrics, type SFTConfig, SFTTrainer } from "../../lib/index.ts";
import { BestModel, bestGoal } from "../../lib/trainers/best.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { assertSameWeights, sftRows, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
/** A rate at which the held-out loss falls at first and rises then. */
const CONFIG: SFTConfig = {
  learningRate: 0.05,
  batchSize: 4,
  maxSteps: 8,
  schedule: "constant",
  evalSteps: 1,
};

async function train(outputDir: string, more: SFTConfig, stopAt?: number): Promise<CausalLM> {
  const model = await tinyModel(tokenizer);
  const [trainData, evalData] = [sftRows.slice(5), sftRows.slice(0, 5)];
  const config = { ...CONFIG, ...more };
  using trainer = new SFTTrainer({ model, tokenizer, trainData, evalData, config, outputDir });
  for await (const { step } of trainer.steps()) if (step === stopAt) break;
  return model;
}

const recordOf = async (outputDir: string): Promise<{ step: number; value: number }> =>
  JSON.parse(await readFile(join(outputDir, "best", "best.json"), "utf8"));

describe("the best model of a run", () => {
  for (const goal of ["min", "max"] as const) {
    it(`is that of the step whose metric is the ${goal}imum of all evaluations`, async () => {
      await withTemporaryDirectory(async (outputDir) => {
        using _last = await train(outputDir, { bestMetric: "eval/loss", bestMetricGoal: goal });
        const losses = readMetrics(join(outputDir, "metrics.jsonl")).map(
          ({ metrics }) => metrics["eval/loss"] as number,
        );
        const best = Math[goal](...losses);
        const { step, value } = await recordOf(outputDir);
        assert.deepEqual([value, step], [best, losses.indexOf(best) + 1]);
        using kept = await CausalLM.load(join(outputDir, "best"), { device: "cpu" });
        using then = await train(join(outputDir, "again"), {}, step);
        await assertSameWeights(kept, then);
        assert.deepEqual((await readdir(outputDir)).sort(), ["again", "best", "metrics.jsonl"]);
      });
    });
  }

  it("less of a loss is better and more of anything else; what is not finite never is", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      const save = async (directory: string): Promise<void> => void (await mkdir(directory));
      assert.deepEqual(
        ["eval/loss", "eval/accuracy"].map((metric) => bestGoal(metric, undefined).goal),
        ["min", "max"],
      );
      const best = await BestModel.open(outputDir, bestGoal("a", undefined), true);
      const kept: boolean[] = [];
      for (const [step, a] of [Number.NaN, 1, 1, 0, 2, Number.POSITIVE_INFINITY].entries())
        kept.push(await best.keep(step, { a }, save));
      assert.deepEqual(kept, [false, true, false, false, true, false]);
      assert.equal((await recordOf(outputDir)).step, 4);
    });
  });

  it("a resumed run goes on comparing, also where it was killed while it exchanged the two; a new one begins anew", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      const save = async (directory: string): Promise<void> => void (await mkdir(directory));
      const goal = { metric: "a", goal: "max" as const };
      const first = await BestModel.open(outputDir, goal, true);
      await first.keep(1, { a: 3 }, save);
      await rename(join(outputDir, "best"), join(outputDir, ".best.old"));
      await mkdir(join(outputDir, ".best.tmp"));
      const second = await BestModel.open(outputDir, goal, false);
      assert.equal(await second.keep(2, { a: 2 }, save), false);
      assert.deepEqual(await readdir(outputDir), ["best"]);
      const failing = async (directory: string): Promise<void> => {
        await save(directory);
        throw new Error("no room");
      };
      await assert.rejects(second.keep(3, { a: 4 }, failing), /no room/);
      assert.deepEqual([await readdir(outputDir), (await recordOf(outputDir)).step], [["best"], 1]);
      await BestModel.open(outputDir, goal, true);
      assert.ok(!existsSync(join(outputDir, "best")));
    });
  });

  it("settings that cannot mean anything are told, a wrong name with the right ones", async () => {
    await withTemporaryDirectory(async (outputDir) => {
      const refused = { code: "ERR_RLHF_ARGUMENT" };
      await assert.rejects(train(outputDir, { bestMetric: "eval/loss", evalSteps: undefined }), {
        ...refused,
        message: /bestMetric.*set evalSteps/,
      });
      await assert.rejects(train(outputDir, { bestMetricGoal: "min" }), {
        ...refused,
        message: /bestMetricGoal has no effect without bestMetric/,
      });
      await assert.rejects(train(outputDir, { bestMetric: "eval/los" }), {
        ...refused,
        message: /no metric "eval\/los".*eval\/loss.*it has: loss, /,
      });
    });
  });
});
