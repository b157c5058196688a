import type { ModelConfig } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";
import { Fields, type HfConfig } from "./config-fields.ts";
import { readRotary } from "./rotary.ts";

export type { HfConfig } from "./config-fields.ts";

/** What a family's configuration has beside the sizes that all families share. */
type Family = Omit<ModelConfig, "family">;

const LEARNED_POSITIONS = { inverseFrequencies: [], rotaryScale: 1, windows: [] } as const;

/** The engine's limit, which it says without the file's name. */
const MAX_LAYERS = 1 << 16;

function readGpt2(fields: Fields): Family {
  fields.mustBe("scale_attn_weights", [true]);
  fields.mustBe("scale_attn_by_inverse_layer_idx", [false]);
  fields.mustBe("add_cross_attention", [false]);
  const hidden = fields.positiveInteger("n_embd");
  const heads = fields.positiveInteger("n_head");
  if (hidden % heads !== 0) throw fields.fail(`n_embd ${hidden} is not a multiple of n_head ${heads}`);
  return {
    layers: fields.positiveInteger("n_layer", undefined, MAX_LAYERS),
    hidden,
    heads,
    kvHeads: heads,
    headDim: hidden / heads,
    intermediate: fields.positiveInteger("n_inner", 4 * hidden),
    vocab: fields.positiveInteger("vocab_size"),
    maxPositions: fields.positiveInteger("n_positions", 1024),
    normEps: fields.positiveNumber("layer_norm_epsilon", 1e-5),
    ...LEARNED_POSITIONS,
    activation: fields.activation("activation_function", "gelu_new"),
    tiedEmbeddings: fields.flag("tie_word_embeddings", true),
    attentionBias: true,
    attentionOutBias: true,
    mlpBias: true,
    headNorm: false,
    parallelResidual: false,
  };
}

/** What Llama and its relatives share; `headDim` is the width of heads where the file says nothing. */
function readLlamaLike(fields: Fields, headDim?: number): Family {
  fields.mustBe("hidden_act", ["silu", "swish"]);
  fields.mustBe("partial_rotary_factor", [1]);
  const hidden = fields.positiveInteger("hidden_size");
  const heads = fields.positiveInteger("num_attention_heads");
  const kvHeads = fields.has("num_key_value_heads") ? fields.positiveInteger("num_key_value_heads") : heads;
  if (heads % kvHeads !== 0)
    throw fields.fail(`num_attention_heads ${heads} is not a multiple of num_key_value_heads ${kvHeads}`);
  const width = fields.positiveInteger("head_dim", headDim ?? Math.floor(hidden / heads));
  if (width % 2 !== 0) throw fields.fail(`head_dim ${width} is odd; rotary embedding needs an even one`);
  const theta = fields.positiveNumber("rope_theta", 10000);
  return {
    layers: fields.positiveInteger("num_hidden_layers", undefined, MAX_LAYERS),
    hidden,
    heads,
    kvHeads,
    headDim: width,
    intermediate: fields.positiveInteger("intermediate_size"),
    vocab: fields.positiveInteger("vocab_size"),
    maxPositions: fields.positiveInteger("max_position_embeddings", 2048),
    normEps: fields.positiveNumber("rms_norm_eps", 1e-6),
    ...readRotary(fields, { headDim: width, theta }),
    windows: [],
    activation: "silu",
    tiedEmbeddings: fields.flag("tie_word_embeddings", false),
    attentionBias: false,
    attentionOutBias: false,
    mlpBias: false,
    headNorm: false,
    parallelResidual: false,
  };
}

/** transformers' defaults of these fields differ by family, or are those of the largest model: a file must say them. */
function requireFields(fields: Fields, names: readonly string[]): void {
  const missing = names.find((name) => fields.get(name) === undefined);
  if (missing) throw fields.fail(`${missing} is missing; configurations of this family must have it`);
}

function readLlama(fields: Fields): Family {
  const attentionBias = fields.flag("attention_bias", false);
  return {
    ...readLlamaLike(fields),
    attentionBias,
    attentionOutBias: attentionBias,
    mlpBias: fields.flag("mlp_bias", false),
  };
}

