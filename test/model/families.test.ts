import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CausalLM, packSequences, RewardModel } from "../../lib/index.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import { readSafetensors, readTensor, writeSafetensors } from "../../lib/model/safetensors.ts";
import { modelDirectory, readJson } from "../parity/reference.ts";
import {
  randomSequences,
  TINY_GPT_NEOX,
  TINY_LLAMA,
  TINY_MISTRAL,
  TINY_QWEN3,
  withTemporaryDirectory,
} from "../support/tiny.ts";

const HEAD_DIM = 6;
const HIDDEN = 24;
const QKV = "gpt_neox.layers.0.attention.query_key_value";
const sequences = randomSequences([9, 4], 50).map((tokens) => ({ tokens }));
const dLogProb = Float32Array.from({ length: 13 }, (_, i) => Math.cos(i));

async function logProbs(model: CausalLM): Promise<Float32Array> {
  using pass = await model.forward(packSequences(sequences));
  return await pass.logProb();
}

async function step(model: CausalLM): Promise<void> {
  const pass = await model.forward(packSequences(sequences), { grad: true });
  await pass.backward({ dLogProb });
}

/** Log-probs of one sequence of 20 tokens whose token at `changed` may be another. */
async function withChange(model: CausalLM, changed: number | null): Promise<Float32Array> {
  const tokens = randomSequences([20], 50, 4)[0]!;
  if (changed !== null) tokens[changed] = (tokens[changed]! + 1) % 50;
  using pass = await model.forward(packSequences([{ tokens }]));
  return await pass.logProb();
}

describe("gpt_neox", () => {
  it("gives query_key_value in the order of files: [head][q, k, v]", async () => {
    using model = await CausalLM.create(TINY_GPT_NEOX, { trainable: "all", seed: 2 });
    const written = Float32Array.from({ length: 3 * HIDDEN }, (_, row) => row / 100);
    await model.writeParameter(`${QKV}.bias`, written);
    assert.deepEqual(await model.readParameter(`${QKV}.bias`), written);
    // Shifting all keys of a head by one vector changes no softmax: those rows, and no others, have a gradient of 0.
    await step(model);
    const gradient = await model.readGradient(`${QKV}.bias`);
    const turning = 2 * Math.ceil(Math.trunc(HEAD_DIM * 0.7) / 2);
    for (const [row, value] of gradient.entries()) {
      const [part, element] = [Math.floor(row / HEAD_DIM) % 3, row % HEAD_DIM];
      const zero = part === 1 && element >= turning; // rotation makes the other rows depend on the position
      assert.equal(Math.abs(value) < 1e-6, zero, `row ${row}: ${value}`);
    }
  });

  it("gives an optimizer's moments in the order of the gradients, and takes them back", async () => {
    using model = await CausalLM.create(TINY_GPT_NEOX, { trainable: "all", seed: 2 });
    using optimizer = model.createOptimizer();
    await step(model);
    const gradient = await model.readGradient(`${QKV}.weight`);
    await optimizer.step({ learningRate: 0 });
    const { m, v } = await optimizer.exportMoments(`${QKV}.weight`);
    for (const [i, value] of gradient.entries())
      assert.ok(Math.abs(m[i]! - 0.1 * value) <= 1e-6 * Math.abs(value), `moment ${i}`);
    await optimizer.importMoments(`${QKV}.weight`, { m: m.map((value) => 2 * value), v });
    const again = await optimizer.exportMoments(`${QKV}.weight`);
    assert.deepEqual(again, { m: m.map((value) => 2 * value), v });
  });

  it("stores the output layer as transformers does, and loads either of its names", async () => {
    using model = await CausalLM.create(TINY_GPT_NEOX, { seed: 2 });
    await withTemporaryDirectory(async (directory) => {
      await model.save(directory);
      const path = join(directory, "model.safetensors");
      const { entries } = await readSafetensors(path);
      assert.ok(entries.has("embed_out.weight") && !entries.has("lm_head.weight"));
      const expected = await logProbs(model);
      using saved = await CausalLM.load(directory);
      assert.deepEqual(await logProbs(saved), expected);
      const stored = await Promise.all(
        [...entries.values()].map(async ({ name, shape, ...entry }) => {
          const values = await readTensor({ name, shape, ...entry });
          const newer = name.replace("embed_out", "lm_head").replace("gpt_neox.", "");
          return { name: newer, shape, read: async () => values };
        }),
      );
      await writeSafetensors(path, stored);
      using renamed = await CausalLM.load(directory);
      assert.deepEqual(await logProbs(renamed), expected);
    });
  });

  it("merges an adapter on query_key_value into the right rows", async () => {
    using model = await CausalLM.load(modelDirectory("gpt_neox"));
    await model.loadAdapter("policy", modelDirectory("../adapters/gpt_neox"));
    const batch = packSequences(
      sequences.map(({ tokens }) => ({ tokens: tokens.map((token) => token % 41) })),
    );
    const score = async (adapter?: string): Promise<Float32Array> => {
      using pass = await model.forward(batch, adapter === undefined ? {} : { adapter });
      return await pass.logProb();
    };
    const [plain, adapted] = [await score(), await score("policy")];
    await model.mergeAdapter("policy");
    const merged = await score();
    assert.ok(plain.some((value, i) => Math.abs(value - adapted[i]!) > 0.1));
    for (const [i, value] of merged.entries()) assert.ok(Math.abs(value - adapted[i]!) < 2e-5, `token ${i}`);
  });

  it("saves a reward model that gives the same scores", async () => {
    const name = "reward-gpt_neox";
    const { sequences: rows, scores } =
      readJson<Record<string, { sequences: number[][]; scores: number[] }>>("rewards.json")[name]!;
    await withTemporaryDirectory(async (directory) => {
      using reward = await RewardModel.load(modelDirectory(name));
      await reward.save(directory);
      using again = await RewardModel.load(directory);
      const actual = await again.score(rows.map((tokens) => Int32Array.from(tokens)));
      for (const [i, score] of scores.entries()) assert.ok(Math.abs(actual[i]! - score) < 1e-4, `row ${i}`);
    });
  });
});

