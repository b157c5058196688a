import assert from "node:assert/strict";
import fc from "fast-check";
import {
  type ChatMessage,
  loadSft,
  type TokenizedExample,
  Tokenizer,
  tokenizePreferences,
  tokenizePrompts,
  tokenizeSft,
  trainTokenizer,
} from "../../lib/index.ts";
import { itWithShared, jsonLines, sharedFile, temporaryDirectory, writeText } from "../data/support.ts";

const base = trainTokenizer(["the cat sat on the mat, user assistant system"], { vocabSize: 290 });
const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });

/** The base tokenizer with ChatML's tokens and a template. */
function chat(chatTemplate: string): Tokenizer {
  return base.withTokens(["<|im_start|>", "<|im_end|>"], { chatTemplate, eosToken: "<|im_end|>" }).tokenizer;
}

const PLAIN =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const MARKED = `{% for m in messages %}
    {%- if m.role == "assistant" -%}
        <|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ "\\n" }}
    {%- else -%}
        <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ "\\n" }}
    {%- endif -%}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}`;

const messages = [user("the cat?"), assistant("sat"), user("on?"), assistant("the mat")];

/** The text that is learnt. */
function learnt(tokenizer: Tokenizer, example: TokenizedExample): string {
  return tokenizer.decode(
    example.tokens.filter((_, index) => example.lossMask[index] === 1),
    { skipSpecialTokens: false },
  );
}

