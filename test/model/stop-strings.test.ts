import assert from "node:assert/strict";
import { type CausalLM, type Generation, Random, Tokenizer } from "../../lib/index.ts";
import { prompts, tinyModel, tinyTokenizer } from "../trainers/support.ts";

/** A BPE tokenizer that writes spaces as ▁ and unknown characters byte by byte, as Llama's does. */
function fallbackTokenizer(): Tokenizer {
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, "▁", ..."abHumn:.éo", "▁a", "▁H", "um", "an", "uman"];
  const replace = (from: string, to: string) => ({ type: "Replace", pattern: { String: from }, content: to });
  return Tokenizer.fromJson({
    version: "1.0",
    added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({ id, content, special: true })),
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace(" ", "▁")] },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        replace("▁", " "),
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      unk_token: "<unk>",
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: ["▁ a", "▁ H", "u m", "a n", "um an"],
    },
  });
}

function bytesOf(tokenizer: Tokenizer, tokens: Iterable<number>): Buffer {
  const { bytes, offsets } = tokenizer.tokenBytes;
  return Buffer.concat(Array.from(tokens, (id) => bytes.subarray(offsets[id] ?? 0, offsets[id + 1] ?? 0)));
}

/** How many of the tokens stay: up to the first within which one of the strings ends. */
function expectedLength(tokenBytes: readonly Uint8Array[], strings: readonly string[], least = 0): number {
  for (let count = 1; count <= tokenBytes.length; count++) {
    const text = Buffer.concat(tokenBytes.slice(0, count));
    const before = text.length - (tokenBytes[count - 1] as Uint8Array).length;
    const ends = strings.some((string) => {
      const place = text.lastIndexOf(string);
      return place >= 0 && place + Buffer.byteLength(string) > before;
    });
    if (ends && count >= least) return count;
  }
  return tokenBytes.length;
}

const PROMPTS = [...prompts, ...prompts];
const SAMPLED = { maxNewTokens: 24, seed: 11, stop: [] };

