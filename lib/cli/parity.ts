import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../data/random.ts";
import { packSequences } from "../model/batch.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { writeSafetensors } from "../model/safetensors.ts";
import { type ReferenceConfig, randomWeights, referenceLogProbs } from "./reference-llama.ts";

/** Odd sizes on purpose: they leave remainders in every vectorised loop. */
const CONFIG: ReferenceConfig = {
  vocab_size: 67,
  hidden_size: 40,
  intermediate_size: 58,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
};

const SEQUENCE_LENGTHS = [1, 7, 33];

/** Log-probs near 4 in float32 after some dozens of roundings; a wrong kernel is off by far more. */
export const PARITY_LIMIT = 2e-5;

export interface ParityResult {
  readonly tokens: number;
  /** Largest difference between the engine's log-probs and the reference's. */
  readonly largestError: number;
}

/** Compares the engine's log-probs on a tiny random Llama with a float64 forward pass in JavaScript. */
export async function checkParity(threads?: number): Promise<ParityResult> {
  const random = new Random(0, "doctor");
  const weights = randomWeights(CONFIG, random);
  const sequences = SEQUENCE_LENGTHS.map((length) =>
    Int32Array.from({ length }, () => random.integer(CONFIG.vocab_size)),
  );
  const directory = await mkdtemp(join(tmpdir(), "node-rlhf-doctor-"));
  try {
    const config = {
      ...CONFIG,
      model_type: "llama",
      hidden_act: "silu",
      tie_word_embeddings: true,
      max_position_embeddings: 64,
    };
    await writeFile(join(directory, "config.json"), JSON.stringify(config));
    const tensors = [...weights].map(([name, { shape, values }]) => ({
      name,
      shape,
      read: async () => values,
    }));
    await writeSafetensors(join(directory, "model.safetensors"), tensors);
    using model = await CausalLM.load(directory, { device: "cpu", threads, trainable: "none" });
    using pass = await model.forward(packSequences(sequences.map((tokens) => ({ tokens }))), { grad: false });
    const actual = await pass.logProb();
    const expected = sequences.flatMap((tokens) => referenceLogProbs(CONFIG, weights, tokens));
    const largestError = expected.reduce(
      (largest, value, index) => Math.max(largest, Math.abs(value - (actual[index] as number))),
      0,
    );
    return { tokens: expected.length, largestError };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
