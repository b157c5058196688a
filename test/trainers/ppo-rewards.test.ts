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

  it("answers end at stop strings: the reward gets the text before one, the policy learns from the tokens that spell it", async () => {
    using model = await tinyModel(tokenizer);
    const seen: string[] = [];
    const reward: RewardFunction = (_prompt, response, { finishReason }) => {
      seen.push(`${finishReason} ${response}`);
      return 0;
    };
    const config = { batchSize: 8, maxNewTokens: 20, stop: [], seed: 5, shufflePrompts: false };
    const rollouts = async (stopStrings: readonly string[]) => {
      using trainer = new PPOTrainer({
        model,
        tokenizer,
        reward,
        prompts,
        config: { ...config, stopStrings },
      });
      const sampled = await trainer.generateResponses();
      const { metrics } = await trainer.computeRewardsAndValues(sampled);
      return { sampled, ends: metrics["val/num_eos_tokens"] };
    };
    const whole = await rollouts([]);
    assert.equal(whole.ends, 0);
    const letters = ["a", "e", "o", "t"];
    seen.length = 0;
    const { sampled, ends } = await rollouts(letters);
    assert.ok((ends as number) > 0);
    sampled.forEach(({ tokens, response, finishReason, promptLength }, i) => {
      const full = whole.sampled[i] as (typeof sampled)[number];
      assert.deepEqual(tokens, full.tokens.subarray(0, tokens.length));
      assert.equal(seen[i], `${finishReason} ${response}`);
      assert.ok(letters.every((letter) => !response.includes(letter)));
      const drawn = tokenizer.decodeContinuation(tokens.slice(0, promptLength), tokens.slice(promptLength));
      const ended = letters.some((letter) => drawn.startsWith(`${response}${letter}`));
      assert.equal(ended, finishReason === "stop");
      if (!ended) assert.equal(tokens.length, full.tokens.length);
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
