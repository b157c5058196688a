import type { SftRow, TextOrMessages } from "../data/types.ts";
import { CausalLM, type LoadOptions } from "../model/causal-lm.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { trainTokenizer } from "../tokenizer/train.ts";
import type { InitConfig } from "./schema.ts";

const DEFAULT_MAX_POSITIONS = 512;

/** Gated feed-forward layers have three matrices where plain ones have two: 8/3 of the width keeps the parameters of 4. */
function defaultIntermediateSize(hidden: number): number {
  const multiple = 16;
  return Math.ceil((8 * hidden) / 3 / multiple) * multiple;
}

function contents(value: TextOrMessages): string[] {
  return typeof value === "string" ? [value] : value.map((message) => message.content);
}

function* textsOf(rows: readonly SftRow[]): Generator<string> {
  for (const row of rows) {
    if ("messages" in row) yield* contents(row.messages);
    else if (typeof row.prompt === "string" && typeof row.response === "string")
      yield row.prompt + row.response;
    else yield* [row.prompt, row.response].flatMap(contents);
  }
}

/** The config.json of a new model. */
function hfConfig(init: InitConfig, tokenizer: Tokenizer): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: init.family,
    vocab_size: tokenizer.vocabSize,
    hidden_size: init.hidden_size,
    intermediate_size: init.intermediate_size ?? defaultIntermediateSize(init.hidden_size),
    num_hidden_layers: init.num_layers,
    num_attention_heads: init.num_heads,
    num_key_value_heads: init.num_kv_heads ?? init.num_heads,
    max_position_embeddings: init.max_position_embeddings ?? DEFAULT_MAX_POSITIONS,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    hidden_act: "silu",
    attention_bias: false,
    mlp_bias: false,
    tie_word_embeddings: init.tie_word_embeddings ?? true,
    initializer_range: 0.02,
    bos_token_id: tokenizer.bosTokenId,
    eos_token_id: tokenizer.eosTokenId,
    pad_token_id: tokenizer.padTokenId,
  };
}

/** A new model with random weights and a tokenizer trained on the rows' texts; the same seed and rows give the same two. */
export async function initModel(
  init: InitConfig,
  rows: readonly SftRow[],
  options: LoadOptions & { readonly seed: number },
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  const modelMaxLength = init.max_position_embeddings ?? DEFAULT_MAX_POSITIONS;
  const tokenizer = trainTokenizer(textsOf(rows), { vocabSize: init.vocab_size, modelMaxLength });
  const model = await CausalLM.create(hfConfig(init, tokenizer), options);
  return { model, tokenizer };
}
