import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../../lib/data/random.ts";
import type { DeviceName } from "../../lib/engine/device.ts";
import type { HfConfig } from "../../lib/model/config.ts";

/** Where the library computes in tests that any device can pass: the CPU, or what RLHF_TEST_DEVICE names (test/cuda/run.ts). */
export const testDevice = (process.env["RLHF_TEST_DEVICE"] ?? "cpu") as DeviceName;

/** A Llama small enough for tests: grouped queries, untied head. */
export const TINY_LLAMA: HfConfig = {
  model_type: "llama",
  vocab_size: 61,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 6,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  hidden_act: "silu",
  tie_word_embeddings: false,
  initializer_range: 0.3,
  eos_token_id: 2,
};

export const TINY_MISTRAL: HfConfig = { ...TINY_LLAMA, model_type: "mistral", sliding_window: 4 };

export const TINY_QWEN2: HfConfig = {
  ...TINY_LLAMA,
  model_type: "qwen2",
  use_sliding_window: true,
  sliding_window: 3,
  max_window_layers: 1,
};

export const TINY_QWEN3: HfConfig = {
  ...TINY_LLAMA,
  model_type: "qwen3",
  rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 16 },
};

export const TINY_GPT_NEOX: HfConfig = {
  model_type: "gpt_neox",
  vocab_size: 61,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  max_position_embeddings: 64,
  rotary_pct: 0.7,
  initializer_range: 0.3,
  eos_token_id: 2,
};

export const TINY_GPT2: HfConfig = {
  model_type: "gpt2",
  vocab_size: 53,
  n_embd: 24,
  n_layer: 2,
  n_head: 3,
  n_positions: 48,
  activation_function: "gelu_new",
  layer_norm_epsilon: 1e-5,
  initializer_range: 0.3,
  eos_token_id: 0,
};

/** One model of each family. */
export const TINY_FAMILIES = {
  llama: TINY_LLAMA,
  gpt2: TINY_GPT2,
  mistral: TINY_MISTRAL,
  qwen2: TINY_QWEN2,
  qwen3: TINY_QWEN3,
  gpt_neox: TINY_GPT_NEOX,
} as const;

/** Sequences of the given lengths, tokens drawn uniformly from [0, vocab). */
export function randomSequences(lengths: readonly number[], vocab: number, seed = 1): Int32Array[] {
  const random = new Random(seed, "test sequences");
  return lengths.map((length) => Int32Array.from({ length }, () => random.integer(vocab)));
}

/** Runs body with a fresh directory that is removed afterwards. */
export async function withTemporaryDirectory(body: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "node-rlhf-"));
  try {
    await body(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