describe("stop strings", () => {
  const kinds: [string, () => Tokenizer][] = [
    ["byte-level", tinyTokenizer],
    ["byte-fallback", fallbackTokenizer],
  ];
  for (const [kind, make] of kinds) {
    it(`${kind}: the bytes of tokens are the text that they add, characters in parts included`, () => {
      const tokenizer = make();
      const random = new Random(3, "tokens");
      const prompt = tokenizer.encode("a");
      for (const text of [" Human: an é\n\n", "日本 a\u{1f600}.", "a  a"]) {
        const tokens = tokenizer.encode(`a${text}`, { addSpecialTokens: false });
        assert.equal(bytesOf(tokenizer, tokens).toString().trimStart(), `a${text}`);
      }
      for (let round = 0; round < 40; round++) {
        // Up to 127, every byte is a character of its own.
        const tokens = Int32Array.from({ length: 12 }, () => random.integer(tokenizer.vocabSize)).filter(
          (id) => bytesOf(tokenizer, [id]).every((byte) => byte < 128),
        );
        assert.equal(bytesOf(tokenizer, tokens).toString(), tokenizer.decodeContinuation(prompt, tokens));
      }
    });

    it(`${kind}: end the sequence at the token that completes one, and no other sequence`, async () => {
      const tokenizer = make();
      using model = await tinyModel(tokenizer);
      const whole = await model.generate(PROMPTS, { ...SAMPLED, tokenizer });
      // Two bytes of the middle of an answer, of tokens that follow each other.
      const pairs = whole.flatMap(({ tokens }) =>
        Array.from(tokens.subarray(4, 20), (_, i) => {
          const [a = "", b = ""] = [4 + i, 5 + i].map((at) =>
            bytesOf(tokenizer, [tokens[at] as number]).toString(),
          );
          return /^[\x20-\x7e]+$/.test(a + b) && a !== "" && b !== "" ? `${a.at(-1)}${b[0]}` : "";
        }),
      );
      const stopStrings = [...new Set(pairs)].filter((pair) => pair !== "").slice(0, 3);
      assert.equal(stopStrings.length, 3);
      let stopped = 0;
      for (const minNewTokens of [0, 12]) {
        const settings = { ...SAMPLED, tokenizer, stopStrings, minNewTokens };
        const answers = await model.generate(PROMPTS, settings);
        answers.forEach(({ tokens, text, finishReason }, i) => {
          const full = whole[i] as Generation & { text: string };
          const parts = Array.from(full.tokens, (id) => bytesOf(tokenizer, [id]));
          const length = expectedLength(parts, stopStrings, minNewTokens);
          assert.deepEqual(tokens, full.tokens.subarray(0, length));
          const stops = expectedLength(parts.slice(0, length - 1), stopStrings, minNewTokens) === length - 1;
          if (finishReason === "length") {
            assert.equal(length, 24);
            assert.equal(text, full.text);
            return;
          }
          assert.ok(stops);
          stopped++;
          assert.ok(full.text.startsWith(text), "the text is cut, nothing else");
          const rest = full.text.slice(text.length);
          assert.ok(stopStrings.some((string) => rest.startsWith(string)));
          if (minNewTokens === 0) assert.ok(stopStrings.every((string) => !text.includes(string)));
        });
        for (const maxBatch of [1, 3]) {
          const again = await model.generate(PROMPTS, { ...settings, maxBatch });
          assert.deepEqual(again, answers);
        }
      }
      assert.ok(stopped >= 3 && stopped < 2 * PROMPTS.length, `${stopped} stopped`);
    });
  }

  it("are found where tokens are halves of characters", async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer);
    const tokens = PROMPTS.map((prompt) => tokenizer.encode(prompt));
    const options = {
      maxNewTokens: 24,
      minNewTokens: 0,
      temperature: 1,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      seed: 4,
      firstStream: 0,
      stopTokens: new Int32Array(),
      maxBatch: 64,
      adapter: "",
    };
    // Even tokens are the first half of "é", odd ones the second.
    const halves = Uint8Array.from({ length: tokenizer.vocabSize }, (_, id) => (id % 2 === 0 ? 0xc3 : 0xa9));
    const offsets = Int32Array.from({ length: tokenizer.vocabSize + 1 }, (_, id) => id);
    const whole = await model.native.generate(tokens, options).promise;
    const stopStrings = { bytes: halves, offsets, strings: ["éé"] };
    const answers = await model.native.generate(tokens, { ...options, stopStrings }).promise;
    const lengths = answers.map((answer) => answer.tokens.length);
    answers.forEach(({ tokens: found, stopped }, i) => {
      const full = (whole[i] as { tokens: Int32Array }).tokens;
      const parts = Array.from(full, (id) => halves.subarray(id, id + 1));
      assert.deepEqual(found, full.subarray(0, expectedLength(parts, ["éé"])));
      assert.equal(stopped, Buffer.concat(parts.slice(0, found.length)).toString("latin1").endsWith("Ã©Ã©"));
    });
    assert.ok(Math.min(...lengths) < 24);
  });

  it("stand beside end tokens, and give text that is cut for prompts of tokens too", async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer);
    const prompt = tokenizer.encode("Ann wants");
    const [first] = await model.generate([prompt], { maxNewTokens: 12, temperature: 0, stop: [], tokenizer });
    const { tokens, text } = first as Generation & { text: string };
    const settings = { maxNewTokens: 12, temperature: 0, tokenizer, stopStrings: ["never said"] };
    const [ended] = await model.generate([prompt], { ...settings, stop: [tokens[2] as number] });
    assert.equal(ended?.finishReason, "stop");
    assert.ok(text.startsWith(ended?.text ?? "none"));
    assert.deepEqual(ended?.tokens, tokens.subarray(0, tokens.indexOf(tokens[2] as number) + 1));
  });

  it("that are empty, or have no tokenizer or no bytes, are refused", async () => {
    const tokenizer = tinyTokenizer();
    using model: CausalLM = await tinyModel(tokenizer);
    const prompt = tokenizer.encode("a");
    const settings = { maxNewTokens: 2, stopStrings: ["."] };
    await assert.rejects(model.generate([prompt], settings), {
      code: "ERR_RLHF_ARGUMENT",
      message: /need a tokenizer/,
    });
    await assert.rejects(model.generate([prompt], { ...settings, tokenizer, stopStrings: [""] }), {
      code: "ERR_RLHF_ARGUMENT",
      message: /none of them empty/,
    });
    const json = JSON.parse(Buffer.from(tokenizer.file("tokenizer.json") as Uint8Array).toString()) as object;
    const wordPiece = Tokenizer.fromJson({
      ...json,
      decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    });
    await assert.rejects(model.generate([prompt], { ...settings, tokenizer: wordPiece }), {
      code: "ERR_RLHF_UNSUPPORTED",
      message: /WordPiece/,
    });
  });
});