function readMistral(fields: Fields): Family {
  requireFields(fields, ["num_key_value_heads", "max_position_embeddings", "sliding_window"]);
  fields.mustBe("attention_bias", [false]);
  fields.mustBe("mlp_bias", [false]);
  const config = readLlamaLike(fields);
  const window = readWindow(fields);
  const type = window > 0 ? "sliding_attention" : "full_attention";
  // transformers' mistral has one kind of attention whatever this list says; its relative ministral is another family.
  const types = fields.get("layer_types") ?? [];
  if (!Array.isArray(types) || types.some((entry) => entry !== type))
    throw fields.unsupported("layer_types", [`${type} in all layers, as sliding_window says`]);
  return { ...config, windows: window > 0 ? Array<number>(config.layers).fill(window) : [] };
}

function readQwen2(fields: Fields): Family {
  fields.mustBe("attention_bias", [true]);
  return { ...readQwen(fields), attentionBias: true };
}

function readQwen3(fields: Fields): Family {
  const attentionBias = fields.flag("attention_bias", false);
  // transformers takes 128 where head_dim is not given, whatever the other sizes are.
  return { ...readQwen(fields, 128), attentionBias, attentionOutBias: attentionBias, headNorm: true };
}

function readQwen(fields: Fields, headDim?: number): Family {
  requireFields(fields, ["num_key_value_heads", "max_position_embeddings"]);
  fields.mustBe("mlp_bias", [false]);
  const config = readLlamaLike(fields, headDim);
  return { ...config, windows: readLayerWindows(fields, config.layers) };
}

/** sliding_window: how many keys a query sees, its own included; 0 for null, all. */
function readWindow(fields: Fields): number {
  return fields.has("sliding_window") ? fields.positiveInteger("sliding_window") : 0;
}

/** Windows by layer: of the layers that layer_types names, else of those from max_window_layers on. */
function readLayerWindows(fields: Fields, layers: number): number[] {
  const window = fields.flag("use_sliding_window", false) ? readWindow(fields) : 0;
  const types = fields.get("layer_types") ?? windowTypes(fields, window, layers);
  if (!Array.isArray(types) || types.length !== layers)
    throw fields.fail(
      `layer_types is ${JSON.stringify(types)}, expected a list of num_hidden_layers = ${layers}`,
    );
  const windows = types.map((type) => {
    if (type === "full_attention") return 0;
    if (type !== "sliding_attention")
      throw fields.unsupported("layer_types", ["full_attention", "sliding_attention"]);
    if (window === 0)
      throw fields.fail(
        "layer_types has sliding_attention, but use_sliding_window or sliding_window is not set",
      );
    return window;
  });
  return windows.some((entry) => entry > 0) ? windows : [];
}

/** The layer_types of a file that has none. */
function windowTypes(fields: Fields, window: number, layers: number): string[] {
  const first = fields.get("max_window_layers") === 0 ? 0 : fields.positiveInteger("max_window_layers", 28);
  return Array.from({ length: layers }, (_, layer) =>
    window > 0 && layer >= first ? "sliding_attention" : "full_attention",
  );
}

function readGptNeoX(fields: Fields): Family {
  const hidden = fields.positiveInteger("hidden_size");
  const heads = fields.positiveInteger("num_attention_heads");
  if (hidden % heads !== 0)
    throw fields.fail(`hidden_size ${hidden} is not a multiple of num_attention_heads ${heads}`);
  const headDim = hidden / heads;
  const attentionBias = fields.flag("attention_bias", true);
  const rotary = {
    headDim,
    theta: fields.positiveNumber(fields.has("rotary_emb_base") ? "rotary_emb_base" : "rope_theta", 10000),
    partialFactor: fields.positiveNumber(
      fields.has("rotary_pct") ? "rotary_pct" : "partial_rotary_factor",
      0.25,
    ),
  };
  return {
    layers: fields.positiveInteger("num_hidden_layers", undefined, MAX_LAYERS),
    hidden,
    heads,
    kvHeads: heads,
    headDim,
    intermediate: fields.positiveInteger("intermediate_size"),
    vocab: fields.positiveInteger("vocab_size"),
    maxPositions: fields.positiveInteger("max_position_embeddings", 2048),
    normEps: fields.positiveNumber("layer_norm_eps", 1e-5),
    ...readRotary(fields, rotary),
    windows: [],
    activation: fields.activation("hidden_act", "gelu"),
    tiedEmbeddings: fields.flag("tie_word_embeddings", false),
    attentionBias,
    attentionOutBias: attentionBias,
    mlpBias: true,
    headNorm: false,
    parallelResidual: fields.flag("use_parallel_residual", true),
  };
}

