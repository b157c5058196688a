import assert from "node:assert/strict";
import { type RewardConfig, RewardModelTrainer, type RewardRow } from "../../lib/index.ts";
import { assertNear } from "../support/near.ts";
import { preferenceRows, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();
const HELD_OUT = preferenceRows.slice(0, 5);
const TRAIN = preferenceRows.slice(5);
const COMMON: RewardConfig = { batchSize: 5, numEpochs: 8, learningRate: 3e-3 };
/** Rewards that differ from the first step on. */
const RANDOM_HEAD = { bias: false, initStd: 0.5, seed: 4 };

async function evaluateRandom(rows: RewardRow[], config: RewardConfig) {
  using model = await tinyModel(tokenizer);
  using trainer = new RewardModelTrainer({
    model,
    tokenizer,
    trainData: rows,
    evalData: rows,
    config: { head: RANDOM_HEAD, microBatchTokens: 40, ...config },
  });
  const examples = trainer.evalExamples;
  const pairs = examples.filter((example) => "chosen" in example);
  const answers = examples.filter((example) => "score" in example);
  const score = (sequences: { tokens: Int32Array }[]): Promise<Float32Array> =>
    trainer.rewardModel.score(sequences.map(({ tokens }) => tokens));
  const chosen = await score(pairs.map((pair) => pair.chosen));
  const rejected = await score(pairs.map((pair) => pair.rejected));
  return {
    metrics: await trainer.evaluate(),
    calibration: trainer.calibration,
    chosen: [...chosen],
    differences: Array.from(chosen, (reward, i) => reward - (rejected[i] as number)),
    rewards: [...chosen, ...rejected, ...(await score(answers))],
    answers: [...(await score(answers))].map((reward, i) => ({ reward, score: answers[i]?.score ?? 0 })),
  };
}

const mean = (values: readonly number[]): number => values.reduce((sum, v) => sum + v, 0) / values.length;
const nll = (z: number): number => Math.log1p(Math.exp(-z));

describe("losses of reward-model training", () => {
  for (const [loss, margin] of [
    ["cross-entropy", undefined],
    ["log-exp", undefined],
    ["hinge", 0.5],
  ] as const) {
    it(`${loss} learns to prefer chosen answers, held-out ones too`, async () => {
      using model = await tinyModel(tokenizer);
      using trainer = new RewardModelTrainer({
        model,
        tokenizer,
        trainData: TRAIN,
        evalData: HELD_OUT,
        config: { ...COMMON, loss, ...(margin === undefined ? {} : { margin }) },
      });
      const before = await trainer.evaluate();
      for await (const _ of trainer.steps());
      const after = await trainer.evaluate();
      assert.equal(after["eval/accuracy"], 1);
      assert.ok((after["eval/loss"] as number) < 0.7 * (before["eval/loss"] as number));
    });
  }

  it("hinge: max(0, margin − Δ), with a margin of 1 beside the rows' own", async () => {
    const rows = preferenceRows.map((row, i) => ({ ...row, margin: i % 2 }));
    const { metrics, differences } = await evaluateRandom(rows, { loss: "hinge" });
    // Held-out data is measured longest first; all margins of a length are met.
    assert.equal(differences.length, rows.length);
    const own = await evaluateRandom(preferenceRows, { loss: "hinge", margin: 0.25 });
    assertNear(
      own.metrics["eval/loss"],
      mean(own.differences.map((d) => Math.max(0, 0.25 - d))),
      1e-5,
      "loss",
    );
    const expected = mean(differences.map((d, i) => Math.max(0, 1 + (i % 2) - d)));
    assertNear(metrics["eval/loss"], expected, 1e-5, "loss");
  });

  it("label smoothing: (1 − ε)·loss of the label + ε·loss of the other", async () => {
    const { metrics, differences } = await evaluateRandom(preferenceRows, { labelSmoothing: 0.2 });
    assertNear(
      metrics["eval/loss"],
      mean(differences.map((d) => 0.8 * nll(d) + 0.2 * nll(-d))),
      1e-5,
      "loss",
    );
  });

  it("ties have the label ½: half of each loss, and no part in accuracy and margin", async () => {
    const rows = preferenceRows.map((row, i) => ({ ...row, tie: i < 8 }));
    const { metrics, differences } = await evaluateRandom(rows, {});
    const decided = differences.slice(8);
    const losses = differences.map((d, i) => (i < 8 ? (nll(d) + nll(-d)) / 2 : nll(d)));
    assertNear(metrics["eval/loss"], mean(losses), 1e-5, "loss");
    assertNear(metrics["eval/accuracy"], mean(decided.map((d) => (d > 0 ? 1 : 0))), 1e-5, "accuracy");
    assertNear(metrics["eval/margin"], mean(decided), 1e-5, "margin");
    const brier = mean(differences.map((d, i) => (1 / (1 + Math.exp(-d)) - (i < 8 ? 0.5 : 1)) ** 2));
    assertNear(metrics["eval/brier"], brier, 1e-5, "brier");
  });

  it("a tie of two equal answers costs log 2 and teaches nothing", async () => {
    const [row] = preferenceRows;
    const tie = {
      prompt: row?.prompt ?? "",
      chosen: row?.chosen ?? "",
      rejected: row?.chosen ?? "",
      tie: true,
    };
    const { metrics } = await evaluateRandom([tie], {});
    assertNear(metrics["eval/loss"], Math.log(2), 1e-5, "loss");
    assert.ok(!("eval/accuracy" in metrics), "nothing was decided");
  });

  it("pairs and scored answers in one data set: the mean over both, squared errors weighted", async () => {
    const scored = preferenceRows.slice(0, 6).map(({ prompt, chosen }, i) => ({
      prompt,
      response: chosen,
      score: i - 2.5,
    }));
    const rows = [...preferenceRows.slice(6), ...scored];
    const scoreWeight = 0.3;
    const { metrics, differences, answers, rewards } = await evaluateRandom(rows, { scoreWeight });
    const errors = answers.map(({ reward, score }) => (reward - score) ** 2);
    assert.equal(errors.length, 6);
    assertNear(metrics["eval/mse"], mean(errors), 1e-5, "mse");
    const total = differences.map(nll).concat(errors.map((error) => scoreWeight * error));
    assertNear(metrics["eval/loss"], mean(total), 1e-5, "loss");
    assertNear(metrics["eval/mean_reward"], mean(rewards), 1e-5, "mean_reward");
    assertNear(metrics["eval/min_reward"], Math.min(...rewards), 1e-5, "min_reward");
    assertNear(metrics["eval/max_reward"], Math.max(...rewards), 1e-5, "max_reward");
  });

  it("regression to scores alone comes near them", async () => {
    const rows = preferenceRows.flatMap(({ prompt, chosen, rejected }) => [
      { prompt, response: chosen, score: 1.5 },
      { prompt, response: rejected, score: -0.5 },
    ]);
    using model = await tinyModel(tokenizer);
    using trainer = new RewardModelTrainer({
      model,
      tokenizer,
      trainData: rows.slice(10),
      evalData: rows.slice(0, 10),
      config: { ...COMMON, batchSize: 10, numEpochs: 25 },
    });
    assertNear(
      (await trainer.evaluate())["eval/mse"],
      (1.5 ** 2 + 0.5 ** 2) / 2,
      1e-5,
      "mse of a head of zeros",
    );
    for await (const _ of trainer.steps());
    const after = await trainer.evaluate();
    assert.ok((after["eval/mse"] as number) < 0.1, `${after["eval/mse"]}`);
    assert.ok(!("eval/accuracy" in after) && !("eval/ece" in after));
  });

  it("margins that a loss leaves out of account are an error, and so are settings out of range", async () => {
    using model = await tinyModel(tokenizer);
    const refuses = (config: RewardConfig, rows: RewardRow[], message: RegExp): void =>
      assert.throws(() => new RewardModelTrainer({ model, tokenizer, trainData: rows, config }), {
        code: "ERR_RLHF_ARGUMENT",
        message,
      });
    const withMargins = preferenceRows.map((row) => ({ ...row, margin: 1 }));
    refuses({ loss: "log-exp" }, withMargins, /"log-exp" knows no margins, but rows of the data have one/);
    refuses({ loss: "cross-entropy", margin: 2 }, preferenceRows, /config\.margin sets one/);
    refuses({ labelSmoothing: 0.5 }, preferenceRows, /labelSmoothing must be a number from 0 to below 0\.5/);
    refuses({ headInit: "xavier" as "zero" }, preferenceRows, /headInit must be one of "zero", "openai"/);
    assert.equal(model.heads.size, 0);
  });

  it("heads begin with the deviation that headInit names", async () => {
    for (const [headInit, scale] of [
      ["zero", 0],
      ["openai", 1 / Math.sqrt(25)],
      ["openrlhf", 1 / 25],
    ] as const) {
      using model = await tinyModel(tokenizer);
      using trainer = new RewardModelTrainer({
        model,
        tokenizer,
        trainData: TRAIN,
        config: { headInit, seed: 3 },
      });
      const weight = await model.readParameter(`${trainer.rewardModel.head}:weight`);
      const deviation = Math.sqrt(mean(Array.from(weight, (value) => value ** 2)));
      assert.ok(Math.abs(deviation - scale) <= 0.35 * scale, `${headInit}: ${deviation}, expected ${scale}`);
    }
  });
});
