import { CausalLM, estimateMemory, packSequences } from "../../lib/index.ts";
import { randomSequences } from "./tiny.ts";

/**
 * Run in a process of its own by test/model/memory.test.ts: trains a model of 25 million weights for two steps and tells, as JSON,
 * what the estimate said and by how many bytes the process grew.
 */
const CONFIG = {
  model_type: "llama",
  vocab_size: 8192,
  hidden_size: 512,
  intermediate_size: 1536,
  num_hidden_layers: 5,
  num_attention_heads: 8,
  num_key_value_heads: 8,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
  tie_word_embeddings: false,
  eos_token_id: 2,
};
const SEQUENCES = 4;
const LENGTH = 128;

/** Bytes of the process that are in memory. Files mapped into it count, but these are there before the model is. */
function residentBytes(): number {
  (globalThis as { gc?: () => void }).gc?.();
  return process.memoryUsage.rss();
}

const engine = { threads: 1 };
const workload = { maxTokens: SEQUENCES * LENGTH, maxSequences: SEQUENCES };
const estimate = await estimateMemory({ model: CONFIG, trainable: "all", ...workload }, engine);
const before = residentBytes();
const model = await CausalLM.create(CONFIG, { ...engine, trainable: "all" });
const optimizer = model.createOptimizer();
const batch = packSequences(
  randomSequences(
    Array.from({ length: SEQUENCES }, () => LENGTH),
    8192,
  ).map((tokens) => ({ tokens })),
);
for (let step = 0; step < 2; step++) {
  const pass = await model.forward(batch, { grad: true });
  await pass.backward({ dLogProb: new Float32Array(batch.tokens.length).fill(-1e-3) });
  await optimizer.step({ learningRate: 1e-4 });
}
const grown = residentBytes() - before;
console.log(JSON.stringify({ estimate: estimate.total, bytes: estimate.bytes, grown }));