interface FamilyEntry {
  readonly read: (fields: Fields) => Family;
  /** What the names of its classes in transformers begin with. */
  readonly classPrefix: string;
  readonly causalClass?: string;
}

const FAMILIES: Readonly<Record<ModelConfig["family"], FamilyEntry>> = {
  gpt2: { read: readGpt2, classPrefix: "GPT2", causalClass: "GPT2LMHeadModel" },
  llama: { read: readLlama, classPrefix: "Llama" },
  mistral: { read: readMistral, classPrefix: "Mistral" },
  qwen2: { read: readQwen2, classPrefix: "Qwen2" },
  qwen3: { read: readQwen3, classPrefix: "Qwen3" },
  gpt_neox: { read: readGptNeoX, classPrefix: "GPTNeoX" },
};

/** The families that can be loaded, as config.json's model_type names them. */
export const MODEL_FAMILIES = Object.keys(FAMILIES) as ModelConfig["family"][];

/**
 * The engine's view of a config.json. Throws ERR_RLHF_UNSUPPORTED for a family or feature that is not there (the message lists what
 * is) and ERR_RLHF_MODEL for a field that is missing or malformed.
 *
 * @param where the file's path, for messages
 */
export function readModelConfig(config: HfConfig, where: string): ModelConfig {
  if (typeof config !== "object" || config === null)
    throw new RlhfError(
      "ERR_RLHF_MODEL",
      `${where}: is ${String(config)}, expected the object of a config.json`,
    );
  const type = config.model_type;
  const family = MODEL_FAMILIES.find((name) => name === type);
  if (!family)
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${where}: model_type is ${JSON.stringify(type)}; supported are ${MODEL_FAMILIES.join(", ")}`,
      { file: where, modelType: type },
    );
  const fields = new Fields(config, where);
  if (fields.has("quantization_config"))
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${where}: quantization_config says that the weights are quantised, which are not read; use the model that was quantised (F32, F16 or BF16)`,
      { file: where, field: "quantization_config" },
    );
  const ends = [fields.get("eos_token_id") ?? []].flat();
  if (!ends.every(Number.isInteger))
    throw fields.fail(
      `eos_token_id is ${JSON.stringify(fields.get("eos_token_id"))}, expected a token id or a list of them`,
    );
  return { family, ...FAMILIES[family].read(fields) };
}

/** The end-of-sequence ids that generation_config.json or config.json names. */
export function readEosTokenIds(config: HfConfig, generationConfig: HfConfig | null): number[] {
  const value = generationConfig?.eos_token_id ?? config.eos_token_id;
  const ids = Array.isArray(value) ? value : [value];
  return ids.filter((id): id is number => typeof id === "number" && Number.isInteger(id) && id >= 0);
}

/** The name of the class that transformers loads a directory with. */
export function architectureOf(
  family: ModelConfig["family"],
  kind: "CausalLM" | "SequenceClassification",
): string {
  const { classPrefix, causalClass } = FAMILIES[family];
  return kind === "CausalLM" && causalClass ? causalClass : `${classPrefix}For${kind}`;
}

/** The standard deviation of random initial weights. */
export function initializerRange(config: HfConfig): number {
  const value = config.initializer_range;
  return typeof value === "number" && value > 0 ? value : 0.02;
}
