import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CausalLM, type LoadOptions, packSequences } from "../../lib/index.ts";
import type { HfConfig } from "../../lib/model/config.ts";
import { randomSequences, TINY_GPT2, TINY_LLAMA } from "../support/tiny.ts";

/* A frozen model whose products have the type of its weights holds each matrix once, packed; nobody can tell but by the memory. */

const TIED_LLAMA = { ...TINY_LLAMA, tie_word_embeddings: true };
interface Kind {
  readonly name: string;
  readonly config: HfConfig;
  readonly options: LoadOptions;
  /** An embedding that is not the head as well, so that nothing multiplies by it. */
  readonly embeddingAlone?: string;
}

const NARROW: LoadOptions = { dtype: "bfloat16", compute: "bfloat16" };
const EMBEDDING = "model.embed_tokens.weight";
const KINDS: readonly Kind[] = [
  { name: "gpt2", config: TINY_GPT2, options: {} },
  { name: "llama", config: TINY_LLAMA, options: {}, embeddingAlone: EMBEDDING },
  { name: "llama with a tied head", config: TIED_LLAMA, options: {} },
  { name: "gpt2 in bfloat16", config: TINY_GPT2, options: NARROW },
  { name: "llama in bfloat16", config: TINY_LLAMA, options: NARROW, embeddingAlone: EMBEDDING },
];

const LORA = { r: 4, alpha: 8, targetModules: "all-linear" as const };

/** The same weights, held plainly: what trains is, and what is widened for products in float32. */
function usualCompute(options: LoadOptions): LoadOptions {
  return options.dtype ? { dtype: options.dtype } : { trainable: "all" };
}

async function allParameters(model: CausalLM): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>();
  for (const { name } of model.parameters()) values.set(name, await model.readParameter(name));
  return values;
}

async function logProbs(model: CausalLM): Promise<Float32Array> {
  const sequences = randomSequences([9, 30, 17], model.vocabSize);
  using pass = await model.forward(packSequences(sequences.map((tokens) => ({ tokens }))));
  return pass.logProb();
}

async function learn(model: CausalLM): Promise<void> {
  const sequences = randomSequences([9, 30], model.vocabSize);
  const batch = packSequences(sequences.map((tokens) => ({ tokens })));
  using pass = await model.forward(batch, { adapter: "policy", grad: true });
  await pass.backward({ dLogProb: new Float32Array(39).fill(1) });
}

describe("matrices that are held packed", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "node-rlhf-held-packed-"));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  for (const { name, config, options, embeddingAlone } of KINDS) {
    const elementBytes = options.dtype ? 2 : 4;

    it(`${name}: takes no memory for plain ones, whatever was read, written or learnt between`, async () => {
      using model = await CausalLM.create(config, { ...options, seed: 3 });
      const resting = model.memory();
      using plain = await CausalLM.create(config, { ...usualCompute(options), seed: 3 });
      const matrices = model
        .parameters()
        .filter(({ name, shape }) => shape.length === 2 && !(/wpe/.test(name) || name === embeddingAlone));
      const bytes = matrices.reduce((sum, { shape }) => sum + shape[0]! * shape[1]! * elementBytes, 0);
      const saved = plain.memory().weights - resting.weights;
      assert.ok(resting.packedWeights >= bytes);
      assert.ok(saved >= bytes && saved <= bytes + 64 * model.parameters().length, `${saved} of ${bytes}`);
      const expected = await logProbs(model);
      const written = model.parameters().find(({ shape }) => shape.length === 2)!.name;
      const values = await model.readParameter(written);
      await model.writeParameter(written, values);
      assert.deepEqual(await logProbs(model), expected);
      assert.deepEqual(model.memory().weights, resting.weights);
      await model.writeParameter(
        written,
        values.map((value) => 2 * value),
      );
      assert.notDeepEqual(await logProbs(model), expected);
      await model.writeParameter(written, values);
      model.addAdapter("policy", LORA);
      const adapted = model.memory().weights;
      await learn(model);
      assert.deepEqual(await logProbs(model), expected);
      assert.deepEqual(model.memory().weights, adapted);
    });

    it(`${name}: reads and saves the bits that were written, before and after passes`, async () => {
      using model = await CausalLM.create(config, { ...options, seed: 4 });
      model.addAdapter("policy", LORA);
      const before = await allParameters(model);
      await learn(model);
      assert.deepEqual(await allParameters(model), before);
      await model.save(join(folder, name));
      using loaded = await CausalLM.load(join(folder, name), options);
      for (const [parameter, values] of await allParameters(loaded))
        assert.deepEqual(values, before.get(parameter), parameter);
      assert.deepEqual(await logProbs(loaded), await logProbs(model));
    });
  }

  for (const [compute, saves] of [
    ["float32", true],
    ["bfloat16x3", true],
    ["bfloat16", false],
  ] as const)
    it(`${compute}: gradients without forms for backward products are the same`, async () => {
      const dtype = compute === "bfloat16" ? { dtype: compute } : {};
      const learnt = async (config: HfConfig, packsBackward: boolean) => {
        using model = await CausalLM.create(config, { compute, ...dtype, packsBackward, seed: 6 });
        model.addAdapter("policy", LORA);
        for (const { name } of model.parameters().filter((each) => each.name.includes("lora_B")))
          await model.writeParameter(
            name,
            (await model.readParameter(name)).map((_, i) => Math.sin(i)),
          );
        await learn(model);
        const batch = packSequences([{ tokens: new Int32Array(300).fill(5) }]);
        const loss = { kind: "nll", weight: batch.mask, scale: 1 } as const;
        (await model.forwardBackward(batch, loss, { adapter: "policy" })).dispose();
        const gradients = new Map<string, Float32Array>();
        for (const { name, trainable } of model.parameters())
          if (trainable) gradients.set(name, await model.readGradient(name));
        const packed = model.memory().packedWeights;
        model.packsBackward = false;
        return { gradients, packed, once: model.memory().packedWeights };
      };
      for (const small of [TINY_GPT2, TINY_LLAMA]) {
        const config = { ...small, vocab_size: 3000, n_positions: 512, max_position_embeddings: 512 };
        const [twice, once] = [await learnt(config, true), await learnt(config, false)];
        assert.deepEqual(once.gradients, twice.gradients);
        assert.equal(once.packed < twice.packed, saves);
        assert.equal(once.packed, once.once);
        assert.equal(twice.once, once.packed, "forms are let go of when they are not wanted any more");
      }
    });

  it("an adapter is merged and unmerged: the weights, and what they compute, are as before", async () => {
    using model = await CausalLM.create(TINY_GPT2, { seed: 5 });
    model.addAdapter("policy", LORA);
    for (const { name } of model.parameters().filter((each) => each.name.includes("lora_B")))
      await model.writeParameter(
        name,
        (await model.readParameter(name)).map((_, i) => Math.sin(i)),
      );
    const [values, expected] = [await allParameters(model), await logProbs(model)];
    await model.mergeAdapter("policy", { reversible: true });
    assert.notDeepEqual(await logProbs(model), expected);
    await model.unmergeAdapter("policy");
    assert.deepEqual(await allParameters(model), values);
    assert.deepEqual(await logProbs(model), expected);
  });
});
