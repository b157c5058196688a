import assert from "node:assert/strict";
import { answerValues, CausalLM, type Pass, packAnswers, packSequences } from "../../lib/index.ts";
import { relativeDistance } from "../support/kernels-model.ts";
import { testDevice } from "../support/tiny.ts";

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
/** Layers wide enough for products that AMX makes where the CPU has it. */
const WIDE = { model_type: "gpt2", n_layer: 1, n_embd: 320, n_head: 10, n_positions: 384, vocab_size: 1031 };
type Family = keyof typeof CONFIGS | "a wide gpt2";
/** Only the CPU has such, and threads of its own. */
const FAMILIES: readonly Family[] = [
  ...(Object.keys(CONFIGS) as Family[]),
  ...(testDevice === "cpu" ? (["a wide gpt2"] as const) : []),
];
const THREADS = testDevice === "cpu" ? [1, 2] : [1];
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

async function build(family: Family, threads: number): Promise<CausalLM> {
  const sizes = family === "a wide gpt2" ? WIDE : CONFIGS[family];
  const config = { ...sizes, initializer_range: 0.2 };
  const model = await CausalLM.create(config, { device: testDevice, threads, trainable: "all", seed: 3 });
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

/** Prompts below, at and above the size of attention's tiles, with one to three answers. */
function sharedPrompts(): { prompt: Int32Array; answers: Int32Array[] }[] {
  const [a, , b, c, d, e, f] = randomSequences() as [Int32Array, ...Int32Array[]];
  return [
    { prompt: a!.slice(0, 100), answers: [b!, f!.slice(0, 200), d!] },
    { prompt: d!, answers: [c!, e!] },
    { prompt: f!.slice(0, 1), answers: [b!] },
    { prompt: c!, answers: [e!.slice(0, 1), a!.slice(0, 255)] },
  ];
}

async function gradientsOf(model: CausalLM): Promise<Map<string, Float32Array>> {
  const gradients = new Map<string, Float32Array>();
  for (const { name } of model.parameters()) gradients.set(name, await model.readGradient(name));
  return gradients;
}

const PASS = { adapter: "policy", head: "value", temperature: 0.9, grad: true } as const;

/** Per-token results of the answers and the gradients, each answer packed with a copy of its prompt. */
async function scoreUnshared(
  model: CausalLM,
): Promise<{ results: Result[]; gradients: Map<string, Float32Array> }> {
  const sequences = sharedPrompts().flatMap(({ prompt, answers }) =>
    answers.map((answer) => ({ tokens: Int32Array.of(...prompt, ...answer), promptLength: prompt.length })),
  );
  const batch = packSequences(sequences);
  const pass = await model.forward(batch, PASS);
  const cut = (values: Float32Array): Float32Array[] =>
    sequences.map(({ promptLength }, s) =>
      values.slice(batch.offsets[s]! + promptLength, batch.offsets[s + 1]),
    );
  return collect(model, pass, cut, (upstream) => {
    const out = new Float32Array(batch.tokens.length);
    for (const [s, values] of upstream.entries())
      out.set(values, batch.offsets[s]! + sequences[s]!.promptLength);
    return out;
  });
}

/** The same with each prompt once. */
async function scoreShared(
  model: CausalLM,
): Promise<{ results: Result[]; gradients: Map<string, Float32Array> }> {
  const batch = packAnswers(sharedPrompts());
  const pass = await model.forward(batch, PASS);
  return collect(
    model,
    pass,
    (values) => answerValues(batch, values),
    (upstream) => {
      const out = new Float32Array(batch.tokens.length);
      for (const [answer, values] of upstream.entries())
        out.set(values, batch.offsets[batch.answers[answer]!]);
      return out;
    },
  );
}

/** `cut` takes the answers' values out of a batch's array, `spread` puts them back. */
async function collect(
  model: CausalLM,
  pass: Pass,
  cut: (values: Float32Array) => Float32Array[],
  spread: (answers: Float32Array[]) => Float32Array,
): Promise<{ results: Result[]; gradients: Map<string, Float32Array> }> {
  const [logProb, entropy, value] = [
    cut(await pass.logProb()),
    cut(await pass.entropy()),
    cut(await pass.value()),
  ];
  const upstream = (phase: number): Float32Array =>
    spread(logProb.map((values, answer) => values.map((_, t) => Math.cos(phase + 3 * answer + t))));
  await pass.backward({ dLogProb: upstream(0), dEntropy: upstream(1), dValue: upstream(2) });
  const results = logProb.map((values, i) => ({ logProb: values, entropy: entropy[i]!, value: value[i]! }));
  return { results, gradients: await gradientsOf(model) };
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

  for (const family of FAMILIES) {
    it(`${family}: alone, in a batch, in any micro-batch split, on 1 or 2 threads, kept for backward or not`, async () => {
      using reference = await build(family, 1);
      const expected = await score(reference, [everyone], false);
      assert.ok(
        expected[0]!.logProb.some((value) => value < -0.01),
        "log-probs are not trivial",
      );
      for (const threads of THREADS) {
        using model = await build(family, threads);
        for (const [how, groups] of Object.entries(splits)) {
          for (const grad of [false, true]) {
            const actual = await score(model, groups, grad);
            assert.deepEqual(actual, expected, `${how}, ${threads} thread(s), grad ${grad}`);
          }
        }
      }
    });

    it(`${family}: with a copy of the prompt for each answer or one for all, and gradients are within 1e-6`, async () => {
      using model = await build(family, 1);
      const expected = await scoreUnshared(model);
      const gradients: Map<string, Float32Array>[] = [];
      for (const threads of [1, 2]) {
        using sharing = await build(family, threads);
        const shared = await scoreShared(sharing);
        assert.deepEqual(shared.results, expected.results, `${threads} thread(s)`);
        gradients.push(shared.gradients);
      }
      assert.deepEqual(gradients[1], gradients[0]);
      for (const [name, gradient] of gradients[0]!) {
        const distance = relativeDistance(
          Float64Array.from(gradient),
          Float64Array.from(expected.gradients.get(name)!),
        );
        assert.ok(distance <= 1e-6, `${name}: ${distance}`);
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
