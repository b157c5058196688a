import assert from "node:assert/strict";
import { type AnswerToScore, HttpReward, type HttpRewardOptions } from "../../lib/index.ts";
import { type Asked, byLength, type Handler, reply, withService } from "./service.ts";

const answers: AnswerToScore[] = ["a", "bb", "ccc", "dddd", "eeeee"].map((response, i) => ({
  row: { prompt: `p${i}`, metadata: { big: 2n ** 60n } },
  response,
  finishReason: "stop",
}));
const LENGTHS = Float32Array.of(1, 2, 3, 4, 5);

const quick: HttpRewardOptions = { backoffMs: 1, batchSize: 2 };

describe("rewards from a service", () => {
  it("answers are posted in batches as JSON, with headers from the environment", async () => {
    const seen: Asked["answers"][number][][] = [];
    const handle: Handler = (asked, response, request) => {
      assert.equal(request.method, "POST");
      assert.equal(request.url, "/score");
      assert.equal(request.headers["content-type"], "application/json");
      assert.equal(request.headers.authorization, "Bearer s3cret");
      seen.push([...asked.answers]);
      // Earlier batches are answered later.
      setTimeout(() => byLength(asked, response, request), seen.length === 1 ? 15 : 0);
    };
    process.env.RLHF_TEST_REWARD_KEY = "s3cret";
    try {
      await withService(handle, async (url) => {
        // biome-ignore lint/suspicious/noTemplateCurlyInString: HttpReward reads the variable
        const headers = { Authorization: "Bearer ${RLHF_TEST_REWARD_KEY}" };
        const reward = new HttpReward(url, { ...quick, headers });
        assert.deepEqual(await reward.score(answers), LENGTHS);
      });
    } finally {
      delete process.env.RLHF_TEST_REWARD_KEY;
    }
    assert.deepEqual(seen.map((batch) => batch.length).toSorted(), [1, 2, 2]);
    const first = seen.flat().find(({ prompt }) => prompt === "p1");
    const metadata = { big: String(2n ** 60n) };
    assert.deepEqual(first, { prompt: "p1", response: "bb", finishReason: "stop", metadata });
  });

  it("429, 5xx, broken connections and time-outs are tried again", async () => {
    const faults: Handler[] = [
      (_asked, response) => reply(response, 429, "slow down", { "retry-after": "0" }),
      (_asked, response) => reply(response, 503, "starting"),
      (_asked, response) => response.destroy(),
      () => undefined,
    ];
    for (const fault of faults) {
      let requests = 0;
      const handle: Handler = (...given) => (++requests === 1 ? fault : byLength)(...given);
      await withService(handle, async (url) => {
        const reward = new HttpReward(url, { ...quick, batchSize: 5, timeoutMs: 300 });
        assert.deepEqual(await reward.score(answers), LENGTHS);
      });
      assert.equal(requests, 2);
    }
  });

  it("what stays wrong is ERR_RLHF_REWARD with the index, the status and no secret", async () => {
    const cases: [Handler, RegExp, requests: number][] = [
      [(_asked, response) => reply(response, 500, "out of memory"), /status 500: out of memory/, 3],
      [(_asked, response) => reply(response, 401, "who are you"), /status 401: who are you/, 1],
      [(_asked, response) => reply(response, 302, "", { location: "/other" }), /status 302/, 1],
      [(_asked, response) => reply(response, 200, "fine"), /expected JSON .* got fine/, 1],
      [(_asked, response) => reply(response, 200, '{"rewards":[1]}'), /must return 5 scores, got 1/, 1],
      [(_asked, response) => reply(response, 200, '{"rewards":[1,2,null,4,5]}'), /^prompt 2: .* got null/, 1],
      [() => undefined, /no answer within 30 ms/, 3],
      [(_asked, response) => response.destroy(), /no connection/, 3],
    ];
    for (const [fault, message, expected] of cases) {
      let requests = 0;
      const handle: Handler = (...given) => {
        requests++;
        fault(...given);
      };
      await withService(handle, async (url) => {
        const options = { backoffMs: 1, retries: 2, timeoutMs: message.source.includes("30 ms") ? 30 : 5000 };
        const reward = new HttpReward(`${url}?key=s3cret`, options);
        await assert.rejects(reward.score(answers), (error: Error & { code: string }) => {
          assert.equal(error.code, "ERR_RLHF_REWARD");
          assert.match(error.message, message);
          assert.doesNotMatch(error.message, /s3cret/);
          return true;
        });
      });
      assert.equal(requests, expected, message.source);
    }
  });

  it("malformed addresses, headers and unset variables are ERR_RLHF_ARGUMENT", () => {
    const bad: [string, HttpRewardOptions, RegExp][] = [
      ["localhost:80", {}, /begins with http/],
      ["file:///etc/hosts", {}, /begins with http/],
      ["http://name:word@localhost", {}, /holds a name or password/],
      [
        "http://localhost",
        // biome-ignore lint/suspicious/noTemplateCurlyInString: HttpReward reads the variable
        { headers: { "x-key": "${RLHF_TEST_NOT_SET}" } },
        /RLHF_TEST_NOT_SET, which is not set/,
      ],
      ["http://localhost", { headers: { "x key": "1" } }, /"x key"/],
      ["http://localhost", { batchSize: 0 }, /batchSize is 0/],
    ];
    for (const [url, options, message] of bad)
      assert.throws(() => new HttpReward(url, options), { code: "ERR_RLHF_ARGUMENT", message });
  });
});