describe("attention's window", () => {
  const reaches = async (config: HfConfig): Promise<number> => {
    using model = await CausalLM.create(config, { seed: 2 });
    const [plain, changed] = [await withChange(model, null), await withChange(model, 5)];
    return plain.findLastIndex((value, i) => value !== changed[i]);
  };

  it("bounds how far a token is seen: by window − 1 in every layer", async () => {
    // The last position that sees token 5 predicts the token after it. Windows of 4 in two layers: 5 + 2·3.
    assert.equal(await reaches(TINY_MISTRAL), 5 + 2 * 3 + 1);
    assert.equal(await reaches({ ...TINY_MISTRAL, sliding_window: 1 }), 5 + 1);
    assert.equal(await reaches({ ...TINY_MISTRAL, sliding_window: null }), 19);
    // A full layer sees everything, wherever it stands.
    const qwen3 = { ...TINY_QWEN3, use_sliding_window: true, sliding_window: 3 };
    assert.equal(await reaches({ ...qwen3, max_window_layers: 1 }), 19);
    assert.equal(await reaches({ ...qwen3, max_window_layers: 0 }), 5 + 2 * 2 + 1);
  });
});

describe("weights that do not belong to their config.json", () => {
  it("are refused: too many biases, too few, norms that are missing", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await CausalLM.create({ ...TINY_LLAMA, attention_bias: true });
      await model.save(directory);
      const as = async (change: HfConfig): Promise<void> => {
        await writeFile(join(directory, "config.json"), JSON.stringify({ ...TINY_LLAMA, ...change }));
        (await CausalLM.load(directory)).dispose();
      };
      await as({ attention_bias: true });
      const refused = { code: "ERR_RLHF_WEIGHTS" };
      const bias = /layers\.0\.self_attn\.q_proj\.bias" is there, but config\.json.*attention_bias/;
      await assert.rejects(as({}), { ...refused, message: bias });
      const out = /o_proj\.bias" is there/;
      await assert.rejects(as({ model_type: "qwen2" }), { ...refused, message: out });
      await assert.rejects(as({ attention_bias: true, mlp_bias: true }), {
        ...refused,
        message: /gate_proj\.bias/,
      });
      const norms = { model_type: "qwen3", attention_bias: true };
      await assert.rejects(as(norms), { ...refused, message: /4 of .* are missing, first .*q_norm/ });
    });
  });
});

describe("the engine's own configuration", () => {
  it("is the same model under another family's name where the parts are the same", async () => {
    const weights = { ...TINY_LLAMA, initializer_range: 0.3 };
    using llama = await CausalLM.create(weights, { seed: 2 });
    using mistral = await CausalLM.create(
      { ...weights, model_type: "mistral", sliding_window: null },
      { seed: 2 },
    );
    assert.deepEqual(await logProbs(mistral), await logProbs(llama));
  });
});
