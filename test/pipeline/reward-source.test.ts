import assert from "node:assert/strict";
import type { AnswerToScore, CausalLM } from "../../lib/index.ts";
import { closeReward, openReward, type RewardSourceSettings } from "../../lib/pipeline/reward-source.ts";
import { stageSchemas } from "../../lib/pipeline/schema.ts";
import { scoreAnswers } from "../../lib/rewards/reward.ts";
import { temporaryDirectory, writeText } from "../data/support.ts";
import { byLength, type Handler, withService } from "../rewards/service.ts";

const directory = temporaryDirectory();
const index = new URL("../../lib/index.ts", import.meta.url).href;
const answers: AnswerToScore[] = ["a", "bb", "ccc"].map((response) => ({
  row: { prompt: "p" },
  response,
  finishReason: "stop",
}));

async function scores(settings: RewardSourceSettings): Promise<number[]> {
  const reward = await openReward(settings, {} as CausalLM);
  try {
    const scored = answers.map((answer) => ({ ...answer, tokens: new Int32Array(1) }));
    return [...(await scoreAnswers(reward, scored, { microBatchTokens: 10, normalize: true })).scores];
  } finally {
    closeReward(reward);
  }
}

describe("rewards of a PPO stage", () => {
  const stage = { model_path: "m", prompts_path: "p", output_dir: "o" };

  it("come from a service, with the keys that say how it is called", async () => {
    const sizes: number[] = [];
    const handle: Handler = (asked, response, request) => {
      assert.equal(request.headers["x-key"], "1");
      sizes.push(asked.answers.length);
      byLength(asked, response, request);
    };
    await withService(handle, async (url) => {
      const settings = stageSchemas.ppo.parse({
        ...stage,
        reward_url: url,
        reward_headers: { "x-key": "1" },
        reward_batch_size: 2,
        reward_concurrency: 1,
        reward_timeout: 10,
      });
      assert.deepEqual(await scores(settings), [1, 2, 3]);
    });
    assert.deepEqual(sizes, [2, 1]);
  });

  it("come from a module with a function, or with one that says how it is called", async () => {
    const plain = writeText(
      directory,
      "flaky.mjs",
      "let calls = 0;\nexport default (prompt, response) => { if (++calls === 2) throw new Error('busy'); return response.length; };\n",
    );
    await assert.rejects(scores({ reward_module: plain }), {
      code: "ERR_RLHF_REWARD",
      message: /prompt 1: .*busy/,
    });
    const again = writeText(
      directory,
      "flaky-again.mjs",
      "let calls = 0;\nexport default (prompt, response) => { if (++calls === 2) throw new Error('busy'); return response.length; };\n",
    );
    assert.deepEqual(await scores({ reward_module: again, reward_retries: 1 }), [1, 2, 3]);
    const batched = writeText(
      directory,
      "batched.mjs",
      `import { BatchReward } from ${JSON.stringify(index)};\nexport default new BatchReward((answers) => answers.map((answer) => -answer.response.length));\n`,
    );
    assert.deepEqual(await scores({ reward_module: batched }), [-1, -2, -3]);
    await assert.rejects(scores({ reward_module: batched, reward_cache: 5 }), {
      code: "ERR_RLHF_CONFIG",
      message: /batched\.mjs: .* take reward_concurrency/,
    });
  });

  it("keys without a use are refused", () => {
    const cases: [Record<string, unknown>, RegExp][] = [
      [{ reward_url: "http://x", reward_module: "y" }, /reward_module and reward_url exclude each other/],
      [{ reward_url: "x" }, /begins with http/],
      [{ reward_module: "y", reward_batch_size: 2 }, /has no effect without reward_url/],
      [{ reward_model_path: "y", reward_timeout: 2 }, /has no effect without reward_module or reward_url/],
      [{ reward_url: "http://x", reward_timeout: 0 }, /reward_timeout/],
    ];
    for (const [keys, message] of cases)
      assert.match(String(stageSchemas.ppo.safeParse({ ...stage, ...keys }).error?.message), message);
    assert.ok(stageSchemas.ppo.safeParse({ ...stage, reward_url: "http://x", reward_timeout: null }).success);
  });
});
