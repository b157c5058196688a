import assert from "node:assert/strict";
import { tokenizeRewardData } from "../../lib/data/tokenize.ts";
import type { TokenizedReward } from "../../lib/data/types.ts";
import {
  type CausalLM,
  type Metrics,
  type RewardConfig,
  RewardModel,
  RewardModelTrainer,
} from "../../lib/index.ts";
import { countTokens, RewardBatch, sequencesOf } from "../../lib/trainers/reward-batch.ts";
import { judgeRewards } from "../../lib/trainers/reward-loss.ts";
import { preferenceRows, tinyModel, tinyTokenizer } from "./support.ts";

/* A pair's two answers share the pass over their prompt; rewards keep their bits, gradients add up in another order. */

const tokenizer = tinyTokenizer();
const ROWS = [
  ...preferenceRows.slice(0, 6),
  { prompt: "Ann wants", response: " tea", score: 1.5 },
  { prompt: "", chosen: "Bob wants tea", rejected: "Bob wants" },
];
const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };

interface Learnt {
  readonly rewards: Float32Array;
  readonly gradients: ReadonlyMap<string, Float32Array>;
}

/** Rewards of chosen, rejected and scored answers, and every gradient of the loss. */
async function learn(
  model: CausalLM,
  head: string,
  examples: readonly TokenizedReward[],
  sharePrompts: boolean,
): Promise<Learnt> {
  const adapter = model.adapters.size > 0 ? "policy" : undefined;
  const batch = new RewardBatch(examples, { sharePrompts });
  await model.zeroGradients();
  using pass = await model.forward(batch.packed, { adapter, head, statistics: false, grad: true });
  const { dValue } = await judgeRewards(model.engine, pass.device.value, batch, {}, 1);
  using gradient = dValue;
  const value = await pass.value();
  await pass.backward({ dValue: gradient });
  const gradients = new Map<string, Float32Array>();
  for (const { name, trainable } of model.parameters())
    if (trainable) gradients.set(name, await model.readGradient(name));
  const rows = [...batch.chosen, ...batch.rejected, ...batch.scored];
  return { rewards: Float32Array.from(rows, (row) => value[row] as number), gradients };
}

function norm(values: Iterable<number>): number {
  return Math.hypot(...values);
}

describe("reward models: prompts that the answers of a pair share", () => {
  const { examples } = tokenizeRewardData(ROWS, tokenizer);

  it("stand in a batch once", () => {
    assert.equal(examples.length, ROWS.length);
    const { packed, pairs, chosen, rejected, scored } = new RewardBatch(examples);
    assert.equal(
      packed.tokens.length,
      examples.reduce((sum, example) => sum + countTokens(example), 0),
    );
    const apart = new RewardBatch(examples, { sharePrompts: false }).packed.tokens.length;
    const prompts = pairs.slice(0, 6).reduce((sum, pair) => sum + pair.chosen.promptLength, 0);
    assert.ok(prompts > 0);
    assert.equal(apart - packed.tokens.length, prompts);
    const lastTokens = sequencesOf([...pairs]).map(({ tokens }) => tokens.at(-1));
    assert.deepEqual(
      Array.from(chosen, (row) => packed.tokens[row]),
      lastTokens.filter((_, i) => i % 2 === 0),
    );
    assert.deepEqual(
      Array.from(rejected, (row) => packed.tokens[row]),
      lastTokens.filter((_, i) => i % 2 === 1),
    );
    assert.equal(scored.length, 1);
  });

  for (const trainable of ["all", "none"] as const)
    it(`${trainable === "all" ? "all weights" : "an adapter"}: the same rewards bit for bit, and the same gradients`, async () => {
      using model = await tinyModel(tokenizer, trainable);
      if (trainable === "none") {
        model.addAdapter("policy", LORA);
        for (const { name } of model.parameters().filter((each) => each.name.includes("lora_B")))
          await model.writeParameter(
            name,
            (await model.readParameter(name)).map((_, i) => Math.sin(i) / 10),
          );
      }
      using reward = RewardModel.create(model, { head: { kind: "mlp" } });
      const weight = model.parameters().filter(({ group }) => group === `head:${reward.head}`);
      for (const { name } of weight)
        await model.writeParameter(
          name,
          (await model.readParameter(name)).map((_, i) => Math.cos(i) / 3),
        );
      const apart = await learn(model, reward.head, examples, false);
      const shared = await learn(model, reward.head, examples, true);
      assert.deepEqual(shared.rewards, apart.rewards);
      let largest = 0;
      for (const [name, expected] of apart.gradients) {
        const actual = shared.gradients.get(name) as Float32Array;
        const difference = norm(actual.map((each, i) => each - (expected[i] as number)));
        assert.ok(difference <= 1e-5 * norm(expected) + 1e-9, `${name}: ${difference} of ${norm(expected)}`);
        largest = Math.max(largest, norm(expected));
      }
      assert.ok(largest > 1e-3);
    });

  it("a trainer computes them once, to the loss of separate passes", async () => {
    using model = await tinyModel(tokenizer);
    const config: RewardConfig = { batchSize: ROWS.length, learningRate: 1e-3, maxSteps: 1 };
    using trainer = new RewardModelTrainer({ model, tokenizer, trainData: ROWS, evalData: ROWS, config });
    const { head } = trainer.rewardModel;
    for (const { name } of model.parameters().filter(({ group }) => group === `head:${head}`))
      await model.writeParameter(
        name,
        (await model.readParameter(name)).map((_, i) => Math.cos(i) / 3),
      );
    const apart = new RewardBatch(trainer.evalExamples, { sharePrompts: false });
    using pass = await model.forward(apart.packed, { head, statistics: false });
    const { stats } = await judgeRewards(model.engine, await pass.value(), apart, {}, 0);
    const metrics: Metrics = await trainer.evaluate();
    const expected = stats.loss / ROWS.length;
    assert.ok(Math.abs((metrics["eval/loss"] as number) - expected) < 1e-6 * Math.abs(expected));
  });
});
