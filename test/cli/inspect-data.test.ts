import assert from "node:assert/strict";
import { join } from "node:path";
import fc from "fast-check";
import { describeInspection } from "../../lib/cli/inspection-text.ts";
import { lengthHistogram } from "../../lib/data/inspect.ts";
import { CausalLM, trainTokenizer } from "../../lib/index.ts";
import { inspectStage, type StageInspection } from "../../lib/pipeline/inspect-stage.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { TINY_LLAMA } from "../support/tiny.ts";
import { runCommand, runHere } from "./support.ts";

describe("inspect-data", () => {
  const directory = temporaryDirectory();
  const model = join(directory, "model");
  const tokenizer = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 262 }).withTokens(
    [],
    {
      chatTemplate: "chatml",
    },
  ).tokenizer;
  let data: string;

  before(async () => {
    using made = await CausalLM.create({ ...TINY_LLAMA, vocab_size: 264 }, { device: "cpu" });
    await made.save(model);
    await tokenizer.save(model);
    data = writeText(
      directory,
      "rows.jsonl",
      [
        '{"prompt":"the cat","response":" sat"}',
        '{"prompt":"the cat","response":" sat"}',
        "{broken",
        '{"prompt":"the mat","response":" sat on the mat, the cat sat on the mat"}',
        `{"prompt":"${"x".repeat(80)}","response":" y"}`,
        '{"prompt":"on\\u001b[31m","response":" the mat"}',
      ].join("\n"),
    );
  });

  it("shows what is learnt, lengths, and what was left out with file and line", async () => {
    const words = ["inspect-data", "sft", "--model-path", model, "--data-path", data, "--eval-fraction", "0"];
    const { code, stdout, stderr } = await runCommand(...words, "--duplicates", "drop", "--rows", "9");
    assert.equal(code, 0, stderr);
    for (const line of [
      /^data: 4 of 6 rows, 1 bad .*, 1 left out .* \(prompt-response\)$/m,
      /^ {2}\S*rows\.jsonl:3: bad: is not JSON/m,
      /^ {2}bad rows stop training unless on_bad_row is "skip"$/m,
      /^ {2}\S*rows\.jsonl:2: dropped: says the same as a row before$/m,
      /^split: 4 rows to train on, 0 held out$/m,
      /^training on 3 examples of \d+ tokens, 1 left out as too long; \d+ learnt \(\d+ %\)$/m,
      /^ {2}\S*rows\.jsonl:5: left out: has a prompt that fills maxLength 64: nothing to learn is left$/m,
      /^lengths of 3 sequences: \d+ to \d+, median \d+, mean [\d.]+; max_length 64$/m,
      /^ {2} ?\d+–\d+ +█+ \d+$/m,
      /^a step takes 1\.0 forward passes, each \d+ % full$/m,
      /^example 1 \(\S*rows\.jsonl:1\)$/m,
      /^ {4}the cat⟦ sat<\|im_end\|>⟧$/m,
      // A terminal is not steered by what the data holds.
      /^ {4}on\\u001b\[31m⟦ the mat<\|im_end\|>⟧$/m,
    ])
      assert.match(stdout, line);
    const inspection = await inspectStage("sft", { model_path: model, data_path: data, eval_fraction: 0 });
    const coloured = describeInspection(inspection, { color: true, tokens: true });
    assert.ok(coloured.includes("\u001b[2mthe cat\u001b[0m\u001b[32m sat<|im_end|>\u001b[0m"), coloured);
    assert.match(coloured, /^ +\d+ +263 learnt "<\|im_end\|>"$/m);
  });

  it("shows pairs, conversations and prompts, as JSON for programs", async () => {
    const user = { role: "user", content: "the cat?" };
    const pairs = writeText(
      directory,
      "pairs.jsonl",
      jsonLines([
        {
          prompt: [user],
          chosen: [{ role: "assistant", content: "sat" }],
          rejected: [{ role: "assistant", content: "the mat" }],
        },
        {
          prompt: [user],
          chosen: [{ role: "assistant", content: "sat" }],
          rejected: [{ role: "assistant", content: "sat" }],
        },
        { prompt: "the cat", response: " sat", score: 2 },
      ]),
    );
    const inspection = await inspectStage("reward", {
      model_path: model,
      data_path: pairs,
      eval_fraction: 0,
    });
    assert.deepEqual([inspection.trainRows, inspection.data.preferences?.identical], [2, 1]);
    assert.equal(inspection.training.examples[1]!.sequences.length, 1, "an answer with a score stands alone");
    const [chosen, rejected] = inspection.training.examples[0]!.sequences;
    assert.deepEqual(chosen!.parts, [
      { text: "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n", learnt: false },
      { text: "sat<|im_end|>", learnt: true },
    ]);
    assert.deepEqual([rejected!.role, rejected!.parts[1]!.text], ["rejected", "the mat<|im_end|>"]);
    assert.equal(rejected!.tokens.length, rejected!.lossMask.length);

    const config = writeText(
      directory,
      "ppo.yaml",
      `model_path: model\nprompts_path: prompts.jsonl\nmax_new_tokens: 8\nmax_length: 6\n`,
    );
    writeText(
      directory,
      "prompts.jsonl",
      jsonLines(["the cat", { prompt: "the cat sat on the mat, the cat sat on" }]),
    );
    const ppo = await runCommand("inspect-data", "ppo", "--config", config);
    assert.equal(ppo.code, 0, ppo.stderr);
    assert.match(ppo.stdout, /prompts\.jsonl:2: left out: is \d+ tokens long, over maxLength 6/);
    assert.match(ppo.stdout, /prompt: 3 tokens, 3 of the prompt, 0 learnt/);
  });

  it("shows the data of a model that is to be made, with the tokenizer it will get", async () => {
    const init =
      "{family: llama, hidden_size: 8, num_layers: 1, num_heads: 2, vocab_size: 270, max_position_embeddings: 32}";
    const { code, stdout, stderr } = await runCommand(
      ...["inspect-data", "sft", "--init", init, "--data-path", data, "--json", "--random", "--rows", "1"],
    );
    assert.equal(code, 0, stderr);
    assert.equal((JSON.parse(stdout) as StageInspection).maxLength, 32);
  });

  it("says what is missing or wrong", async () => {
    const cases: [string[], RegExp, number][] = [
      [["inspect-data", "sft", "--data-path", data], /needs --model-path/, 2],
      [["inspect-data", "reward", "--model-path", model], /needs --data-path/, 2],
      [["inspect-data", "sft", "--format", "txt"], /--format/, 2],
      [
        ["inspect-data", "sft", "--model-path", join(directory, "no"), "--data-path", data],
        /\[ERR_RLHF_MODEL\]/,
        1,
      ],
      [["inspect-data", "sfft"], /unknown command 'sfft'/, 2],
    ];
    for (const [words, message, expected] of cases) {
      const { code, stderr } = await runHere(...words);
      assert.match(stderr, message);
      assert.equal(code, expected, words.join(" "));
    }
  });

  it("counts every length in one bin", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 50 }), (lengths) => {
        const bins = lengthHistogram(lengths);
        assert.ok(bins.length <= 12);
        for (const { from, to, count } of bins)
          assert.equal(count, lengths.filter((length) => length >= from && length <= to).length);
        assert.equal(
          bins.reduce((sum, bin) => sum + bin.count, 0),
          lengths.length,
        );
      }),
    );
  });
});
