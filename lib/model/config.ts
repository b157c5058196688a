import type { Activation, ModelConfig } from "../engine/native.ts";
import { RlhfError } from "../errors.ts";

/** The content of a Hugging Face config.json. */
export type HfConfig = Readonly<Record<string, unknown>>;

const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  gelu_new: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  gelu_fast: "gelu_tanh",
  gelu: "gelu",
  relu: "relu",
  silu: "silu",
  swish: "silu",
};

/** Reads fields of a config.json; errors name the file, the field and its value. */
class Fields {
  readonly #config: HfConfig;
  readonly where: string;

  constructor(config: HfConfig, where: string) {
    this.#config = config;
    this.where = where;
  }

  fail(problem: string): RlhfError {
    return new RlhfError("ERR_RLHF_MODEL", `${this.where}: ${problem}`, { file: this.where });
  }

  get(name: string): unknown {
    return this.#config[name];
  }

  positiveInteger(name: string, fallback?: number): number {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 1)
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected a positive integer`);
    return value;
  }

  positiveNumber(name: string, fallback: number): number {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "number" || !(value > 0) || !Number.isFinite(value))
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected a positive number`);
    return value;
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.#config[name] ?? fallback;
    if (typeof value !== "boolean")
      throw this.fail(`${name} is ${JSON.stringify(value)}, expected true or false`);
    return value;
  }

  activation(name: string, fallback: string): Activation {
    const value = this.#config[name] ?? fallback;
    const activation = typeof value === "string" ? ACTIVATIONS[value] : undefined;
    if (!activation)
      throw this.fail(
        `${name} is ${JSON.stringify(value)}; supported are ${Object.keys(ACTIVATIONS).join(", ")}`,
      );
    return activation;
  }

  /** Refuses a setting that would change what the model computes. */
  mustBe(name: string, allowed: readonly unknown[]): void {
    const value = this.#config[name];
    if (value !== undefined && value !== null && !allowed.includes(value))
      throw new RlhfError(
        "ERR_RLHF_UNSUPPORTED",
        `${this.where}: ${name} is ${JSON.stringify(value)}; supported: ${allowed.map((a) => JSON.stringify(a)).join(", ")}`,
        { file: this.where, field: name },
      );
  }
}

function readGpt2(fields: Fields): ModelConfig {
  fields.mustBe("scale_attn_weights", [true]);
  fields.mustBe("scale_attn_by_inverse_layer_idx", [false]);
  fields.mustBe("add_cross_attention", [false]);
  const hidden = fields.positiveInteger("n_embd");
  const heads = fields.positiveInteger("n_head");
  if (hidden % heads !== 0) throw fields.fail(`n_embd ${hidden} is not a multiple of n_head ${heads}`);
  const activation = fields.activation("activation_function", "gelu_new");
  return {
    family: "gpt2",
    layers: fields.positiveInteger("n_layer"),
    hidden,
    heads,
    kvHeads: heads,
    headDim: hidden / heads,
    intermediate: fields.positiveInteger("n_inner", 4 * hidden),
    vocab: fields.positiveInteger("vocab_size"),
    maxPositions: fields.positiveInteger("n_positions", 1024),
    normEps: fields.positiveNumber("layer_norm_epsilon", 1e-5),
    ropeTheta: 10000,
    activation,
    tiedEmbeddings: fields.flag("tie_word_embeddings", true),
    attentionBias: true,
    mlpBias: true,
  };
}

/** transformers 5 keeps rotary settings in rope_parameters, earlier versions in rope_theta and rope_scaling. */
function readRopeTheta(fields: Fields): number {
  const parameters = fields.get("rope_parameters") ?? fields.get("rope_scaling") ?? {};
  const rope = new Fields(parameters as HfConfig, `${fields.where}: rope_parameters`);
  rope.mustBe("rope_type", ["default"]);
  rope.mustBe("type", ["default"]);
  return rope.positiveNumber("rope_theta", fields.positiveNumber("rope_theta", 10000));
}

function readLlama(fields: Fields): ModelConfig {
  fields.mustBe("hidden_act", ["silu", "swish"]);
  const hidden = fields.positiveInteger("hidden_size");
  const heads = fields.positiveInteger("num_attention_heads");
  const kvHeads = fields.positiveInteger("num_key_value_heads", heads);
  if (heads % kvHeads !== 0)
    throw fields.fail(`num_attention_heads ${heads} is not a multiple of num_key_value_heads ${kvHeads}`);
  const headDim = fields.positiveInteger("head_dim", Math.floor(hidden / heads));
  if (headDim % 2 !== 0) throw fields.fail(`head_dim ${headDim} is odd; rotary embedding needs an even one`);
  return {
    family: "llama",
    layers: fields.positiveInteger("num_hidden_layers"),
    hidden,
    heads,
    kvHeads,
    headDim,
    intermediate: fields.positiveInteger("intermediate_size"),
    vocab: fields.positiveInteger("vocab_size"),
    maxPositions: fields.positiveInteger("max_position_embeddings", 2048),
    normEps: fields.positiveNumber("rms_norm_eps", 1e-6),
    ropeTheta: readRopeTheta(fields),
    activation: "silu",
    tiedEmbeddings: fields.flag("tie_word_embeddings", false),
    attentionBias: fields.flag("attention_bias", false),
    mlpBias: fields.flag("mlp_bias", false),
  };
}

const FAMILIES: Readonly<Record<string, (fields: Fields) => ModelConfig>> = {
  gpt2: readGpt2,
  llama: readLlama,
};

/**
 * The engine's view of a config.json. Throws ERR_RLHF_UNSUPPORTED for a family or feature that is not there (the message lists what
 * is) and ERR_RLHF_MODEL for a field that is missing or malformed.
 *
 * @param where the file's path, for messages
 */
export function readModelConfig(config: HfConfig, where: string): ModelConfig {
  const type = config.model_type;
  const read = typeof type === "string" ? FAMILIES[type] : undefined;
  if (!read)
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `${where}: model_type is ${JSON.stringify(type)}; supported are ${Object.keys(FAMILIES).join(", ")}`,
      { file: where, modelType: type },
    );
  return read(new Fields(config, where));
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
  if (kind === "SequenceClassification")
    return family === "gpt2" ? "GPT2ForSequenceClassification" : "LlamaForSequenceClassification";
  return family === "gpt2" ? "GPT2LMHeadModel" : "LlamaForCausalLM";
}

/** The standard deviation of random initial weights. */
export function initializerRange(config: HfConfig): number {
  const value = config.initializer_range;
  return typeof value === "number" && value > 0 ? value : 0.02;
}
