import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { checkParity, PARITY_LIMIT } from "../../lib/cli/parity.ts";
import {
  type ReferenceConfig,
  type ReferenceTensor,
  referenceLogProbs,
} from "../../lib/cli/reference-llama.ts";
import { readModelTensors, readTensor } from "../../lib/model/safetensors.ts";
import { assertElementsClose } from "../parity/compare.ts";
import { modelDirectory, ReferenceTensors } from "../parity/reference.ts";

describe("doctor's reference", () => {
  it("is transformers' Llama: log-probs of micro-llama within 1e-6", async () => {
    const directory = modelDirectory("micro-llama");
    const config = JSON.parse(readFileSync(join(directory, "config.json"), "utf8")) as ReferenceConfig;
    const weights = new Map<string, ReferenceTensor>();
    for (const [name, entry] of (await readModelTensors(directory)).entries) {
      weights.set(name, { shape: entry.shape, values: await readTensor(entry) });
    }
    const expected = new ReferenceTensors("micro-llama-statistics.safetensors");
    const actual = expected.sequences().flatMap((tokens) => referenceLogProbs(config, weights, tokens));
    assertElementsClose(actual, expected.floats("t1.logProb"), 1e-6, "log-prob");
  });

  it("agrees with the engine, on one thread and on two", async () => {
    for (const threads of [1, 2]) {
      const { tokens, largestError } = await checkParity(threads);
      assert.equal(tokens, 41);
      assert.ok(largestError <= PARITY_LIMIT, `largest error ${largestError}`);
    }
  });
});
