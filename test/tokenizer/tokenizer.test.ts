import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "../../lib/tokenizer/tokenizer.ts";
import { trainTokenizer } from "../../lib/tokenizer/train.ts";
import { describeWithShared, sharedFile, temporaryDirectory, writeText } from "../data/support.ts";

const CORPUS = ["The cat sat on the mat. The cat sat on the hat.", "It's 12 o'clock, said the cat."];

describe("Tokenizer", () => {
  const directory = temporaryDirectory();

  describeWithShared("of pretrained models", () => {
    describe("GPT-2", () => {
      let tokenizer: Tokenizer;
      before(async () => {
        tokenizer = await Tokenizer.load(sharedFile("tokenizers/gpt2"));
      });

      it('encodes "Hello world" as 15496 995', () => {
        assert.deepEqual([...tokenizer.encode("Hello world")], [15496, 995]);
        assert.equal(tokenizer.vocabSize, 50257);
      });

      it("decodes to the very text, with spaces before punctuation", () => {
        const text = "A test , with spaces . It 's  naïve — 好\n\n";
        assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
      });

      it("knows its special tokens; padding falls back to the end of sequence", () => {
        const { eosTokenId, bosTokenId, padTokenId, endTokenIds, specialTokens } = tokenizer;
        assert.deepEqual([eosTokenId, bosTokenId, padTokenId, endTokenIds], [50256, 50256, 50256, [50256]]);
        assert.deepEqual(specialTokens, ["<|endoftext|>"]);
      });

      it("takes special tokens in text as tokens or literally", () => {
        const text = "a<|endoftext|>b";
        assert.deepEqual([...tokenizer.encode(text)], [64, 50256, 65]);
        const literal = tokenizer.encode(text, { specialTokensInText: "literal" });
        assert.ok(!literal.includes(50256));
        assert.equal(tokenizer.decode(literal), text);
      });

      it("removes text that spells special tokens, also when removing one spells another", () => {
        assert.equal(tokenizer.stripSpecialTokens("x<|endof<|endoftext|>text|>y"), "xy");
      });
    });

    describe("stories260k (byte-fallback BPE)", () => {
      let tokenizer: Tokenizer;
      before(async () => {
        tokenizer = await Tokenizer.load(sharedFile("models/stories260k"));
      });

      it("adds the beginning-of-sequence token unless told not to", () => {
        const plain = tokenizer.encode("Once upon a time", { addSpecialTokens: false });
        assert.deepEqual([...tokenizer.encode("Once upon a time")], [1, ...plain]);
        assert.deepEqual([...plain], [403, 407, 261, 378]);
        const literal = tokenizer.encode("Once upon a time", { specialTokensInText: "literal" });
        assert.deepEqual([...literal], [1, ...plain]);
      });

      it("decodes bytes and leaves special tokens out unless asked for", () => {
        const ids = tokenizer.encode("é 好!");
        assert.equal(tokenizer.decode(ids), "é 好!");
        assert.match(tokenizer.decode(ids, { skipSpecialTokens: false }), /^<s>/);
      });

      it("decodes a continuation with the space it begins with", () => {
        const ids = tokenizer.encode("Lily went home.");
        const [prompt, rest] = [ids.subarray(0, 2), ids.subarray(2)];
        assert.equal(tokenizer.decode(prompt), "Lily");
        assert.equal(tokenizer.decode(rest), "went home.");
        assert.equal(tokenizer.decodeContinuation(prompt, rest), " went home.");
      });

      it("takes ids from the model's files", () => {
        assert.deepEqual(
          [tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.padTokenId, tokenizer.vocabSize],
          [1, 2, 0, 512],
        );
      });

      it("saves the files it was loaded from, byte for byte", async () => {
        const target = join(directory, "saved");
        await tokenizer.save(target);
        for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
          assert.deepEqual(
            readFileSync(join(target, name)),
            readFileSync(sharedFile(`models/stories260k/${name}`)),
          );
        }
        const again = await Tokenizer.load(target);
        assert.deepEqual(again.encode("Lily went home."), tokenizer.encode("Lily went home."));
      });
    });
  });

  describe("edges", () => {
    const tokenizer = trainTokenizer(CORPUS, { vocabSize: 300 });

    it("empty text and no ids", () => {
      assert.equal(tokenizer.encode("").length, 0);
      assert.equal(tokenizer.decode([]), "");
      assert.equal(tokenizer.decode(new Int32Array(0)), "");
    });

    it("ids beyond the vocabulary have no text", () => {
      const ids = [...tokenizer.encode("cat"), tokenizer.vocabSize + 5];
      assert.equal(tokenizer.decode(ids), "cat");
      assert.equal(tokenizer.idToToken(tokenizer.vocabSize + 5), null);
    });

    it("several end tokens of generation_config.json", async () => {
      const target = join(directory, "ends");
      await tokenizer.save(target);
      writeText(target, "generation_config.json", '{"eos_token_id": [0, 77]}');
      assert.deepEqual((await Tokenizer.load(target)).endTokenIds, [0, 77]);
    });

    it("missing, malformed and unsupported files", async () => {
      const refused = { code: "ERR_RLHF_TOKENIZER" };
      const nothing = join(directory, "nothing");
      await assert.rejects(Tokenizer.load(nothing), { ...refused, message: /no such directory/ });
      mkdirSync(nothing);
      await assert.rejects(Tokenizer.load(nothing), { ...refused, message: /no tokenizer\.json/ });
      const cases: [string, string, string][] = [
        ["not JSON", "{", "ERR_RLHF_TOKENIZER"],
        ["an array", "[]", "ERR_RLHF_TOKENIZER"],
        ["no model", "{}", "ERR_RLHF_TOKENIZER"],
        ["Unigram", '{"model": {"type": "Unigram", "byte_fallback": true}}', "ERR_RLHF_UNSUPPORTED"],
      ];
      for (const [name, text, code] of cases) {
        writeText(directory, "tokenizer.json", text);
        await assert.rejects(Tokenizer.load(directory), { code }, name);
      }
    });
  });

  describe("chat templates", () => {
    const template =
      "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    const chat = (chatTemplate: unknown): Tokenizer => {
      const trained = trainTokenizer(CORPUS, { vocabSize: 258 });
      return Tokenizer.fromJson(jsonOf(trained), { eos_token: "<|endoftext|>", chat_template: chatTemplate });
    };
    const messages = [{ role: "user", content: "hi<|endoftext|>" }];

    it("render, without what the contents spell of special tokens", () => {
      const tokenizer = chat(template);
      assert.equal(tokenizer.applyChatTemplate(messages), "<|user|>hi<|endoftext|>");
      assert.equal(
        tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }),
        "<|user|>hi<|endoftext|><|assistant|>",
      );
      assert.equal(
        tokenizer.applyChatTemplate(messages, { sanitize: false }),
        "<|user|>hi<|endoftext|><|endoftext|>",
      );
    });

    it("of several the default is taken", () => {
      const several = [
        { name: "tool_use", template: "no" },
        { name: "default", template },
      ];
      assert.equal(chat(several).chatTemplate, template);
    });

    it("that are absent, broken or raise are errors that say so", () => {
      assert.throws(() => chat(undefined).applyChatTemplate(messages), {
        code: "ERR_RLHF_TOKENIZER",
        message: /no chat template/,
      });
      assert.throws(() => chat("{% for %}"), { code: "ERR_RLHF_TOKENIZER", message: /not valid Jinja/ });
      const raising = chat("{{ raise_exception('roles must alternate') }}");
      assert.throws(() => raising.applyChatTemplate(messages), {
        code: "ERR_RLHF_TOKENIZER",
        message: /roles must alternate/,
      });
    });
  });

  describe("trainTokenizer", () => {
    it("merges frequent pairs, keeps any text, and is deterministic", () => {
      const tokenizer = trainTokenizer(CORPUS, { vocabSize: 268 });
      assert.deepEqual(jsonOf(tokenizer), jsonOf(trainTokenizer(CORPUS, { vocabSize: 268 })));
      assert.equal(tokenizer.vocabSize, 268);
      assert.equal(tokenizer.encode(" cat").length, 1);
      const text = "Unseen: größe 好 \u0000 \n\t it's";
      assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
    });

    it("stops when no pair occurs twice", () => {
      assert.equal(trainTokenizer(["abc"], { vocabSize: 500 }).vocabSize, 258);
    });

    it("reserves 0 for the end of sequence and 1 for padding", () => {
      const tokenizer = trainTokenizer(CORPUS, { vocabSize: 258 });
      assert.deepEqual([tokenizer.eosTokenId, tokenizer.padTokenId], [0, 1]);
    });

    it("refuses a vocabulary that cannot hold all bytes", () => {
      assert.throws(() => trainTokenizer(CORPUS, { vocabSize: 100 }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /at least 258/,
      });
    });
  });

  function jsonOf(tokenizer: Tokenizer): object {
    return JSON.parse(new TextDecoder().decode(tokenizer.file("tokenizer.json"))) as object;
  }
});
