import assert from "node:assert/strict";
import { cpSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { addTokens, CausalLM, CHATML_TEMPLATE, Tokenizer, trainTokenizer } from "../../lib/index.ts";
import { encodeRow, resizeVocabulary } from "../../lib/model/resize-vocabulary.ts";
import { readModelTensors } from "../../lib/model/safetensors.ts";
import { itWithShared, sharedFile, temporaryDirectory } from "../data/support.ts";
import { TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";

const reference = (name: string): string => new URL(`../reference/models/${name}`, import.meta.url).pathname;

describe("tokens added to a tokenizer", () => {
  const before = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 262 });

  it("take the next ids, are found in text and survive decoding as they should", () => {
    const { tokenizer, added } = before.withTokens(["<|a|>", { content: "cat9", special: false }, "<|a|>"]);
    assert.deepEqual(
      [...added],
      [
        ["<|a|>", 262],
        ["cat9", 263],
      ],
    );
    assert.equal(tokenizer.vocabSize, 264);
    const tokens = tokenizer.encode("the <|a|> cat9<|a|>");
    assert.deepEqual(
      [...tokens].filter((id) => id >= 262),
      [262, 263, 262],
    );
    assert.equal(tokenizer.decode(tokens), "the  cat9");
    assert.equal(tokenizer.decode(tokens, { skipSpecialTokens: false }), "the <|a|> cat9<|a|>");
    assert.deepEqual(before.encode("the cat"), tokenizer.encode("the cat"));
    assert.deepEqual(tokenizer.encode("<|a|>", { specialTokensInText: "literal" }), before.encode("<|a|>"));
  });

  it("that exist already keep their ids", () => {
    const once = before.withTokens(["<|a|>"]).tokenizer;
    const { tokenizer, added } = once.withTokens(["<|a|>", "<|b|>", "<|endoftext|>"]);
    assert.deepEqual([...added], [["<|b|>", 263]]);
    assert.equal(tokenizer.tokenToId("<|a|>"), 262);
  });

  it("with a chat template make turns that end in a token of their own", () => {
    const { tokenizer } = before.withTokens([], { chatTemplate: "chatml" });
    assert.equal(tokenizer.chatTemplate, CHATML_TEMPLATE);
    assert.equal(tokenizer.idToToken(tokenizer.eosTokenId!), "<|im_end|>");
    assert.equal(
      tokenizer.applyChatTemplate([{ role: "user", content: "the cat" }], { addGenerationPrompt: true }),
      "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  it("that make no sense are refused", () => {
    assert.throws(() => before.withTokens([" "]), { code: "ERR_RLHF_ARGUMENT" });
    assert.throws(() => before.withTokens(["<|a|>"], { eosToken: "<|b|>" }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /eos_token "<\|b\|>" is neither/,
    });
  });
});

describe("tokens added to a model", () => {
  const directory = temporaryDirectory();
  const tokenizer = trainTokenizer(["the cat sat on the mat, the cat sat"], { vocabSize: 262 });

  /** A model directory with an embedding of `rows` rows. */
  async function makeModel(name: string, config: object, rows: number): Promise<string> {
    const target = join(directory, name);
    using model = await CausalLM.create(
      { ...(config as typeof TINY_LLAMA), vocab_size: rows },
      { device: "cpu" },
    );
    await model.save(target);
    await tokenizer.save(target);
    return target;
  }

  async function logProbs(path: string, tokens: Int32Array): Promise<Float32Array> {
    using model = await CausalLM.load(path, { device: "cpu", trainable: "all" });
    using pass = await model.forward({
      tokens,
      offsets: Int32Array.of(0, tokens.length),
      mask: new Float32Array(tokens.length),
      sequences: 1,
    });
    return pass.logProb();
  }

  for (const [name, config] of [
    ["tied GPT-2", TINY_GPT2],
    ["untied Llama", TINY_LLAMA],
  ] as const)
    it(`${name}: new rows are the mean of the others, which stay bit for bit`, async () => {
      const source = await makeModel(name, config, 262);
      const output = join(directory, `${name} more`);
      const { added, vocabSize } = await addTokens(source, output, ["<|a|>", "<|b|>"], { padVocabTo: 8 });
      assert.deepEqual([[...added.values()], vocabSize], [[262, 263], 264]);
      using old = await CausalLM.load(source, { device: "cpu", trainable: "all" });
      using model = await CausalLM.load(output, { device: "cpu", trainable: "all" });
      let resized = 0;
      for (const { name: parameter, shape } of old.parameters()) {
        const [was, is] = [await old.readParameter(parameter), await model.readParameter(parameter)];
        assert.deepEqual(is.subarray(0, was.length), was, parameter);
        if (is.length === was.length) continue;
        resized++;
        const columns = shape[1]!;
        for (let column = 0; column < columns; column++) {
          let sum = 0;
          for (let row = 0; row < 262; row++) sum += was[row * columns + column]!;
          for (const row of [262, 263]) assert.equal(is[row * columns + column], Math.fround(sum / 262));
        }
      }
      assert.equal(resized, config.tie_word_embeddings === false ? 2 : 1);
      const tokens = (await Tokenizer.load(output)).encode("the <|a|> cat");
      assert.ok(tokens.includes(262));
      assert.ok((await logProbs(output, tokens)).every(Number.isFinite));
    });

  it("uses rows that padded the vocabulary, and keeps the size", async () => {
    const source = await makeModel("padded", TINY_LLAMA, 320);
    const output = join(directory, "padded more");
    const { vocabSize } = await addTokens(source, output, [], {
      chatTemplate: "chatml",
      padToken: "<|endoftext|>",
    });
    assert.equal(vocabSize, 320);
    const config = JSON.parse(readFileSync(join(output, "config.json"), "utf8")) as Record<string, unknown>;
    assert.deepEqual([config.vocab_size, config.eos_token_id, config.pad_token_id], [320, 263, 0]);
    const loaded = await Tokenizer.load(output);
    assert.deepEqual([loaded.eosTokenId, loaded.padTokenId, loaded.vocabSize], [263, 0, 264]);
    assert.equal(loaded.chatTemplate, CHATML_TEMPLATE);
  });

  itWithShared("works on a pretrained model, whose predictions of the old tokens barely move", async () => {
    const source = sharedFile("models/stories260k");
    const output = join(directory, "stories");
    await addTokens(source, output, ["<|im_start|>"]);
    const tokens = (await Tokenizer.load(source)).encode("Once upon a time there was a little girl");
    assert.deepEqual(
      (await Tokenizer.load(output)).encode("Once upon a time there was a little girl"),
      tokens,
    );
    const [was, is] = [await logProbs(source, tokens), await logProbs(output, tokens)];
    // The new token takes the share of an average one.
    for (const [t, value] of was.entries())
      assert.ok(value - is[t]! >= -1e-6 && value - is[t]! < 0.2, `${value} ${is[t]}`);
  });

  it("keeps the type of half-precision weights", async () => {
    for (const [name, dtype] of [
      ["micro-llama-f16", "F16"],
      ["micro-llama-bf16", "BF16"],
    ] as const) {
      const output = join(directory, name);
      cpSync(reference(name), output, { recursive: true });
      const rows = await resizeVocabulary(reference(name), output, { known: 61, wanted: 63, multipleOf: 1 });
      assert.equal(rows, 63);
      const entry = (await readModelTensors(output)).entries.get("model.embed_tokens.weight");
      assert.deepEqual([entry?.dtype, entry?.shape], [dtype, [63, 24]]);
    }
  });

  it("rounds to half precision as IEEE 754 says", () => {
    const cases: [number, number, number][] = [
      // value, float16 bits, bfloat16 bits
      [0, 0, 0],
      [-1.5, 0xbe00, 0xbfc0],
      [65504, 0x7bff, 0x4780],
      [65520, 0x7c00, 0x4780],
      [2 ** -24, 0x0001, 0x3380],
      [2 ** -25, 0x0000, 0x3300],
      [3 * 2 ** -25, 0x0002, 0x33c0],
      [1 + 2 ** -11, 0x3c00, 0x3f80],
      [1 + 3 * 2 ** -11, 0x3c02, 0x3f80],
      [2047.5 / 1024, 0x4000, 0x4000],
      [2 ** -14 * (1023.75 / 1024), 0x0400, 0x3880],
      [1 + 2 ** -8, 0x3c04, 0x3f80],
      [1 + 3 * 2 ** -8, 0x3c0c, 0x3f82],
    ];
    for (const [value, half, brain] of cases) {
      assert.equal(encodeRow(Float64Array.of(value), "F16").readUInt16LE(), half, `${value} F16`);
      assert.equal(encodeRow(Float64Array.of(value), "BF16").readUInt16LE(), brain, `${value} BF16`);
    }
  });

  it("refuses its own directory, and one that is no model", async () => {
    const source = await makeModel("own", TINY_LLAMA, 262);
    await assert.rejects(addTokens(source, source, ["<|a|>"]), { code: "ERR_RLHF_ARGUMENT" });
    const nothing = join(directory, "nothing");
    await assert.rejects(addTokens(join(directory, "absent"), nothing, ["<|a|>"]), {
      code: "ERR_RLHF_MODEL",
    });
    assert.ok(!existsSync(nothing));
    const small = await makeModel("small", TINY_LLAMA, 200);
    await assert.rejects(addTokens(small, join(directory, "small more"), ["<|a|>"]), {
      code: "ERR_RLHF_WEIGHTS",
      message: /has 200 rows, but the tokenizer 262 tokens/,
    });
  });
});
