import assert from "node:assert/strict";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Finding } from "../../lib/cli/doctor.ts";
import { measureSequences } from "../../lib/cli/measure.ts";
import { encodePrompt, encodeSequence } from "../../lib/data/encode.ts";
import { CausalLM, RewardEnsemble, RewardModel } from "../../lib/index.ts";
import { initModel } from "../../lib/pipeline/init-model.ts";
import type { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { jsonLines, temporaryDirectory, writeText } from "../data/support.ts";
import { assertElementsClose } from "../parity/compare.ts";
import { modelDirectory, ReferenceTensors, readJson } from "../parity/reference.ts";
import { runCommand } from "./support.ts";

function readRows<Row>(file: string): Row[] {
  return readFileSync(file, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);
}

describe("command line: measuring and generating", () => {
  const directory = temporaryDirectory();
  const output = join(directory, "out.jsonl");
  const small = join(directory, "small");
  let tokenizer: Tokenizer;

  before("a model with a tokenizer", async () => {
    const init = { family: "llama" as const, hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 264 };
    const made = await initModel(init, [{ prompt: "the cat ", response: "the cat sat" }], { seed: 3 });
    tokenizer = made.tokenizer;
    await made.model.save(small);
    await tokenizer.save(small);
    made.model.dispose();
  });

  it("logprobs: {tokens} rows give transformers' log-probs in any micro-batch", async () => {
    const expected = new ReferenceTensors("micro-llama-statistics.safetensors");
    const data = writeText(
      directory,
      "tokens.jsonl",
      jsonLines(expected.sequences().map((tokens) => ({ tokens: [...tokens] }))),
    );
    for (const micro of ["4096", "1"]) {
      const words = [
        "--model",
        modelDirectory("micro-llama"),
        "--data-path",
        data,
        "--output",
        output,
        "--micro-batch-tokens",
        micro,
      ];
      const { code, stderr } = await runCommand("logprobs", ...words);
      assert.equal(code, 0, stderr);
      const rows = readRows<{ tokens: number[]; logProbs: number[] }>(output);
      assert.deepEqual(
        rows.map((row) => row.tokens),
        expected.sequences().map((tokens) => [...tokens]),
      );
      assertElementsClose(
        rows.flatMap((row) => row.logProbs),
        expected.floats("t1.logProb"),
        2e-5,
        "log-prob",
      );
    }
  });

  it("logprobs: {prompt, response} rows are tokenised as in training, without an end token", async () => {
    const data = writeText(directory, "texts.jsonl", jsonLines([{ prompt: "the cat", response: " sat" }]));
    const { code, stderr } = await runCommand(
      "logprobs",
      "--model",
      small,
      "--data-path",
      data,
      "--output",
      output,
    );
    assert.equal(code, 0, stderr);
    const [row] = readRows<{ tokens: number[]; logProbs: number[] }>(output);
    assert.deepEqual(row!.tokens, [
      ...encodeSequence(tokenizer, "the cat", " sat", { appendEos: false }).tokens,
    ]);
    assert.equal(row!.logProbs.length, row!.tokens.length);
    assert.equal(row!.logProbs[0], 0);
    assert.ok(row!.logProbs.slice(1).every((value) => value < 0));
  });

  it("score: transformers' scores of a …ForSequenceClassification", async () => {
    const { sequences, scores } =
      readJson<Record<string, { sequences: number[][]; scores: number[] }>>("rewards.json")["reward-llama"]!;
    const data = writeText(directory, "score.jsonl", jsonLines(sequences.map((tokens) => ({ tokens }))));
    const { code, stderr } = await runCommand(
      "score",
      "--model",
      modelDirectory("reward-llama"),
      "--data-path",
      data,
      "--output",
      output,
    );
    assert.equal(code, 0, stderr);
    assertElementsClose(
      readRows<{ reward: number }>(output).map((row) => row.reward),
      scores,
      1e-4,
      "score",
    );
  });

  it("score: pairs, with normalised rewards where the model has statistics, and the spread of an ensemble", async () => {
    const pairs = [
      { prompt: "the cat", chosen: " sat", rejected: " the the" },
      { prompt: "the cat", chosen: " sat", rejected: " sat" },
      { prompt: "the", chosen: " cat sat", rejected: " the cat", tie: true },
    ];
    const data = writeText(directory, "score-pairs.jsonl", jsonLines(pairs));
    const encode = (prompt: string, response: string) => encodeSequence(tokenizer, prompt, response).tokens;
    const sequences = [pairs[0], pairs[2]].flatMap((pair) => [
      encode(pair!.prompt, pair!.chosen),
      encode(pair!.prompt, pair!.rejected),
    ]);
    const target = join(directory, "ensemble");
    const members: RewardModel[] = [];
    for (const seed of [1, 2]) {
      const model = await CausalLM.load(small, { device: "cpu" });
      const member = RewardModel.create(model, { head: { bias: false, initStd: 1, seed } });
      await member.measureStatistics(sequences);
      members.push(member);
    }
    const ensemble = new RewardEnsemble(members, { combine: "min" });
    await ensemble.save(target);
    interface Answer {
      tokens: number[];
      reward: number;
      normalized?: number;
      spread?: number;
    }
    const scoreWith = async (model: string) => {
      const words = ["--model", model, "--data-path", data, "--output", output];
      const { code, stderr } = await runCommand("score", ...words);
      assert.equal(code, 0, stderr);
      assert.match(
        stderr,
        /left out 1 pairs; the first is .*score-pairs\.jsonl:2: has the same answer twice/,
      );
      return readRows<{ chosen: Answer; rejected: Answer; margin: number }>(output);
    };
    await tokenizer.save(target);
    await tokenizer.save(join(target, "member-0"));
    const rows = await scoreWith(join(target, "member-0"));
    const answers = rows.flatMap((row) => [row.chosen, row.rejected]);
    assert.deepEqual(
      answers.map((answer) => answer.tokens),
      sequences.map((tokens) => [...tokens]),
    );
    const raw = await (members[0] as RewardModel).score(sequences);
    const normal = await (members[0] as RewardModel).score(sequences, { normalize: true });
    assertElementsClose(
      answers.map((answer) => answer.reward),
      raw,
      1e-6,
      "reward",
    );
    assertElementsClose(
      answers.map((answer) => answer.normalized ?? 0),
      normal,
      1e-5,
      "normalized",
    );
    for (const row of rows) assert.equal(row.margin, row.chosen.reward - row.rejected.reward);

    const together = (await scoreWith(target)).flatMap((row) => [row.chosen, row.rejected]);
    const { scores, spread } = await ensemble.scoreWithSpread(sequences);
    assertElementsClose(
      together.map((answer) => answer.reward),
      scores,
      1e-6,
      "combined",
    );
    assertElementsClose(
      together.map((answer) => answer.spread ?? 0),
      spread,
      1e-6,
      "spread",
    );
    for (const { model } of members) model.dispose();
  });

  it("score: a model without a reward head is an error, and leaves no output", async () => {
    const data = writeText(directory, "one.jsonl", jsonLines([{ tokens: [1, 2] }]));
    const target = join(directory, "never.jsonl");
    const { code, stderr } = await runCommand(
      "score",
      "--model",
      small,
      "--data-path",
      data,
      "--output",
      target,
    );
    assert.equal(code, 1);
    assert.match(stderr, /it is not a reward model \[ERR_RLHF_MODEL\]/);
    assert.ok(!existsSync(target));
  });

  it("logprobs: bad rows stop at file and line, or are left out when asked", async () => {
    const data = writeText(directory, "bad.jsonl", '{"tokens":[1,2]}\n{"tokens":[1,-2]}\n');
    const words = [
      "logprobs",
      "--model",
      modelDirectory("micro-llama"),
      "--data-path",
      data,
      "--output",
      output,
    ];
    const strict = await runCommand(...words);
    assert.equal(strict.code, 1);
    assert.match(strict.stderr, /bad\.jsonl:2: row "tokens\[1\]" must be a token id, got -2/);
    const lenient = await runCommand(...words, "--on-bad-row", "skip");
    assert.equal(lenient.code, 0, lenient.stderr);
    assert.equal(readRows(output).length, 1);
  });

  it("logprobs: a token outside the vocabulary has its own code", async () => {
    const data = writeText(directory, "range.jsonl", jsonLines([{ tokens: [1, 99999] }]));
    const { code, stderr } = await runCommand(
      "logprobs",
      "--model",
      modelDirectory("micro-llama"),
      "--data-path",
      data,
      "--output",
      output,
    );
    assert.equal(code, 1);
    assert.match(stderr, /\[ERR_RLHF_TOKEN_RANGE\]/);
  });

  it("a sequence that the model cannot take is named by its place in the file, before anything is measured", async () => {
    rmSync(output, { force: true });
    const short = { tokens: [1, 2, 3] };
    const long = { tokens: new Array(2000).fill(1) };
    const files = {
      long: writeText(directory, "long.jsonl", jsonLines([short, short, long])),
      range: writeText(directory, "outside.jsonl", jsonLines([short, { tokens: [1, 99999] }])),
    };
    const cases: [command: string, flag: string, file: string, message: RegExp][] = [
      [
        "logprobs",
        "--data-path",
        files.long,
        /long\.jsonl:3: the sequence has \d+ tokens, more than .*_CONTEXT_LENGTH/,
      ],
      ["logprobs", "--data-path", files.range, /outside\.jsonl:2: token 99999 lies outside .*_TOKEN_RANGE/],
      [
        "score",
        "--data-path",
        files.long,
        /long\.jsonl:3: the sequence has \d+ tokens, more than .*_CONTEXT_LENGTH/,
      ],
    ];
    const rewardModel = join(directory, "reward-for-lengths");
    using backbone = await CausalLM.load(small);
    await RewardModel.create(backbone).save(rewardModel);
    await tokenizer.save(rewardModel);
    for (const [command, flag, file, message] of cases) {
      const model = command === "score" ? rewardModel : small;
      const words = [command, "--model", model, flag, file, "--output", output, "--micro-batch-tokens", "4"];
      const { code, stderr } = await runCommand(...words);
      assert.equal(code, 1);
      assert.match(stderr, message);
      assert.ok(!existsSync(output));
    }
    const prompts = writeText(
      directory,
      "prompts.jsonl",
      jsonLines([{ prompt: "a" }, { prompt: "the cat ".repeat(2000) }]),
    );
    const words = ["generate", "--model", small, "--prompts-path", prompts, "--num-samples", "3"];
    const { code, stderr } = await runCommand(...words);
    assert.equal(code, 1);
    assert.match(stderr, /prompts\.jsonl:2: the prompt has \d+ tokens and leaves no room .*_CONTEXT_LENGTH/);
  });

  it("an interruption ends measuring before the next micro-batch", async () => {
    const controller = new AbortController();
    const three = [1, 2, 3].map((token) => Int32Array.of(token));
    let passes = 0;
    const measured = measureSequences(three, 1, controller.signal, async (sequences) => {
      passes++;
      controller.abort();
      return sequences;
    });
    await assert.rejects(measured.next(), { code: "ERR_RLHF_ABORTED" });
    assert.equal(passes, 1);
  });

  it("generate: texts on stdout, rows in a file, the same for the same seed", async () => {
    const printed = await runCommand(
      "generate",
      "--model",
      small,
      "--prompt",
      "the cat",
      "--max-new-tokens",
      "5",
      "--temperature",
      "0",
    );
    assert.equal(printed.code, 0, printed.stderr);
    assert.match(printed.stdout, /^the cat/);
    const words = [
      "generate",
      "--model",
      small,
      "--prompt",
      "the cat",
      "the",
      "--num-samples",
      "3",
      "--max-new-tokens",
      "6",
      "--seed",
      "4",
    ];
    const rows: unknown[] = [];
    for (let time = 0; time < 2; time++) {
      const { code, stderr } = await runCommand(...words, "--output", output);
      assert.equal(code, 0, stderr);
      rows.push(readRows(output));
    }
    const [first, second] = rows as {
      prompt: string;
      response: string;
      tokens: number[];
      finishReason: string;
    }[][];
    assert.deepEqual(first, second);
    assert.deepEqual(
      first!.map((row) => row.prompt),
      ["the cat", "the cat", "the cat", "the", "the", "the"],
    );
    assert.ok(new Set(first!.map((row) => row.tokens.join())).size > 1, "samples differ");
    for (const row of first!) {
      assert.ok(row.tokens.length <= 6);
      const prompt = encodePrompt(tokenizer, row.prompt);
      assert.equal(row.response, tokenizer.decodeContinuation(prompt, Int32Array.from(row.tokens)));
      assert.equal(row.finishReason, row.tokens.at(-1) === tokenizer.eosTokenId ? "stop" : "length");
    }
    const letter = /[!-~]/.exec(first!.map((row) => row.response).join())?.[0] ?? "";
    const { code, stderr } = await runCommand(...words, "--stop-strings", letter, "--output", output);
    assert.equal(code, 0, stderr);
    const cut = readRows(output) as { response: string; tokens: number[]; finishReason: string }[];
    cut.forEach((row, i) => {
      const { response: whole, finishReason } = first![i]!;
      const [before = ""] = whole.split(letter);
      assert.equal(row.response, before);
      assert.equal(row.finishReason, before === whole ? finishReason : "stop");
    });
    assert.ok(cut.some((row, i) => row.response !== first![i]!.response));
  });

  it("doctor: everything required is in order, as text and as JSON", async () => {
    const text = await runCommand("doctor");
    assert.equal(text.code, 0, text.stdout + text.stderr);
    assert.match(text.stdout, /^ok {2}parity .*differ from a float64 reference by at most/m);
    const json = await runCommand("doctor", "--json");
    const findings = JSON.parse(json.stdout) as Finding[];
    assert.deepEqual(
      findings.map((finding) => finding.subject),
      ["versions", "cpu", "binary", "engine", "cuda", "parity"],
    );
    assert.ok(findings.every((finding) => finding.ok || !finding.required));
    assert.ok(
      findings.every((finding) => finding.ok || finding.subject === "cuda"),
      "only CUDA may be absent",
    );
  });
});
