import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import {
  BatchReward,
  FunctionReward,
  HttpReward,
  PPOTrainer,
  type RewardFunction,
  type RewardSource,
} from "../../lib/index.ts";
import { byLength, withService } from "../rewards/service.ts";
import { assertSameWeights, prompts, tinyModel, tinyTokenizer } from "./support.ts";

const tokenizer = tinyTokenizer();

/** A policy after two iterations with a reward. */
async function trained(reward: RewardSource) {
  const model = await tinyModel(tokenizer);
  const config = {
    batchSize: 6,
    maxNewTokens: 7,
    learningRate: 3e-3,
    numPpoEpochs: 1,
    numIterations: 2,
    seed: 5,
  };
  using trainer = new PPOTrainer({ model, tokenizer, reward, prompts, config });
  for await (const _ of trainer.steps());
  return model;
}

const length: RewardFunction = (_prompt, response) => response.length;

describe("PPO with called rewards", () => {
  it("functions, batches and a service in any order of arrival train the same weights", async () => {
    using expected = await trained(length);
    let calls = 0;
    const late = async (...given: Parameters<RewardFunction>): Promise<number> => {
      // The earlier a call, the later its answer.
      await sleep(12 - 2 * (calls++ % 6));
      return await length(...given);
    };
    const batch = new BatchReward(
      async (answers) => {
        await sleep(calls++ % 2 === 0 ? 8 : 0);
        return answers.map(({ response }) => response.length);
      },
      { batchSize: 2 },
    );
    for (const reward of [late, new FunctionReward(late, { concurrency: 2, cacheSize: 100 }), batch]) {
      using model = await trained(reward);
      await assertSameWeights(model, expected);
    }
    await withService(byLength, async (url) => {
      using model = await trained(new HttpReward(url, { batchSize: 4 }));
      await assertSameWeights(model, expected);
    });
  });

  it("a reward that hangs ends the step with ERR_RLHF_REWARD and the number of the prompt", async () => {
    let calls = 0;
    const hangs = new FunctionReward(() => (++calls === 3 ? new Promise(() => undefined) : 0), {
      timeoutMs: 30,
    });
    await assert.rejects(trained(hangs), (error: Error & { code: string; details: { index: number } }) => {
      assert.equal(error.code, "ERR_RLHF_REWARD");
      assert.match(error.message, /no answer within 30 ms/);
      assert.equal(error.details.index, 2);
      return true;
    });
  });
});
