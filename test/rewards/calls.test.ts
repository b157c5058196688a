import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type AnswerToScore,
  BatchReward,
  FunctionReward,
  type RewardCallOptions,
  type RewardFunction,
  RlhfError,
} from "../../lib/index.ts";

const answers = (count: number): AnswerToScore[] =>
  Array.from({ length: count }, (_, i) => ({
    row: { prompt: `question ${i}`, metadata: { i } },
    response: `answer ${i}`,
    finishReason: i % 2 === 0 ? "stop" : "length",
  }));

/** What scoring fails with. */
async function failure(
  reward: RewardFunction,
  options: RewardCallOptions = {},
  count = 6,
): Promise<RlhfError> {
  try {
    await new FunctionReward(reward, { backoffMs: 0, ...options }).score(answers(count));
  } catch (error) {
    assert.ok(error instanceof RlhfError);
    return error;
  }
  throw new assert.AssertionError({ message: "scoring did not fail" });
}

const indexOf = (response: string): number => Number(response.split(" ")[1]);
/** Never settles, and keeps nothing alive. */
const hang = (): Promise<number> => new Promise(() => undefined);

describe("rewards from functions", () => {
  it("scores stand in the order of the answers, whatever the order of arrival and the concurrency", async () => {
    const expected = Float32Array.from({ length: 12 }, (_, i) => i / 3);
    for (const concurrency of [1, 5, 100]) {
      const finished: number[] = [];
      const reward = new FunctionReward(
        async (_prompt, response) => {
          const i = indexOf(response);
          await sleep(i % 3 === 0 ? 8 : 0);
          finished.push(i);
          return i / 3;
        },
        { concurrency },
      );
      assert.deepEqual(await reward.score(answers(12)), expected);
      assert.equal(
        finished.every((i, place) => i === place),
        concurrency === 1,
      );
    }
  });

  it("no more calls are under way than concurrency says", async () => {
    let [now, most] = [0, 0];
    const reward = new FunctionReward(
      async () => {
        most = Math.max(most, ++now);
        await sleep(1);
        now--;
        return 0;
      },
      { concurrency: 3 },
    );
    await reward.score(answers(10));
    assert.equal(most, 3);
  });

  it("a function that throws, hangs or returns no finite number is ERR_RLHF_REWARD with the prompt's index", async () => {
    const at3 = (bad: () => number | Promise<number>): RewardFunction => {
      return (_prompt, response) => (indexOf(response) === 3 ? bad() : 1);
    };
    const throwing = (): never => {
      throw new Error("out of order");
    };
    const cases: [RewardFunction, RegExp, RewardCallOptions?][] = [
      [at3(throwing), /^prompt 3: the reward function failed: out of order; response: "answer 3"$/],
      [at3(async () => throwing()), /^prompt 3: .* failed: out of order/],
      [at3(hang), /^prompt 3: .* failed: no answer within 20 ms/, { timeoutMs: 20 }],
      [at3(() => Number.NaN), /^prompt 3: .* must return a finite number, got NaN/],
      [at3(() => 1e39), /must return a finite number, got 1e\+39/],
      [at3(() => "7" as unknown as number), /must return a finite number, got '7'/],
      [at3(() => undefined as unknown as number), /must return a finite number, got undefined/],
    ];
    for (const [reward, message, options] of cases) {
      const error = await failure(reward, options);
      assert.equal(error.code, "ERR_RLHF_REWARD");
      assert.match(error.message, message);
      const { index, prompt, response } = error.details;
      assert.deepEqual([index, prompt, response], [3, "question 3", "answer 3"]);
    }
  });

  it("a call that failed is made again, `retries` times; one that answered NaN is not", async () => {
    let calls = 0;
    const flaky: RewardFunction = (_prompt, response) => {
      if (indexOf(response) !== 2) return 1;
      if (++calls < 3) throw new Error("busy");
      return 2;
    };
    const reward = new FunctionReward(flaky, { retries: 2, backoffMs: 1 });
    assert.deepEqual(await reward.score(answers(4)), Float32Array.of(1, 1, 2, 1));
    calls = 0;
    assert.match((await failure(flaky, { retries: 1 })).message, /busy/);
    assert.equal(calls, 2);
    calls = 0;
    await failure(() => (++calls > 0 ? Number.NaN : 0), { retries: 5 }, 1);
    assert.equal(calls, 1);
    // One that hangs is given up and called again.
    calls = 0;
    const slow = new FunctionReward(() => (++calls === 1 ? hang() : 4), {
      timeoutMs: 20,
      retries: 1,
      backoffMs: 1,
    });
    assert.deepEqual(await slow.score(answers(1)), Float32Array.of(4));
  });

  it("the signal is raised when time is up, another call has failed, or the caller's own is raised", async () => {
    const reasons: string[] = [];
    const waiting: RewardFunction = (_prompt, response, { signal }) => {
      signal.addEventListener("abort", () => reasons.push(response));
      return hang();
    };
    await failure(waiting, { timeoutMs: 10 }, 1);
    assert.deepEqual(reasons, ["answer 0"]);
    reasons.length = 0;
    const failing: RewardFunction = async (prompt, response, context) => {
      if (indexOf(response) < 2) return await waiting(prompt, response, context);
      await sleep(1);
      throw new Error("no");
    };
    assert.equal((await failure(failing, {}, 3)).details.index, 2);
    assert.deepEqual(reasons.toSorted(), ["answer 0", "answer 1"]);
    reasons.length = 0;
    const controller = new AbortController();
    const scoring = new FunctionReward(waiting).score(answers(2), controller.signal);
    setTimeout(() => controller.abort(), 1);
    await assert.rejects(scoring, { code: "ERR_RLHF_ABORTED" });
    assert.deepEqual(reasons, ["answer 0", "answer 1"]);
  });

  it("remembered scores are not asked for again, also those of a batch that failed", async () => {
    const asked: string[] = [];
    let broken = true;
    const score: RewardFunction = (_prompt, response) => {
      asked.push(response);
      if (broken && indexOf(response) === 2) throw new Error("broken");
      return indexOf(response);
    };
    const reward = new FunctionReward(score, { cacheSize: 4, concurrency: 1 });
    const batch = answers(4);
    await assert.rejects(reward.score(batch), { code: "ERR_RLHF_REWARD" });
    broken = false;
    asked.length = 0;
    assert.deepEqual(await reward.score([...batch, ...batch]), Float32Array.of(0, 1, 2, 3, 0, 1, 2, 3));
    assert.deepEqual(asked, ["answer 2", "answer 3"]);
    asked.length = 0;
    const last = answers(5).slice(4);
    assert.deepEqual(await reward.score([...last, ...batch.slice(1)]), Float32Array.of(4, 1, 2, 3));
    assert.deepEqual(asked, ["answer 4"]);
    await reward.score(batch.slice(0, 1));
    assert.deepEqual(asked, ["answer 4", "answer 0"], "the longest unused makes room");
    // Another row with the same texts is another question.
    const other = { ...(last[0] as AnswerToScore), row: { prompt: "question 4", metadata: { i: 5n } } };
    await reward.score([other]);
    assert.equal(asked.length, 3);
  });

  it("batched functions get up to batchSize answers, and give as many finite scores", async () => {
    const sizes: number[] = [];
    const reward = new BatchReward(
      (requests, { signal }) => {
        assert.ok(signal instanceof AbortSignal);
        sizes.push(requests.length);
        return requests.map(({ prompt, response, row, finishReason }) => {
          assert.equal(row.prompt, prompt);
          return indexOf(response) + (finishReason === "stop" ? 0 : 0.5);
        });
      },
      { batchSize: 4, concurrency: 2 },
    );
    assert.deepEqual(await reward.score(answers(6)), Float32Array.of(0, 1.5, 2, 3.5, 4, 5.5));
    assert.deepEqual(sizes, [4, 2]);
    assert.deepEqual(await reward.score([]), new Float32Array(0));
    const few = new BatchReward(() => [1]);
    await assert.rejects(few.score(answers(2)), {
      code: "ERR_RLHF_REWARD",
      message: /^prompt 0 and 1 more of its batch: .* must return 2 scores, got 1/,
    });
    const spoilt = new BatchReward((requests) => requests.map((_, i) => (i === 1 ? Number.NaN : 0)), {
      batchSize: 3,
    });
    await assert.rejects(spoilt.score(answers(3)), { message: /^prompt 1: /, code: "ERR_RLHF_REWARD" });
  });

  it("settings out of range are ERR_RLHF_ARGUMENT", () => {
    const bad: RewardCallOptions[] = [
      { concurrency: 0 },
      { timeoutMs: 0 },
      { timeoutMs: 2 ** 40 },
      { retries: -1 },
      { backoffMs: 0.5 },
      { cacheSize: Number.NaN },
    ];
    for (const options of bad)
      assert.throws(() => new FunctionReward(() => 0, options), { code: "ERR_RLHF_ARGUMENT" });
    assert.throws(() => new FunctionReward(3 as unknown as RewardFunction), { code: "ERR_RLHF_ARGUMENT" });
    assert.ok(new FunctionReward(() => 0, { timeoutMs: null }));
  });
});
