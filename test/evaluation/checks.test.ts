import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type CausalLM,
  type ChecksFunction,
  evaluate,
  RewardModel,
  type Tokenizer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { preferenceRows, prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";

describe("evaluate: preference pairs and checks", () => {
  let tokenizer: Tokenizer;
  let model: CausalLM;

  before(async () => {
    tokenizer = tinyTokenizer();
    model = await tinyModel(tokenizer, "none");
  });

  after(() => model.dispose());

  const options = () => ({ models: { sft: { model, tokenizer } }, prompts, maxNewTokens: 4 });

  it("counts the pairs that a reward orders rightly, by category and prompt, ties as half", async () => {
    const pairs = [
      { prompt: "A?", chosen: "long", rejected: "no" },
      { prompt: "A?", chosen: "a", rejected: "longer" },
      { prompt: "B?", chosen: "ab", rejected: "cd" },
      { prompt: "B?", chosen: "x", rejected: "y", tie: true },
      {
        prompt: [{ role: "user", content: "C?" }],
        chosen: [{ role: "assistant", content: "yes, please" }],
        rejected: [{ role: "assistant", content: "no" }],
      },
    ];
    const seen: string[] = [];
    const report = await evaluate({
      ...options(),
      pairs: pairs.slice(0, 4),
      reward: (_prompt, response) => response.length,
      heldOutReward: (prompt, response) => {
        seen.push(prompt);
        return -response.length;
      },
      category: ({ prompt }) => (prompt === "A?" ? "first" : prompt === "B?" ? "second" : null),
    });
    const { reward, heldOutReward } = report.rewardAccuracy;
    assert.deepEqual(
      [reward?.accuracy.mean, reward?.accuracy.answers, reward?.accuracy.prompts],
      [0.5, 3, 2],
    );
    assert.deepEqual([reward?.categories.first?.mean, reward?.categories.second?.mean], [0.5, 0.5]);
    assert.equal(heldOutReward?.accuracy.mean, 0.5);
    assert.equal(seen.filter((prompt) => prompt === "A?").length, 4);
    const one = await evaluate({
      ...options(),
      pairs: pairs.slice(0, 1),
      reward: (_prompt, response) => response.length,
    });
    assert.equal(one.rewardAccuracy.reward?.accuracy.mean, 1);
    assert.deepEqual(one.rewardAccuracy.reward?.categories, {});
    const none = await evaluate({ ...options(), reward: (_prompt, response) => response.length });
    assert.deepEqual([none.rewardAccuracy, none.checks], [{}, []]);
  });

  it("scores pairs with reward models as training encodes them", async () => {
    using reward = await RewardModel.create(model, { head: { initStd: 0.5, seed: 3 } });
    const { rewardAccuracy } = await evaluate({ ...options(), pairs: preferenceRows, reward });
    const eos = tokenizer.eosTokenId as number;
    let right = 0;
    for (const { prompt, chosen, rejected } of preferenceRows) {
      const encode = (text: string): Int32Array => Int32Array.from([...tokenizer.encode(prompt + text), eos]);
      const [better, worse] = await reward.score([encode(chosen), encode(rejected)]);
      right += Number((better as number) > (worse as number));
    }
    const { mean = Number.NaN, answers } = rewardAccuracy.reward?.accuracy ?? {};
    assert.equal(answers, preferenceRows.length);
    assert.ok(Math.abs(mean - right / preferenceRows.length) < 1e-12, `${mean}`);
  });

  it("runs checks on what was found and what runs recorded, and shows them in every report", async () => {
    await withTemporaryDirectory(async (directory) => {
      const run = join(directory, "metrics.jsonl");
      await writeFile(run, '{"step":1,"loss":0.75}\n{"step":2,"loss":0.5}\n');
      const outputDir = join(directory, "out");
      const checks: ChecksFunction = async ({ models }, context) => {
        assert.equal(context.outputDir, outputDir);
        const loss = context.runs.training?.at(-1)?.metrics.loss ?? null;
        const length = models[0]?.metrics.length?.mean ?? null;
        return [
          { name: "loss", figure: loss, requirement: "at most 0.6", holds: (loss ?? 1) <= 0.6 },
          { name: "length", figure: length, requirement: "over 99", holds: (length ?? 0) > 99 },
          { name: "unknown", figure: null, requirement: "known", holds: false },
        ];
      };
      const report = await evaluate({ ...options(), runs: { training: run }, outputDir, checks });
      assert.deepEqual(
        report.checks.map(({ figure, holds }) => [figure, holds]),
        [
          [0.5, true],
          [report.models[0]?.metrics.length?.mean, false],
          [null, false],
        ],
      );
      const read = (name: string): Promise<string> => readFile(join(outputDir, name), "utf8");
      assert.deepEqual((JSON.parse(await read("report.json")) as typeof report).checks, report.checks);
      assert.match(await read("report.md"), /\| loss \| 0\.5 \| at most 0\.6 \| holds \|/);
      assert.match(await read("report.md"), /\| unknown \| – \| known \| does not hold \|/);
      assert.match(await read("report.html"), /<td>at most 0\.6<\/td><td>holds<\/td>/);
    });
  });

  it("refuses checks that fail or return something else", async () => {
    const cases: [checks: unknown, message: RegExp][] = [
      [
        () => {
          throw new Error("no data");
        },
        /checks failed: no data/,
      ],
      [() => 3, /entry 0 is 3/],
      [
        () => [{ name: "a", figure: 1, requirement: "b", holds: true }, { name: "a" }],
        /entry 1 is \{"name":"a"\}/,
      ],
      [() => [{ name: "a", figure: Number.NaN, requirement: "b", holds: true }], /finite figure or null/],
    ];
    for (const [checks, message] of cases)
      await assert.rejects(evaluate({ ...options(), checks: checks as ChecksFunction }), {
        code: "ERR_RLHF_REWARD",
        message,
      });
  });
});
