import type { Random } from "../data/random.ts";

/**
 * A Llama forward pass in plain float64 JavaScript, written for clarity and independent of the engine: what `doctor` compares the
 * engine's log-probs with. Formulas: Touvron et al. 2023, with grouped queries and rotary embeddings in transformers' layout.
 */

/** Shape of the model, with the names of a config.json. */
export interface ReferenceConfig {
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
}

/** A parameter: values in row-major order. */
export interface ReferenceTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

export type ReferenceWeights = ReadonlyMap<string, ReferenceTensor>;

type Vector = number[];

/** Names and shapes of the parameters; the output layer is the embedding table. */
export function parameterShapes(config: ReferenceConfig): Map<string, number[]> {
  const { hidden_size: hidden, intermediate_size: inner, vocab_size: vocab } = config;
  const keyValue = (hidden / config.num_attention_heads) * config.num_key_value_heads;
  const shapes = new Map([["model.embed_tokens.weight", [vocab, hidden]]]);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes.set(`${prefix}.input_layernorm.weight`, [hidden]);
    shapes.set(`${prefix}.self_attn.q_proj.weight`, [hidden, hidden]);
    shapes.set(`${prefix}.self_attn.k_proj.weight`, [keyValue, hidden]);
    shapes.set(`${prefix}.self_attn.v_proj.weight`, [keyValue, hidden]);
    shapes.set(`${prefix}.self_attn.o_proj.weight`, [hidden, hidden]);
    shapes.set(`${prefix}.post_attention_layernorm.weight`, [hidden]);
    shapes.set(`${prefix}.mlp.gate_proj.weight`, [inner, hidden]);
    shapes.set(`${prefix}.mlp.up_proj.weight`, [inner, hidden]);
    shapes.set(`${prefix}.mlp.down_proj.weight`, [hidden, inner]);
  }
  return shapes.set("model.norm.weight", [hidden]);
}

/** Random weights: norms around 1, the rest normal with a deviation that keeps activations near 1. */
export function randomWeights(config: ReferenceConfig, random: Random): ReferenceWeights {
  const weights = new Map<string, ReferenceTensor>();
  for (const [name, shape] of parameterShapes(config)) {
    const size = shape.reduce((product, extent) => product * extent, 1);
    const isNorm = shape.length === 1;
    const scale = isNorm ? 0.1 : 1 / Math.sqrt(shape[1] as number);
    const values = Float32Array.from({ length: size }, () => (isNorm ? 1 : 0) + scale * random.normal());
    weights.set(name, { shape, values });
  }
  return weights;
}

/** The log-probability of each token, 0 for the first: number[T]. */
export function referenceLogProbs(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  tokens: ArrayLike<number>,
): number[] {
  const embedding = tensor(weights, "model.embed_tokens.weight");
  let states = Array.from(tokens, (token) => row(embedding, token));
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    states = attend(config, weights, `model.layers.${layer}`, states);
    states = states.map((state) => feedForward(config, weights, `model.layers.${layer}`, state));
  }
  const norm = tensor(weights, "model.norm.weight");
  const final = states.map((state) => rmsNorm(state, norm, config.rms_norm_eps));
  return Array.from(tokens, (token, position) => {
    if (position === 0) return 0;
    const logits = linear(embedding, final[position - 1] as Vector);
    return (logits[token] as number) - logSumExp(logits);
  });
}

function attend(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  prefix: string,
  states: readonly Vector[],
): Vector[] {
  const { num_attention_heads: heads, num_key_value_heads: keyHeads, hidden_size: hidden } = config;
  const headDim = hidden / heads;
  const project = (name: string, state: Vector): Vector =>
    linear(tensor(weights, `${prefix}.self_attn.${name}_proj.weight`), state);
  const norm = tensor(weights, `${prefix}.input_layernorm.weight`);
  const inputs = states.map((state) => rmsNorm(state, norm, config.rms_norm_eps));
  const rotate = (vector: Vector, position: number): Vector =>
    rotary(vector, position, headDim, config.rope_theta);
  const queries = inputs.map((input, position) => rotate(project("q", input), position));
  const keys = inputs.map((input, position) => rotate(project("k", input), position));
  const values = inputs.map((input) => project("v", input));
  return states.map((state, position) => {
    const mixed: Vector = [];
    for (let head = 0; head < heads; head++) {
      const shared = Math.floor(head / (heads / keyHeads)) * headDim;
      const query = (queries[position] as Vector).slice(head * headDim, (head + 1) * headDim);
      const scores = keys
        .slice(0, position + 1)
        .map((key) => dot(query, key.slice(shared, shared + headDim)) / Math.sqrt(headDim));
      const lse = logSumExp(scores);
      for (let d = 0; d < headDim; d++) {
        mixed.push(
          scores.reduce(
            (sum, score, s) => sum + Math.exp(score - lse) * ((values[s] as Vector)[shared + d] as number),
            0,
          ),
        );
      }
    }
    return add(state, project("o", mixed));
  });
}

function feedForward(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  prefix: string,
  state: Vector,
): Vector {
  const input = rmsNorm(
    state,
    tensor(weights, `${prefix}.post_attention_layernorm.weight`),
    config.rms_norm_eps,
  );
  const gate = linear(tensor(weights, `${prefix}.mlp.gate_proj.weight`), input);
  const up = linear(tensor(weights, `${prefix}.mlp.up_proj.weight`), input);
  const gated = gate.map((value, index) => (value / (1 + Math.exp(-value))) * (up[index] as number));
  return add(state, linear(tensor(weights, `${prefix}.mlp.down_proj.weight`), gated));
}

/** Rotates the halves of each head against each other: (x1, x2) → (x1 cos − x2 sin, x2 cos + x1 sin). */
function rotary(vector: Vector, position: number, headDim: number, theta: number): Vector {
  const half = headDim / 2;
  return vector.map((value, index) => {
    const within = index % headDim;
    const angle = position * theta ** (-(2 * (within % half)) / headDim);
    const partner = within < half ? -(vector[index + half] as number) : (vector[index - half] as number);
    return value * Math.cos(angle) + partner * Math.sin(angle);
  });
}

function rmsNorm(vector: Vector, weight: ReferenceTensor, eps: number): Vector {
  const scale = 1 / Math.sqrt(dot(vector, vector) / vector.length + eps);
  return vector.map((value, index) => value * scale * (weight.values[index] as number));
}

/** y = W x with W [out, in]. */
function linear(weight: ReferenceTensor, input: Vector): Vector {
  return Array.from({ length: weight.shape[0] as number }, (_, output) => dot(row(weight, output), input));
}

function row(matrix: ReferenceTensor, index: number): Vector {
  const width = matrix.shape[1] as number;
  return Array.from(matrix.values.subarray(index * width, (index + 1) * width));
}

function dot(a: Vector, b: Vector): number {
  return a.reduce((sum, value, index) => sum + value * (b[index] as number), 0);
}

function add(a: Vector, b: Vector): Vector {
  return a.map((value, index) => value + (b[index] as number));
}

function logSumExp(values: Vector): number {
  const largest = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}

function tensor(weights: ReferenceWeights, name: string): ReferenceTensor {
  const found = weights.get(name);
  if (found === undefined) throw new Error(`the reference model has no parameter ${name}`);
  return found;
}
