/**
 * The public API on a model so small that what is timed is mostly calls, queueing and copies: runs per second.
 *
 *   npx tsx bench/api.ts
 */
import Benchmark from "benchmark";
import { CausalLM, packSequences } from "../lib/index.ts";

const model = await CausalLM.create(
  {
    model_type: "llama",
    vocab_size: 64,
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 64,
  },
  { trainable: "all" },
);
const sequence = { tokens: Int32Array.from({ length: 16 }, (_, i) => i) };
const batch = packSequences([sequence, sequence]);
const dLogProb = new Float32Array(batch.tokens.length).fill(1);

const suite = new Benchmark.Suite();

/** Adds an asynchronous case. A failure ends the case and is printed. */
function add(name: string, body: () => Promise<unknown>): void {
  suite.add(name, {
    defer: true,
    fn: (deferred: { resolve(): void; benchmark: { abort(): void } }) => {
      body().then(
        () => deferred.resolve(),
        (error: unknown) => {
          console.error(`${name}:`, error);
          process.exitCode = 1;
          deferred.benchmark.abort();
        },
      );
    },
  });
}

add("forward and read", async () => {
  using pass = await model.forward(batch);
  await pass.logProb();
});
add("forward and backward", async () => {
  const pass = await model.forward(batch, { grad: true });
  await pass.backward({ dLogProb });
});
add("generate 8 tokens", () => model.generate([sequence.tokens], { maxNewTokens: 8, stop: [] }));

suite.on("cycle", (event: { target: unknown }) => console.log(String(event.target)));
suite.on("complete", () => model.dispose());
suite.run({ async: true });
