import assert from "node:assert/strict";
import { CausalLM, packSequences } from "../../lib/index.ts";

/** Large enough that sequences span several attention tiles and a pass several row blocks of every matrix product. */
const CONFIGS = {
  gpt2: { model_type: "gpt2", n_layer: 2, n_embd: 96, n_head: 4, n_positions: 384, vocab_size: 1031 },
  llama: {
    model_type: "llama",
    num_hidden_layers: 2,
    hidden_size: 96,
    intermediate_size: 200,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    head_dim: 16,
    vocab_size: 1031,
    max_position_embeddings: 384,
    tie_word_embeddings: false,
    rms_norm_eps: 1e-5,
    hidden_act: "silu",
  },
  /** Windows that end within tiles, norms of heads. */
  qwen3: {
    model_type: "qwen3",
    num_hidden_layers: 2,
    hidden_size: 96,
    intermediate_size: 200,
    num_attention_heads: 6,
    num_key_value_heads: 2,
    head_dim: 16,
    vocab_size: 1031,
    max_position_embeddings: 384,
    use_sliding_window: true,
    sliding_window: 77,
    max_window_layers: 1,
  },
  gpt_neox: {
    model_type: "gpt_neox",
    num_hidden_layers: 2,
    hidden_size: 96,
    intermediate_size: 200,
    num_attention_heads: 4,
    vocab_size: 1031,
    max_position_embeddings: 384,
  },
};
const LENGTHS = [300, 1, 17, 129, 64, 2, 255];

interface Result {
  logProb: Float32Array;
  entropy: Float32Array;
  value: Float32Array;
}

function randomSequences(): Int32Array[] {
  let state = 7;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * 1031);
  };
  return LENGTHS.map((length) => Int32Array.from({ length }, next));
}

async function build(family: keyof typeof CONFIGS, threads: number): Promise<CausalLM> {
  const config = { ...CONFIGS[family], initializer_range: 0.2 };
  const model = await CausalLM.create(config, { device: "cpu", threads, trainable: "all", seed: 3 });
  model.addAdapter("policy", { r: 5, alpha: 10, targetModules: "all-linear", seed: 4 });
  model.addHead("value", { kind: "mlp", initStd: 0.1, seed: 5 });
  for (const { name, shape } of model.parameters()) {
    if (!name.endsWith(".lora_B")) continue;
    const count = shape.reduce((product, size) => product * size, 1);
    await model.writeParameter(
      name,
      Float32Array.from({ length: count }, (_, i) => Math.sin(i) / 10),
    );
  }
  return model;
}

/** Per-token results of every sequence when `groups` says which sequences share a forward pass. */
async function score(model: CausalLM, groups: number[][], grad: boolean): Promise<Result[]> {
  const sequences = randomSequences();
  const out: Result[] = [];
  for (const group of groups) {
    const batch = packSequences(group.map((index) => ({ tokens: sequences[index]! })));
    using pass = await model.forward(batch, { adapter: "policy", head: "value", temperature: 0.9, grad });
    const [logProb, entropy, value] = [await pass.logProb(), await pass.entropy(), await pass.value()];
    for (const [position, index] of group.entries()) {
      const cut = (values: Float32Array): Float32Array =>
        values.slice(batch.offsets[position], batch.offsets[position + 1]);
      out[index] = { logProb: cut(logProb), entropy: cut(entropy), value: cut(value) };
    }
  }
  return out;
}

describe("a token's log-prob, entropy and value are bitwise the same", () => {
  const everyone = LENGTHS.map((_, index) => index);
  const splits: Record<string, number[][]> = {
    alone: everyone.map((index) => [index]),
    "in one batch": [everyone],
    "in another order": [everyone.toReversed()],
    "in micro-batches": [
      [1, 6],
      [0, 2, 5],
      [3, 4],
    ],
  };

  for (const family of ["gpt2", "llama", "qwen3", "gpt_neox"] as const) {
    it(`${family}: alone, in a batch, in any micro-batch split, on 1 or 2 threads, kept for backward or not`, async () => {
      using reference = await build(family, 1);
      const expected = await score(reference, [everyone], false);
      assert.ok(
        expected[0]!.logProb.some((value) => value < -0.01),
        "log-probs are not trivial",
      );
      for (const threads of [1, 2]) {
        using model = await build(family, threads);
        for (const [how, groups] of Object.entries(splits)) {
          for (const grad of [false, true]) {
            const actual = await score(model, groups, grad);
            assert.deepEqual(actual, expected, `${how}, ${threads} thread(s), grad ${grad}`);
          }
        }
      }
    });

    it(`${family}: gradients are bitwise the same on 1 and 2 threads`, async () => {
      const gradients: Float32Array[][] = [];
      for (const threads of [1, 2]) {
        using model = await build(family, threads);
        const batch = packSequences(randomSequences().map((tokens) => ({ tokens })));
        const pass = await model.forward(batch, { adapter: "policy", head: "value", grad: true });
        const upstream = Float32Array.from(batch.tokens, (_, i) => Math.cos(i));
        await pass.backward({ dLogProb: upstream, dEntropy: upstream, dValue: upstream });
        const all: Float32Array[] = [];
        for (const { name } of model.parameters()) all.push(await model.readGradient(name));
        gradients.push(all);
      }
      assert.deepEqual(gradients[1], gradients[0]);
    });
  }
});
