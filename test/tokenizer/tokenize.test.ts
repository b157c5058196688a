import assert from "node:assert/strict";
import { encodePrompt, type PromptEncoder } from "../../lib/data/encode.ts";
import {
  tokenizePreferences,
  tokenizePrompts,
  tokenizeSft,
  tokenizeUnpaired,
} from "../../lib/data/tokenize.ts";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { trainTokenizer } from "../../lib/tokenizer/train.ts";
import { itWithShared, sharedFile } from "../data/support.ts";

const EOS = 0;
const tokenizer = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 280 });

const START = 7;

/** The tokenizer with a token before every text. */
function encoderWithStart(): PromptEncoder {
  return {
    eosTokenId: EOS,
    encode: (text, options) =>
      Int32Array.from([...(options?.addSpecialTokens === false ? [] : [START]), ...tokenizer.encode(text)]),
    applyChatTemplate: (messages, options) => tokenizer.applyChatTemplate(messages, options),
    renderChat: (messages) => tokenizer.renderChat(messages),
  };
}

describe("tokenising for training", () => {
  it("a prompt and a response: the loss is on the response and its end", () => {
    const { examples, report } = tokenizeSft([{ prompt: "the cat", response: " sat" }], tokenizer);
    const prompt = tokenizer.encode("the cat");
    const response = tokenizer.encode(" sat");
    const [example] = examples;
    assert.deepEqual([...example!.tokens], [...prompt, ...response, EOS]);
    assert.equal(example!.promptLength, prompt.length);
    assert.deepEqual([...example!.lossMask], [...prompt.map(() => 0), ...response.map(() => 1), 1]);
    assert.deepEqual(report, {
      examples: 1,
      tokens: example!.tokens.length,
      truncated: 0,
      dropped: 0,
      firstDropped: [],
      boundaryMerges: 0,
    });
  });

  it("text alone: the loss is on all but the first token, which nothing predicts", () => {
    const [example] = tokenizeSft([{ prompt: "", response: "the cat" }], tokenizer).examples;
    assert.equal(example!.promptLength, 0);
    assert.deepEqual([...example!.lossMask], [0, ...new Array<number>(example!.tokens.length - 1).fill(1)]);
  });

  it("lossOn all includes the prompt; appendEos false ends with the text", () => {
    const [example] = tokenizeSft([{ prompt: "the cat", response: " sat" }], tokenizer, {
      lossOn: "all",
      appendEos: false,
    }).examples;
    assert.equal(example!.tokens.at(-1), tokenizer.encode(" sat").at(-1));
    assert.ok(example!.lossMask.subarray(1).every((weight) => weight === 1));
  });

  it("a boundary inside a merged token is tokenised apart and counted, so that the prompt is what generation sees", () => {
    const { examples, report } = tokenizeSft([{ prompt: "the c", response: "at" }], tokenizer);
    const prompt = encodePrompt(tokenizer, "the c");
    assert.deepEqual(examples[0]!.tokens.slice(0, prompt.length), prompt);
    assert.equal(tokenizer.decode(examples[0]!.tokens), "the cat");
    assert.equal(report.boundaryMerges, 1);
  });

  it("long examples are cut or dropped; one whose response is cut off altogether is dropped", () => {
    const rows = [
      { prompt: "the cat", response: " sat on the mat" },
      { prompt: "the cat sat on the mat, the cat sat", response: " x" },
      { prompt: "the", response: " cat" },
    ];
    const cut = tokenizeSft(rows, tokenizer, { maxLength: 4 });
    assert.deepEqual(
      cut.examples.map((example) => [example.tokens.length, example.lossMask.length]),
      [
        [4, 4],
        [3, 3],
      ],
    );
    assert.ok(!cut.examples[0]!.tokens.includes(EOS), "a cut example does not claim to end");
    assert.deepEqual([cut.report.truncated, cut.report.dropped], [1, 1]);
    const dropped = tokenizeSft(rows, tokenizer, { maxLength: 4, overlong: "drop" });
    assert.deepEqual([dropped.examples.length, dropped.report.truncated, dropped.report.dropped], [1, 0, 2]);
  });

  it("pairs share the prompt; a pair with one long answer is dropped whole", () => {
    const rows = [
      { prompt: "the cat", chosen: " sat", rejected: " sat on", margin: 0.5 },
      { prompt: "the cat", chosen: " sat", rejected: " sat on the mat on the mat on the mat" },
    ];
    const { examples, report } = tokenizePreferences(rows, tokenizer, { maxLength: 8 });
    assert.equal(examples.length, 1);
    const { chosen, rejected, margin } = examples[0]!;
    assert.deepEqual([chosen.promptLength, rejected.promptLength, margin], [2, 2, 0.5]);
    assert.deepEqual([chosen.tokens.at(-1), rejected.tokens.at(-1)], [EOS, EOS]);
    assert.equal(report.dropped, 1);
  });

  it("truncate-prompt cuts the beginning of a prompt off, by as much for both answers, and keeps answers whole", () => {
    const prompt = "the mat, the cat sat on the mat, the cat";
    const rows = [
      { prompt, chosen: " sat on", rejected: " sat" },
      { prompt: "the", chosen: prompt + prompt, rejected: " sat" },
      { prompt: "the cat", chosen: " sat", rejected: " on" },
    ];
    const whole = tokenizePreferences(rows, tokenizer).examples[0]!;
    const maxLength = whole.chosen.tokens.length - 3;
    const { examples, report } = tokenizePreferences(rows, tokenizer, {
      maxLength,
      overlong: "truncate-prompt",
    });
    const [cut] = examples;
    assert.deepEqual([...cut!.chosen.tokens], [...whole.chosen.tokens.slice(3)]);
    assert.deepEqual([...cut!.rejected.tokens], [...whole.rejected.tokens.slice(3)]);
    assert.equal(cut!.chosen.promptLength, whole.chosen.promptLength - 3);
    assert.deepEqual([...cut!.chosen.lossMask], [...whole.chosen.lossMask.slice(3)]);
    assert.deepEqual([examples.length, report.truncated, report.dropped], [2, 1, 1], "too long an answer");

    // What the tokenizer puts before every text stays.
    const withStart = encoderWithStart();
    const [kept] = tokenizePreferences(rows.slice(0, 1), withStart, {
      maxLength: maxLength + 1,
      overlong: "truncate-prompt",
    }).examples;
    assert.deepEqual([...kept!.chosen.tokens], [START, ...whole.chosen.tokens.slice(3)]);
  });

  it("pairs may be cut instead; those whose prompt fills the limit or whose answers are equal after the cut are left out", () => {
    const rows = [
      { prompt: "the cat", chosen: " sat sat", rejected: " cat sat cat sat cat sat" },
      { prompt: "the cat sat on the mat", chosen: " sat", rejected: " on" },
      { prompt: "the cat", chosen: " sat on the mat", rejected: " sat on the cat" },
      { prompt: "the", chosen: " cat", rejected: " cat" },
    ];
    const { examples, report } = tokenizePreferences(rows, tokenizer, { maxLength: 6, overlong: "truncate" });
    assert.equal(examples.length, 1);
    const { chosen, rejected } = examples[0]!;
    assert.deepEqual([chosen.tokens.length, rejected.tokens.length, rejected.lossMask.length], [5, 6, 6]);
    assert.deepEqual([chosen.tokens.at(-1) === EOS, rejected.tokens.includes(EOS)], [true, false]);
    assert.deepEqual([report.truncated, report.dropped, report.identical], [1, 1, 2]);
    assert.throws(() => tokenizePreferences(rows.slice(3), tokenizer), {
      code: "ERR_RLHF_DATA",
      message: /in 1 the chosen answer is the rejected one too/,
    });
  });

  it("labelled answers are dropped or cut at the limit, and keep their label", () => {
    const rows = [
      { prompt: "the cat", completion: " sat", label: true },
      { prompt: "the cat", completion: " cat sat cat sat cat sat", label: false },
      { prompt: "the cat sat on the mat", completion: " sat", label: true },
    ];
    const dropped = tokenizeUnpaired(rows, tokenizer, { maxLength: 6 });
    assert.deepEqual([dropped.examples.length, dropped.report.dropped], [1, 2]);
    const { examples, report } = tokenizeUnpaired(rows, tokenizer, { maxLength: 6, overlong: "truncate" });
    assert.deepEqual(
      examples.map(({ tokens, lossMask, label }) => [tokens.length, lossMask.length, label]),
      [
        [4, 4, true],
        [6, 6, false],
      ],
    );
    assert.ok(!examples[1]!.tokens.includes(EOS), "a cut answer does not claim to end");
    assert.deepEqual([report.truncated, report.dropped], [1, 1]);
  });

  it("prompts over the limit are dropped and counted", () => {
    const { examples, report } = tokenizePrompts(
      ["the cat", { prompt: "the cat sat on the mat" }],
      tokenizer,
      { maxLength: 3 },
    );
    assert.deepEqual(
      examples.map((example) => example.row.prompt),
      ["the cat"],
    );
    assert.equal(report.dropped, 1);
  });

  it("nothing left, and limits that make no sense, are errors", () => {
    const rows = [{ prompt: "the cat sat on the mat", response: " x" }];
    assert.throws(() => tokenizeSft(rows, tokenizer, { maxLength: 2 }), {
      code: "ERR_RLHF_DATA",
      message: /no example is left/,
    });
    assert.throws(() => tokenizePrompts(["the cat sat on the mat"], tokenizer, { maxLength: 2 }), {
      code: "ERR_RLHF_DATA",
    });
    assert.throws(() => tokenizeSft(rows, tokenizer, { maxLength: 1 }), { code: "ERR_RLHF_ARGUMENT" });
  });

  itWithShared(
    "a tokenizer that begins sequences does so once, and a response that continues a word piece keeps the prompt",
    async () => {
      const llama = await Tokenizer.load(sharedFile("models/stories260k"));
      const [example] = tokenizeSft([{ prompt: "Once upon a", response: " time" }], llama).examples;
      assert.deepEqual([...example!.tokens], [1, 403, 407, 261, 378, 2]);
      assert.equal(example!.promptLength, 4);
    },
  );

  describe("conversations", () => {
    const template =
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    const chat = Tokenizer.fromJson(
      JSON.parse(new TextDecoder().decode(tokenizer.file("tokenizer.json"))) as object,
      {
        eos_token: "<|endoftext|>",
        chat_template: template,
      },
    );
    const messages = [
      { role: "user", content: "sat?" },
      { role: "assistant", content: "the cat" },
      { role: "user", content: "on?" },
      { role: "assistant", content: "the mat" },
    ];

    it("are learnt on what the assistant says, in every turn", () => {
      const [example] = tokenizeSft([{ messages }], chat).examples;
      const { tokens, lossMask } = example!;
      const learnt = chat.decode(tokens.filter((_, index) => lossMask[index] === 1));
      assert.equal(learnt, "the cat\nthe mat\n");
      assert.equal(chat.decode(tokens), chat.applyChatTemplate(messages));
      assert.equal(tokens.at(-1), EOS);
      assert.equal(chat.decode(tokens.subarray(0, example!.promptLength)), "user: sat?\nassistant: ");
    });

    it("need a template that leaves earlier turns as they were", () => {
      const rewriting = Tokenizer.fromJson(
        JSON.parse(new TextDecoder().decode(tokenizer.file("tokenizer.json"))) as object,
        {
          eos_token: "<|endoftext|>",
          chat_template: `{{ messages | length }} ${template}`,
        },
      );
      assert.throws(() => tokenizeSft([{ messages }], rewriting), {
        code: "ERR_RLHF_TOKENIZER",
        message: /rewrites earlier turns .* put \{% generation %\}/,
      });
    });
  });
});
