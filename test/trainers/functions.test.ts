import assert from "node:assert/strict";
import {
  applyLoraToModel,
  CausalLM,
  computeAdvantages,
  computeDpoLoss,
  computeLogProbs,
  computePreferenceLoss,
  findTargetModules,
  getLoraParameters,
  LoRALinear,
  loadModel,
  mergeLoraWeights,
  PreferenceDataset,
  packSequences,
  printTrainableParameters,
  ValueHead,
} from "../../lib/index.ts";
import { assertAllNear } from "../support/near.ts";
import { TINY_GPT_NEOX, TINY_GPT2, TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";
import { preferenceRows, tinyModel, tinyTokenizer } from "./support.ts";

describe("functions that tutorials name", () => {
  // Golden values of design/ALGORITHMS.md: k1 at β 0.05, score 1 at the last token.
  const rewards = [-0.05 * (-1 - -1.2), -0.05 * (-2 - -1.5), -0.05 * 0 + 1];

  it("computeAdvantages: golden values, and returns = advantages + values", async () => {
    const values = [0.1, 0.2, 0.3];
    const { advantages, returns } = await computeAdvantages(rewards, values);
    assertAllNear(advantages, [0.8405, 0.79, 0.7], 1e-6);
    assertAllNear(returns, [0.9405, 0.99, 1], 1e-6);
  });

  it("computePreferenceLoss: golden values", async () => {
    const plain = await computePreferenceLoss([1.2], [0.3]);
    assertAllNear([plain.loss, plain.accuracy], [0.341154, 1], 1e-6);
    const withMargin = await computePreferenceLoss([1.2], [0.3], 0.5);
    assertAllNear([withMargin.loss], [0.513015], 1e-6);
    assert.equal((await computePreferenceLoss([1, 0], [0, 1])).accuracy, 0.5);
  });

  it("computeDpoLoss: golden values, rewards and gradients", async () => {
    const plain = await computeDpoLoss([-10], [-14], [-11], [-12]);
    assertAllNear([plain.loss, plain.accuracy], [0.554355, 1], 1e-6);
    assertAllNear(plain.chosenRewards, [0.1], 1e-6);
    assertAllNear(plain.rejectedRewards, [-0.2], 1e-6);
    const slope = 0.1 / (1 + Math.exp(0.3));
    assertAllNear(plain.dPolicyChosen, [-slope], 1e-6);
    assertAllNear(plain.dPolicyRejected, [slope], 1e-6);
    const smoothed = await computeDpoLoss([-10], [-14], [-11], [-12], { labelSmoothing: 0.1 });
    assertAllNear([smoothed.loss], [0.584355], 1e-6);
    const two = await computeDpoLoss([-10, -9], [-14, -9], [-11, -9], [-12, -8], {
      beta: 0.2,
      type: "hinge",
    });
    assertAllNear([two.loss, two.accuracy], [(1 - 0.6 + 1 - 0.2) / 2, 1], 1e-6);
    await assert.rejects(computeDpoLoss([-10, -9], [-14], [-11], [-12]), { code: "ERR_RLHF_SHAPE" });
    await assert.rejects(computeDpoLoss([-10], [-14], [-11], [-12, -3]), { code: "ERR_RLHF_SHAPE" });
  });

  it("computeLogProbs is the forward pass's logProb", async () => {
    const tokenizer = tinyTokenizer();
    using model = await tinyModel(tokenizer);
    const batch = packSequences([{ tokens: tokenizer.encode("Ann wants two eggs.") }]);
    using pass = await model.forward(batch, { temperature: 0.5 });
    assert.deepEqual(await computeLogProbs(model, batch, { temperature: 0.5 }), await pass.logProb());
  });

  it("adapters: findTargetModules, getLoraParameters, printTrainableParameters", async () => {
    using model = await tinyModel(tinyTokenizer(), "none");
    const modules = findTargetModules(model);
    assert.ok(modules.includes("q_proj") && modules.includes("down_proj"), `${modules}`);
    model.addAdapter("policy", { r: 2, alpha: 4, targetModules: ["q_proj"] });
    const names = getLoraParameters(model, "policy").map((parameter) => parameter.name);
    assert.equal(names.length, 4);
    assert.ok(
      names.every((name) => /^policy:.*q_proj\.lora_[AB]$/.test(name)),
      `${names}`,
    );
    const lines: string[] = [];
    const { trainable, all } = printTrainableParameters(model, (line) => lines.push(line));
    // Two layers of A [2, 24] and B [24, 2].
    assert.equal(trainable, 192);
    assert.match(lines[0] as string, /^trainable params: 192 \|\| all params: [\d,]+ \|\| trainable%: \d/);
    assert.ok(all > trainable);
  });

  for (const [family, config, module] of [
    ["llama", TINY_LLAMA, "model.layers.1.mlp.up_proj"],
    ["gpt2", TINY_GPT2, "transformer.h.1.attn.c_attn"],
    ["gpt_neox", TINY_GPT_NEOX, "gpt_neox.layers.1.attention.query_key_value"],
  ] as const) {
    it(`applyLoraToModel, LoRALinear and mergeLoraWeights agree on what a layer computes: ${family}`, async () => {
      using model = await CausalLM.create(config, { seed: 5 });
      assert.equal(applyLoraToModel(model, { r: 3, targetModules: "all-linear" }), model);
      assert.equal(model.adapters.get("default")?.alpha, 32);
      const b = `default:${module}.lora_B`;
      await model.writeParameter(
        b,
        (await model.readParameter(b)).map((_, i) => Math.sin(i)),
      );
      const layer = await LoRALinear.of(model, "default", module);
      const weight = await layer.mergedWeight();
      const x = Float32Array.from({ length: 2 * layer.inFeatures }, (_, i) => Math.cos(i));
      const zero = { loraA: new Float32Array(layer.inFeatures), loraB: new Float32Array(layer.outFeatures) };
      const names = model.parameters().map((parameter) => parameter.name);
      const bias = names.includes(`${module}.bias`)
        ? { bias: await model.readParameter(`${module}.bias`) }
        : {};
      const plain = new LoRALinear({ weight, ...bias, ...zero, r: 1, alpha: 1 });
      const [adapted, merged] = [layer.forward(x), plain.forward(x)];
      assert.equal(adapted.length, 2 * layer.outFeatures);
      adapted.forEach((value, i) => {
        assert.ok(Math.abs(value - (merged[i] as number)) < 1e-4, `${i}: ${value} and ${merged[i]}`);
      });
      await mergeLoraWeights(model);
      assert.equal(model.adapters.size, 0);
      const stored = await model.readParameter(`${module}.weight`);
      weight.forEach((value, i) => {
        const [row, column] = [Math.floor(i / layer.inFeatures), i % layer.inFeatures];
        const at = family === "gpt2" ? column * layer.outFeatures + row : i;
        assert.ok(Math.abs(value - (stored[at] as number)) < 1e-5, `weight ${i}`);
      });
      await assert.rejects(mergeLoraWeights(model), { code: "ERR_RLHF_ARGUMENT", message: /none/ });
      await assert.rejects(LoRALinear.of(model, "default", module), { code: "ERR_RLHF_UNKNOWN_NAME" });
    });
  }

  it("ValueHead gives the head's value of every token, and takes it off again", async () => {
    using model = await tinyModel(tinyTokenizer(), "none");
    const batch = packSequences([{ tokens: [4, 5, 6] }, { tokens: [7] }]);
    const head = new ValueHead(model, { initStd: 1, seed: 3 });
    using pass = await model.forward(batch, { head: "value" });
    const values = await head.forward(batch);
    assert.deepEqual(values, await pass.value());
    assert.ok(values.every((value) => value !== 0));
    assert.equal(head.parameters.length, 4);
    head.dispose();
    assert.equal(model.heads.size, 0);
  });

  it("PreferenceDataset pads the pairs of a batch at their end", () => {
    const tokenizer = tinyTokenizer();
    const dataset = new PreferenceDataset(preferenceRows, tokenizer);
    assert.equal(dataset.length, preferenceRows.length);
    const { chosen, rejected, margins } = dataset.batch([0, 1]);
    assert.deepEqual([...margins], [0, 0]);
    assert.deepEqual(
      [...rejected.promptLengths],
      [0, 1].map((index) => dataset.get(index).rejected.promptLength),
    );
    const texts = [0, 1].map((index) => dataset.get(index).chosen.tokens);
    assert.equal(chosen.columns, Math.max(...texts.map((tokens) => tokens.length)));
    texts.forEach((tokens, row) => {
      const begin = row * chosen.columns;
      const width = chosen.attentionMask.subarray(begin, begin + chosen.columns);
      assert.equal(width.indexOf(0) === -1 ? width.length : width.indexOf(0), tokens.length);
      assert.deepEqual(chosen.inputIds.slice(begin, begin + tokens.length), tokens);
      const { promptLength } = dataset.get(row).chosen;
      const learnt = [...chosen.lossMask.subarray(begin, begin + chosen.columns)];
      assert.deepEqual(
        learnt,
        learnt.map((_, t) => (t >= promptLength && t < tokens.length ? 1 : 0)),
      );
      const padding = chosen.inputIds.subarray(begin + tokens.length, begin + chosen.columns);
      assert.ok(padding.every((id) => id === tokenizer.padTokenId));
    });
    assert.throws(() => dataset.get(99), { code: "ERR_RLHF_ARGUMENT" });
    assert.equal([...dataset].length, dataset.length);
  });

  it("loadModel gives model, tokenizer and device of a directory", async () => {
    await withTemporaryDirectory(async (directory) => {
      const tokenizer = tinyTokenizer();
      using made = await tinyModel(tokenizer);
      await made.save(directory);
      await tokenizer.save(directory);
      const loaded = await loadModel(directory);
      using model = loaded.model;
      assert.equal(model.vocabSize, loaded.tokenizer.vocabSize);
      assert.equal(loaded.device, "cpu");
    });
  });
});
