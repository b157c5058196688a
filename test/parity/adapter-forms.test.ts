import assert from "node:assert/strict";
import { CausalLM, packSequences, RewardModel } from "../../lib/index.ts";
import { testDevice } from "../support/tiny.ts";
import { assertClose, assertElementsClose, norm } from "./compare.ts";
import { modelDirectory, REFERENCE, readJson } from "./reference.ts";

interface Form {
  readonly scales: Readonly<Record<string, number>>;
  readonly logProb: readonly number[];
  readonly gradientNorms: Readonly<Record<string, number>>;
  readonly merged: readonly number[];
  readonly unmerged: readonly number[];
  readonly dropped?: {
    readonly seed: number;
    readonly logProb: readonly number[];
    readonly gradientNorms: Readonly<Record<string, number>>;
  };
}

interface Base<Adapter> {
  readonly tokens: readonly number[];
  readonly offsets: readonly number[];
  readonly adapters: Readonly<Record<string, Adapter>>;
}

const FORMS = readJson<Readonly<Record<string, Base<Form>>>>("adapter-forms.json");

function sequencesOf({ tokens, offsets }: Base<unknown>): Int32Array[] {
  return offsets.slice(1).map((end, i) => Int32Array.from(tokens.slice(offsets[i], end)));
}

describe("forms of LoRA against peft", () => {
  for (const base of ["gpt2", "llama"]) {
    it(`${base}: adapters side by side, switched, merged and unmerged`, async () => {
      const reference = FORMS[base]!;
      const forms = Object.entries(reference.adapters);
      const batch = packSequences(sequencesOf(reference).map((tokens) => ({ tokens })));
      const ones = new Float32Array(batch.tokens.length).fill(1);
      using model = await CausalLM.load(modelDirectory(base), { device: testDevice });
      const logProb = async (adapter?: string): Promise<Float32Array> => {
        using pass = await model.forward(batch, adapter === undefined ? {} : { adapter });
        return await pass.logProb();
      };
      const plain = await logProb();
      for (const [name] of forms) await model.loadAdapter(name, `${REFERENCE}adapters/${name}`);
      for (const [name, expected] of forms) {
        const { layers } = model.adapters.get(name)!;
        assert.deepEqual([...layers.keys()].sort(), Object.keys(expected.scales).sort());
        for (const [module, { scale }] of layers)
          assertClose(scale, expected.scales[module]!, 1e-12, `scale of ${module}`);

        const pass = await model.forward(batch, { adapter: name, grad: true });
        assertElementsClose(await pass.logProb(), expected.logProb, 2e-5, name);
        await pass.backward({ dLogProb: ones });
        const gradients = Object.entries(expected.gradientNorms);
        assert.equal(gradients.length, 2 * layers.size);
        for (const [parameter, size] of gradients)
          assertClose(norm(await model.readGradient(`${name}:${parameter}`)), size, 2e-4, parameter);

        await model.mergeAdapter(name, { reversible: true });
        assertElementsClose(await logProb(), expected.merged, 3e-5, `${name} merged`);
        await model.unmergeAdapter(name);
        assertElementsClose(await logProb(name), expected.unmerged, 2e-5, `${name} unmerged`);
        assert.deepEqual(await logProb(), plain);
      }
    });
  }

  it("llama: a training pass with dropout, whose masks a script computed anew and put into peft's layers", async () => {
    const reference = FORMS["llama"]!;
    const { seed, logProb, gradientNorms } = reference.adapters["llama-patterns"]!.dropped!;
    const batch = packSequences(sequencesOf(reference).map((tokens) => ({ tokens })));
    using model = await CausalLM.load(modelDirectory("llama"), { device: testDevice });
    await model.loadAdapter("policy", `${REFERENCE}adapters/llama-patterns`);
    assert.equal(model.adapters.get("policy")?.dropout, 0.1);
    const pass = await model.forward(batch, { adapter: "policy", grad: true, dropoutSeed: seed });
    assertElementsClose(await pass.logProb(), logProb, 2e-5, "log-prob");
    await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(1) });
    for (const [parameter, size] of Object.entries(gradientNorms))
      assertClose(norm(await model.readGradient(`policy:${parameter}`)), size, 2e-4, parameter);
  });

  it("a reward model's adapter, saved by peft with its head, gives its rewards on a base that is lent", async () => {
    const [base, name] = ["reward-llama", "reward-llama-adapter"];
    const reference = readJson<Record<string, Base<{ rewards: number[] }>>>("adapter-forms.json")[base]!;
    using backbone = await CausalLM.load(modelDirectory(base), { device: testDevice });
    using reward = await RewardModel.load(`${REFERENCE}adapters/${name}`, { backbone });
    const rewards = await reward.score(sequencesOf(reference));
    assertElementsClose(rewards, reference.adapters[name]!.rewards, 2e-5, "reward");
  });
});
