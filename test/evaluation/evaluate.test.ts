import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { escapeMarkdown } from "../../lib/evaluation/markdown.ts";
import {
  CausalLM,
  computeLogProbs,
  type EvaluateOptions,
  type EvaluationReport,
  evaluate,
  packSequences,
  RewardModel,
  type Tokenizer,
} from "../../lib/index.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";
import { prompts as promptTexts, sftRows, tinyModel, tinyTokenizer } from "../trainers/support.ts";

const prompts = promptTexts.map((prompt, i) => ({
  prompt,
  metadata: { category: i < 2 ? "first" : "second", ...(i === 0 ? { expected: ["E", "a"] } : {}) },
}));

/** How many letters e an answer has. */
function countE(_prompt: string, response: string): number {
  return response.split("e").length - 1;
}

function metricOf(report: EvaluationReport, model: number, name: string): number {
  const estimate = report.models[model]?.metrics[name];
  assert.ok(estimate, name);
  return estimate.mean;
}

describe("evaluate", () => {
  let tokenizer: Tokenizer;
  let first: CausalLM;
  let second: CausalLM;

  before(async () => {
    tokenizer = tinyTokenizer();
    first = await tinyModel(tokenizer, "none");
    second = await CausalLM.create(first.hfConfig, { seed: 8, device: "cpu" });
  });

  after(() => {
    first.dispose();
    second.dispose();
  });

  function options(): EvaluateOptions {
    return {
      models: { sft: { model: first, tokenizer }, ppo: { model: second, tokenizer } },
      prompts,
      numSamples: 3,
      maxNewTokens: 12,
      temperature: 0.8,
      seed: 5,
      reward: countE,
    };
  }

  it("measures what can be computed from the answers by hand", async () => {
    const seen: { prompt: string; response: string }[] = [];
    const report = await evaluate({
      ...options(),
      references: sftRows,
      metrics: {
        starts: (prompt, response, { row }) => {
          seen.push({ prompt, response });
          return row.metadata?.category === "second" ? response.startsWith(" ") : null;
        },
      },
    });
    // The same answers, generated and measured here.
    const inputs = promptTexts.flatMap((text) => new Array<Int32Array>(3).fill(tokenizer.encode(text)));
    const stop = [...new Set([...tokenizer.endTokenIds, ...second.eosTokenIds])];
    const answers = await second.generate(inputs, { maxNewTokens: 12, temperature: 0.8, seed: 5, stop });
    const texts = answers.map(({ tokens }, i) =>
      tokenizer.decodeContinuation(inputs[i] as Int32Array, tokens),
    );
    assert.deepEqual(
      seen.slice(12).map(({ response }) => response),
      texts,
    );
    const rewards = texts.map((text) => countE("", text));
    assert.ok(Math.abs(metricOf(report, 1, "reward") - rewards.reduce((a, b) => a + b) / 12) < 1e-12);
    let kl = 0;
    for (const [i, { tokens }] of answers.entries()) {
      const input = inputs[i] as Int32Array;
      const batch = packSequences([
        { tokens: Int32Array.from([...input, ...tokens]), promptLength: input.length },
      ]);
      const [own, other] = [
        await computeLogProbs(second, batch, { temperature: 0.8 }),
        await computeLogProbs(first, batch, { temperature: 0.8 }),
      ];
      for (const [t, mask] of batch.mask.entries()) kl += mask * ((own[t] as number) - (other[t] as number));
    }
    assert.ok(kl > 0);
    assert.ok(
      Math.abs(metricOf(report, 1, "kl") - kl / 12) < 1e-5,
      `${metricOf(report, 1, "kl")} ${kl / 12}`,
    );
    // The baseline is the reference: a token's log-prob does not depend on the batch, so the KL is 0 to the bit.
    assert.equal(metricOf(report, 0, "kl"), 0);
    const starts = texts.slice(6).filter((text) => text.startsWith(" ")).length / 6;
    assert.ok(Math.abs(metricOf(report, 1, "starts") - starts) < 1e-12);
    assert.deepEqual(Object.keys(report.models[1]?.categories ?? {}), ["first", "second"]);
    assert.equal(report.models[1]?.categories.second?.starts?.answers, 6);
    assert.equal(report.models[1]?.categories.first?.starts, undefined);
    // Only the first prompt's row says what is expected.
    assert.equal(report.models[1]?.metrics.correct?.answers, 3);
    const right = texts.slice(0, 3).filter((text) => /[ea]/i.test(text)).length;
    assert.ok(Math.abs(metricOf(report, 1, "correct") - right / 3) < 1e-12);
    // A model of random weights is about as unsure as a uniform one over its vocabulary.
    const perplexity = report.models[0]?.perplexity ?? 0;
    assert.ok(perplexity > tokenizer.vocabSize / 3 && perplexity < tokenizer.vocabSize * 3, `${perplexity}`);
  });

  it("compares with the baseline pair by pair", async () => {
    const { models, baseline } = await evaluate(options());
    assert.equal(baseline, "sft");
    assert.equal(models[0]?.comparison, null);
    const comparison = models[1]?.comparison;
    const difference = comparison?.differences.reward;
    const expected = (models[1]?.metrics.reward?.mean ?? 0) - (models[0]?.metrics.reward?.mean ?? 0);
    assert.ok(Math.abs((difference?.mean ?? 9) - expected) < 1e-12);
    const win = comparison?.winRates.reward;
    assert.equal((win?.wins ?? 0) + (win?.ties ?? 0) + (win?.losses ?? 0), 12);
    const mirrored = await evaluate({ ...options(), baseline: "ppo" });
    const other = mirrored.models[0]?.comparison?.winRates.reward;
    assert.deepEqual([other?.wins, other?.losses], [win?.losses, win?.wins]);
  });

  it("a model against itself: the same answers, no KL, all ties", async () => {
    const report = await evaluate({
      ...options(),
      models: { a: { model: first, tokenizer }, b: { model: first, tokenizer } },
    });
    const [a, b] = report.models;
    assert.deepEqual(a?.diversity, b?.diversity);
    assert.deepEqual(a?.metrics, b?.metrics);
    // No amount and no difference is a share that might have come out otherwise; whether answers end is one.
    for (const estimate of [
      b?.metrics.kl,
      b?.comparison?.differences.length,
      b?.comparison?.differences.ended,
    ])
      assert.deepEqual([estimate?.mean, estimate?.low, estimate?.high], [0, 0, 0]);
    assert.ok((b?.metrics.ended?.high ?? 0) > (b?.metrics.ended?.mean ?? 1));
    assert.equal(b?.comparison?.winRates.reward?.rate, 0.5);
    assert.equal(b?.comparison?.winRates.reward?.ties, 12);
  });

  it("directories, reward models and files give what models in memory do", async () => {
    await withTemporaryDirectory(async (directory) => {
      const path = (name: string): string => join(directory, name);
      for (const [name, model] of [
        ["sft", first],
        ["ppo", second],
      ] as const) {
        await model.save(path(name));
        await tokenizer.save(path(name));
      }
      using backbone = await CausalLM.create(first.hfConfig, { seed: 9, device: "cpu" });
      using reward = RewardModel.create(backbone);
      await backbone.writeParameter(
        "reward:weight",
        Float32Array.from({ length: backbone.config.hidden }, (_, i) => Math.sin(i)),
      );
      await reward.save(path("reward"));
      const outputDir = path("evaluation");
      const common = { ...options(), reward: undefined, numShown: 2 };
      const fromFiles = await evaluate({
        ...common,
        models: { sft: path("sft"), ppo: path("ppo") },
        heldOutReward: path("reward"),
        outputDir,
      });
      const inMemory = await evaluate({ ...common, heldOutReward: reward });
      assert.deepEqual(fromFiles, inMemory);
      assert.notEqual(metricOf(fromFiles, 0, "heldOutReward"), metricOf(fromFiles, 1, "heldOutReward"));
      const written = JSON.parse(await readFile(join(outputDir, "report.json"), "utf8")) as unknown;
      assert.deepEqual(written, JSON.parse(JSON.stringify(fromFiles)));
      const markdown = await readFile(join(outputDir, "report.md"), "utf8");
      for (const text of [
        "## Means",
        "## Category first",
        "## Win rate against sft",
        "heldOutReward",
        "selfBleu4",
      ])
        assert.ok(markdown.includes(text), text);
      const shown = fromFiles.samples[1]?.answers.ppo?.response ?? "";
      assert.equal(fromFiles.samples.length, 2);
      assert.ok(markdown.includes(escapeMarkdown(shown)), shown);
    });
  });

  it("Markdown shows answers letter by letter", () => {
    assert.equal(escapeMarkdown("a|b\n*c* <d>"), "a\\|b<br>\\*c\\* &lt;d&gt;");
  });

  it("says what does not fit before anything is generated", async () => {
    const cases: [Partial<EvaluateOptions>, RegExp][] = [
      [{ models: {} }, /models is empty/],
      [{ prompts: [] }, /no prompts/],
      [{ baseline: "dpo" }, /baseline "dpo" is none of the models sft, ppo/],
      [{ numSamples: 0 }, /numSamples is 0/],
      [{ judges: ["heldOutReward"] }, /judge "heldOutReward" is no metric/],
      [{ metrics: { kl: () => 0 } }, /metric "kl" has the name of a built-in one/],
      [{ temperature: -1 }, /temperature is -1/],
    ];
    for (const [change, message] of cases)
      await assert.rejects(evaluate({ ...options(), ...change }), { code: "ERR_RLHF_ARGUMENT", message });
  });

  it("metrics that fail are told with the answer, and a raised signal stops", async () => {
    const broken = { ...options(), metrics: { broken: () => Number.NaN } };
    await assert.rejects(evaluate(broken), {
      code: "ERR_RLHF_REWARD",
      message: /metric "broken" must return/,
    });
    const throwing = {
      ...options(),
      metrics: {
        bad: () => {
          throw new Error("no such thing");
        },
      },
    };
    await assert.rejects(evaluate(throwing), {
      code: "ERR_RLHF_REWARD",
      message: /"bad" failed: no such thing/,
    });
    const signal = AbortSignal.abort();
    await assert.rejects(evaluate({ ...options(), signal }), { code: "ERR_RLHF_ABORTED" });
  });

  it("refuses a reference with another vocabulary", async () => {
    using other = await CausalLM.create({ ...first.hfConfig, vocab_size: 400 }, { seed: 1, device: "cpu" });
    await assert.rejects(evaluate({ ...options(), reference: { model: other, tokenizer } }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /the reference has a vocabulary of 400/,
    });
  });
});
