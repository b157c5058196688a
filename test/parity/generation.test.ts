import assert from "node:assert/strict";
import { CausalLM, Tokenizer } from "../../lib/index.ts";
import { itWithShared, sharedFile } from "../data/support.ts";
import { testDevice } from "../support/tiny.ts";
import { modelDirectory, readJson } from "./reference.ts";

interface Continuation {
  prompt: number[];
  tokens: number[];
  text?: string;
}

describe("greedy continuations against transformers", () => {
  const { stories260k, ...expected } =
    readJson<Record<"stories260k" | string, Continuation[]>>("generation.json");

  for (const name of Object.keys(expected)) {
    it(`${name}: prompts of different lengths in one call, 40 tokens`, async () => {
      using model = await CausalLM.load(modelDirectory(name), { device: testDevice });
      const prompts = expected[name]!.map(({ prompt }) => Int32Array.from(prompt));
      const results = await model.generate(prompts, { maxNewTokens: 40, temperature: 0, stop: [] });
      assert.deepEqual(
        results.map(({ tokens }) => Array.from(tokens)),
        expected[name]!.map(({ tokens }) => tokens),
      );
    });
  }

  itWithShared(
    "stories260k: the published continuation of “Once upon a time”, 100 tokens exactly",
    async () => {
      const directory = sharedFile("models/stories260k");
      const { prompt, tokens, text } = stories260k![0]!;
      const tokenizer = await Tokenizer.load(directory);
      assert.deepEqual(Array.from(tokenizer.encode("Once upon a time")), prompt);
      using model = await CausalLM.load(directory, { device: testDevice });
      const [result] = await model.generate([Int32Array.from(prompt)], {
        maxNewTokens: 100,
        temperature: 0,
        stop: [],
      });
      assert.deepEqual(Array.from(result!.tokens), tokens);
      assert.equal(tokenizer.decode(result!.tokens).trim(), text!.trim());
    },
  );
});
