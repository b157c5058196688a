import assert from "node:assert/strict";
import type { ModelConfig } from "../../lib/engine/native.ts";
import {
  ADAPTER,
  createModel,
  HEAD,
  type KernelsModel,
  MICRO_GPT_NEOX,
  MICRO_GPT2,
  MICRO_LLAMA,
  MICRO_QWEN3,
  randomBatch,
  randomiseParameters,
  randomUpstream,
  TARGETS,
} from "../support/kernels-model.ts";

const LAYERS = 4;
const BATCH = randomBatch([5, 17, 1, 9], MICRO_LLAMA.vocab);

interface Training {
  readonly kind: string;
  readonly trainable: boolean;
  /** Linear layers of the adapter; left out: none is used. */
  readonly targets?: readonly string[];
  readonly dropout?: number;
}

function makeModel(config: ModelConfig, training: Training, recompute: boolean): KernelsModel {
  const model = createModel(
    { ...config, layers: LAYERS, windows: [] },
    { backend: "cpu", type: "float32", trainable: training.trainable, threads: 2 },
  );
  if (training.targets)
    model.addAdapter("policy", { ...ADAPTER, targetModules: training.targets, dropout: training.dropout });
  model.addHead("value", { ...HEAD, inner: 5 });
  randomiseParameters(model);
  model.setRecomputeLayers(recompute);
  return model;
}

/** Everything that a pass and its backward give, by name. */
function results(model: KernelsModel, training: Training): Record<string, Float64Array | null> {
  const adapter = training.targets ? "policy" : "";
  const pass = model.forward(BATCH, { adapter, head: "value", grad: true, dropoutSeed: 3 });
  model.backward(pass.pass, randomUpstream(BATCH.tokens.length, true));
  const gradients = model
    .parameters()
    .filter(({ trainable }) => trainable)
    .map(({ name }) => [name, model.gradient(name)] as const);
  const { logProb, lse, entropy, value } = pass;
  model.disposePass(pass.pass);
  return { logProb, lse, entropy, value, ...Object.fromEntries(gradients) };
}

describe("layer recomputation", () => {
  const families = {
    gpt2: MICRO_GPT2,
    llama: MICRO_LLAMA,
    qwen3: MICRO_QWEN3,
    gpt_neox: MICRO_GPT_NEOX,
  } as const;
  for (const [family, config] of Object.entries(families)) {
    const all = TARGETS[config.family];
    const trainings: Training[] = [
      { kind: "all weights", trainable: true },
      { kind: "an adapter on all layers", trainable: false, targets: all },
      { kind: "an adapter on all layers with dropout", trainable: false, targets: all, dropout: 0.3 },
      { kind: "an adapter on the first kind of layer", trainable: false, targets: all.slice(0, 1) },
      { kind: "an adapter on the last kind of layer", trainable: false, targets: all.slice(-1) },
    ];
    for (const training of trainings) {
      it(`gives ${family} the same bits, training ${training.kind}`, () => {
        const kept = results(makeModel(config, training, false), training);
        const recomputed = results(makeModel(config, training, true), training);
        assert.deepEqual(recomputed, kept);
        const names = Object.keys(kept).filter((name) => name.includes("layers.0") || name.includes("h.0"));
        assert.ok(
          names.some((name) => kept[name]?.some((gradient) => gradient !== 0)),
          "the first block's gradients are not zero",
        );
      });
    }
  }

  it("keeps the input of each layer in place of its activations", () => {
    const training = { kind: "", trainable: true };
    const [kept, recomputed] = [false, true].map((recompute) => {
      const model = makeModel(MICRO_LLAMA, training, recompute);
      results(model, training);
      return model.memory();
    }) as [Record<string, number>, Record<string, number>];
    // A Llama block keeps its input, both norms' outputs, the stream between, q, k, v, attention, gate, up and their product.
    assert.ok(recomputed["activations"]! < kept["activations"]!, "less memory for activations");
    for (const category of ["weights", "gradients", "logits"])
      assert.equal(recomputed[category], kept[category], category);
  });

  it("holds for as many passes as are alive, in any order", () => {
    const training = { kind: "", trainable: false, targets: TARGETS.llama };
    const run = (recompute: boolean): Record<string, Float64Array | null> => {
      const model = makeModel(MICRO_LLAMA, training, recompute);
      const batches = [randomBatch([3, 8], MICRO_LLAMA.vocab), randomBatch([20], MICRO_LLAMA.vocab)] as const;
      const passes = batches.map((batch) => model.forward(batch, { adapter: "policy", grad: true }));
      for (const [i, batch] of batches.entries())
        model.backward(passes[i]!.pass, randomUpstream(batch.tokens.length, false));
      const gradients = model.parameters().filter(({ group }) => group === "adapter:policy");
      return Object.fromEntries(gradients.map(({ name }) => [name, model.gradient(name)]));
    };
    assert.deepEqual(run(true), run(false));
  });
});
