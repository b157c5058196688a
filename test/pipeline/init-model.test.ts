import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";
import { MODEL_FAMILIES } from "../../lib/model/config.ts";
import { initModel } from "../../lib/pipeline/init-model.ts";
import type { InitConfig } from "../../lib/pipeline/schema.ts";
import { withTemporaryDirectory } from "../support/tiny.ts";

const ROWS = ["the cat sat", "the dog ran"].map((response) => ({ prompt: "", response }));
const INIT = { hidden_size: 24, num_layers: 2, num_heads: 3, vocab_size: 264, max_position_embeddings: 40 };

const make = async (init: Partial<InitConfig> & Pick<InitConfig, "family">, seed = 1): Promise<CausalLM> =>
  (await initModel({ ...INIT, ...init }, ROWS, { seed })).model;

async function logProbs(model: CausalLM): Promise<Float32Array> {
  using pass = await model.forward(packSequences([{ tokens: [65, 66, 67, 68, 69, 70, 71] }]));
  return await pass.logProb();
}

describe("a new model", () => {
  for (const family of MODEL_FAMILIES) {
    it(`of family ${family}: the seed decides its weights; it is saved and loaded as any other`, async () => {
      using model = await make({ family });
      using same = await make({ family });
      using other = await make({ family }, 2);
      const expected = await logProbs(model);
      assert.deepEqual(await logProbs(same), expected);
      assert.notDeepEqual(await logProbs(other), expected);
      const { hidden, layers, heads, headDim, maxPositions, tiedEmbeddings } = model.config;
      assert.deepEqual(
        [hidden, layers, heads, headDim, maxPositions, tiedEmbeddings],
        [24, 2, 3, 8, 40, true],
      );
      await withTemporaryDirectory(async (directory) => {
        await model.save(directory);
        using loaded = await CausalLM.load(directory);
        assert.deepEqual(loaded.config, model.config);
        assert.deepEqual(await logProbs(loaded), expected);
      });
    });
  }

  it("has the heads and windows that were asked for", async () => {
    using mistral = await make({ family: "mistral", sliding_window: 5, head_dim: 6, num_kv_heads: 1 });
    assert.deepEqual(
      [mistral.config.windows, mistral.config.headDim, mistral.config.kvHeads],
      [[5, 5], 6, 1],
    );
    for (const family of ["qwen2", "qwen3"] as const) {
      using windowed = await make({ family, sliding_window: 5 });
      assert.deepEqual(windowed.config.windows, [5, 5]);
      using plain = await make({ family });
      assert.deepEqual(plain.config.windows, []);
    }
  });
});
