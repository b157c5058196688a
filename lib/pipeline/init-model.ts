import type { SftRow, TextOrMessages } from "../data/types.ts";
import { CausalLM } from "../model/causal-lm.ts";
import { architectureOf, type HfConfig } from "../model/config.ts";
import type { LoadOptions } from "../model/model-options.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { trainTokenizer } from "../tokenizer/train.ts";
import type { InitConfig } from "./schema.ts";

const DEFAULT_MAX_POSITIONS = 512;

/** Gated feed-forward layers have three matrices where plain ones have two: 8/3 of the width keeps the parameters of 4. */
function gatedWidth(hidden: number): number {
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

function gpt2Config(init: InitConfig): HfConfig {
  return {
    n_embd: init.hidden_size,
    n_inner: init.intermediate_size ?? 4 * init.hidden_size,
    n_layer: init.num_layers,
    n_head: init.num_heads,
    n_positions: init.max_position_embeddings ?? DEFAULT_MAX_POSITIONS,
    layer_norm_epsilon: 1e-5,
    activation_function: "gelu_new",
  };
}

function gptNeoXConfig(init: InitConfig): HfConfig {
  return {
    ...sizes(init),
    intermediate_size: init.intermediate_size ?? 4 * init.hidden_size,
    layer_norm_eps: 1e-5,
    hidden_act: "gelu",
    attention_bias: true,
    use_parallel_residual: true,
    rotary_emb_base: 10000,
    rotary_pct: 0.25,
  };
}

function llamaConfig(init: InitConfig): HfConfig {
  return { ...llamaLikeConfig(init), ...headDim(init), attention_bias: false, mlp_bias: false };
}

function mistralConfig(init: InitConfig): HfConfig {
  return { ...llamaLikeConfig(init), ...headDim(init), sliding_window: init.sliding_window ?? null };
}

function qwen2Config(init: InitConfig): HfConfig {
  return { ...llamaLikeConfig(init), ...windows(init) };
}

function qwen3Config(init: InitConfig): HfConfig {
  const head_dim = init.head_dim ?? Math.floor(init.hidden_size / init.num_heads);
  return { ...llamaLikeConfig(init), ...windows(init), head_dim, attention_bias: false };
}

function llamaLikeConfig(init: InitConfig): HfConfig {
  return {
    ...sizes(init),
    intermediate_size: init.intermediate_size ?? gatedWidth(init.hidden_size),
    num_key_value_heads: init.num_kv_heads ?? init.num_heads,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    hidden_act: "silu",
  };
}

function sizes(init: InitConfig): HfConfig {
  return {
    hidden_size: init.hidden_size,
    num_hidden_layers: init.num_layers,
    num_attention_heads: init.num_heads,
    max_position_embeddings: init.max_position_embeddings ?? DEFAULT_MAX_POSITIONS,
  };
}

function headDim(init: InitConfig): HfConfig {
  return init.head_dim === undefined ? {} : { head_dim: init.head_dim };
}

/** Qwen's windows, in all layers. */
function windows(init: InitConfig): HfConfig {
  const use = init.sliding_window !== undefined;
  return { use_sliding_window: use, sliding_window: init.sliding_window ?? null, max_window_layers: 0 };
}

const CONFIGS: Readonly<Record<InitConfig["family"], (init: InitConfig) => HfConfig>> = {
  gpt2: gpt2Config,
  llama: llamaConfig,
  mistral: mistralConfig,
  qwen2: qwen2Config,
  qwen3: qwen3Config,
  gpt_neox: gptNeoXConfig,
};

/** The config.json of a new model. */
function hfConfig(init: InitConfig, tokenizer: Tokenizer): HfConfig {
  return {
    architectures: [architectureOf(init.family, "CausalLM")],
    model_type: init.family,
    vocab_size: tokenizer.vocabSize,
    ...CONFIGS[init.family](init),
    tie_word_embeddings: init.tie_word_embeddings ?? true,
    initializer_range: 0.02,
    bos_token_id: tokenizer.bosTokenId,
    eos_token_id: tokenizer.eosTokenId,
    pad_token_id: tokenizer.padTokenId,
  };
}

/** Tokens that a new model has room for. */
export function maxPositionsOf(init: InitConfig): number {
  return init.max_position_embeddings ?? DEFAULT_MAX_POSITIONS;
}

/** The tokenizer of a new model, trained on the rows' texts. */
export function initTokenizer(init: InitConfig, rows: readonly SftRow[]): Tokenizer {
  return trainTokenizer(textsOf(rows), { vocabSize: init.vocab_size, modelMaxLength: maxPositionsOf(init) });
}

/** A new model with random weights and a tokenizer trained on the rows' texts; the same seed and rows give the same two. */
export async function initModel(
  init: InitConfig,
  rows: readonly SftRow[],
  options: LoadOptions & { readonly seed: number },
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  const tokenizer = initTokenizer(init, rows);
  const model = await CausalLM.create(hfConfig(init, tokenizer), options);
  return { model, tokenizer };
}