describe("masks of conversations", () => {
  const directory = temporaryDirectory();
  for (const [name, template] of [
    ["turns found by rendering", PLAIN],
    ["{% generation %} marks", MARKED],
  ] as const) {
    describe(name, () => {
      const tokenizer = chat(template);

      it("learn what the assistant says and the token that ends its turn, not the line break after it", () => {
        const { examples, report } = tokenizeSft([{ messages }], tokenizer);
        const example = examples[0]!;
        assert.equal(learnt(tokenizer, example), "sat<|im_end|>the mat<|im_end|>");
        const text = tokenizer.decode(example.tokens, { skipSpecialTokens: false });
        assert.equal(`${text}\n`, tokenizer.applyChatTemplate(messages));
        assert.equal(example.tokens.at(-1), tokenizer.eosTokenId);
        assert.equal(report.boundaryMerges, 0);
      });

      it("of a reply in messages learn the reply alone", () => {
        const row = { prompt: messages.slice(0, 3), response: messages.slice(3) };
        const example = tokenizeSft([row], tokenizer).examples[0]!;
        assert.equal(learnt(tokenizer, example), "the mat<|im_end|>");
        const prompt = tokenizer.applyChatTemplate(row.prompt, { addGenerationPrompt: true });
        assert.equal(
          tokenizer.decode(example.tokens.subarray(0, example.promptLength), { skipSpecialTokens: false }),
          prompt,
        );
      });

      it("of pairs share the prompt, of several turns learn the assistant's", () => {
        const row = {
          prompt: [user("on?")],
          chosen: [assistant("the mat"), user("and?"), assistant("sat")],
          rejected: [assistant("the cat")],
        };
        const { chosen, rejected } = tokenizePreferences([row], tokenizer).examples[0]!;
        assert.equal(chosen.promptLength, rejected.promptLength);
        assert.deepEqual(
          chosen.tokens.subarray(0, chosen.promptLength),
          rejected.tokens.subarray(0, rejected.promptLength),
        );
        assert.equal(learnt(tokenizer, chosen), "the mat<|im_end|>sat<|im_end|>");
        assert.equal(learnt(tokenizer, rejected), "the cat<|im_end|>");
        const [prompt] = tokenizePrompts([{ prompt: "on?", messages: row.prompt }], tokenizer).examples;
        assert.deepEqual(prompt!.tokens, chosen.tokens.slice(0, chosen.promptLength));
      });

      it("learn the same of any conversation", () => {
        const text = fc.stringMatching(/^[a-z ]{1,12}[a-z]$/);
        const conversation = fc.array(fc.tuple(text, text), { minLength: 1, maxLength: 4 });
        fc.assert(
          fc.property(conversation, (turns) => {
            const all = turns.flatMap(([question, answer]) => [user(question), assistant(answer)]);
            const example = tokenizeSft([{ messages: all }], tokenizer).examples[0]!;
            assert.equal(
              learnt(tokenizer, example),
              turns.map(([, answer]) => `${answer}<|im_end|>`).join(""),
            );
          }),
          { numRuns: 50 },
        );
      });
    });
  }

  it("marks change nothing of the text, and their characters in a message cannot forge them", () => {
    const tokenizer = chat(MARKED);
    assert.equal(tokenizer.renderChat(messages).text, tokenizer.applyChatTemplate(messages));
    const forged = tokenizer.renderChat([user("a\uFDD0b\uFDD1"), assistant("sat")]);
    assert.deepEqual(
      forged.assistant.map(([begin, end]) => forged.text.slice(begin, end)),
      ["sat<|im_end|>"],
    );
  });

  it("marks hold also in a template that rewrites earlier turns, where rendering turn by turn cannot tell", () => {
    const count = "{{ messages | length }} ";
    const marked = chat(count + MARKED);
    assert.equal(
      learnt(marked, tokenizeSft([{ messages }], marked).examples[0]!),
      "sat<|im_end|>the mat<|im_end|>",
    );
    assert.throws(() => tokenizeSft([{ messages }], chat(count + PLAIN)), {
      code: "ERR_RLHF_TOKENIZER",
      message: /put \{% generation %\} and \{% endgeneration %\} around/,
    });
    const pair = { prompt: [user("on?")], chosen: [assistant("a")], rejected: [assistant("b")] };
    assert.throws(() => tokenizePreferences([pair], marked), {
      code: "ERR_RLHF_TOKENIZER",
      message: /writes a prompt otherwise when its answer follows/,
    });
  });

  it("leave out what marks hold of the generation prompt, and rows of which the marks hold nothing", () => {
    const early = MARKED.replace(
      "<|im_start|>assistant\n{% generation %}",
      "<|im_start|>{% generation %}assistant\n",
    );
    assert.notEqual(early, MARKED);
    const tokenizer = chat(early);
    const [reply] = tokenizeSft(
      [{ prompt: messages.slice(0, 3), response: messages.slice(3) }],
      tokenizer,
    ).examples;
    assert.equal(learnt(tokenizer, reply!), "the mat<|im_end|>");
    const narrow = chat(MARKED.replace('m.role == "assistant"', 'm.role == "nobody"'));
    assert.throws(() => tokenizeSft([{ messages }], narrow), {
      code: "ERR_RLHF_DATA",
      message: /row 0 has no token to learn/,
    });
  });

  it("that cannot be told name the row's file and line", async () => {
    const file = writeText(
      directory,
      "chats.jsonl",
      jsonLines([{ messages: messages.slice(0, 2) }, { messages }]),
    );
    const rows = await loadSft(file);
    const counting = chat(`{{ messages | length }} ${PLAIN}`);
    assert.throws(() => tokenizeSft(rows, counting), {
      code: "ERR_RLHF_TOKENIZER",
      message: /chats\.jsonl:1: the chat template rewrites earlier turns/,
    });
    assert.throws(() => tokenizeSft(rows, base), {
      message: /chats\.jsonl:1: this tokenizer has no chat template/,
    });
  });

  it("of a template without an end of turn end in the end-of-sequence token", () => {
    const tokenizer = chat(
      "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    );
    const example = tokenizeSft([{ messages }], tokenizer).examples[0]!;
    assert.equal(learnt(tokenizer, example), "sat\nthe mat\n<|im_end|>");
  });

  itWithShared("of a SentencePiece tokenizer cut between the tokens of the whole text", async () => {
    const llama = await Tokenizer.load(sharedFile("models/stories260k"));
    const { tokenizer } = llama.withTokens([], {
      chatTemplate:
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    });
    const example = tokenizeSft([{ messages: [user("Tell me"), assistant("Once upon a time")] }], tokenizer)
      .examples[0]!;
    assert.deepEqual(
      example.tokens,
      tokenizer.encode("[INST] Tell me [/INST] Once upon a time </s>", { addSpecialTokens: false }),
    );
    assert.equal(learnt(tokenizer, example).trim(), "Once upon a time </s>");
  });
});
