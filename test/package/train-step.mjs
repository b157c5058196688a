// Run in a folder where the packed package is installed: writes a tiny Llama of random weights, trains one step through
// the public API and prints the mean negative log-likelihood before and after.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CausalLM, packSequences } from "node-rlhf";

const [directory] = process.argv.slice(2);

const config = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  hidden_act: "silu",
  attention_bias: false,
  mlp_bias: false,
  tie_word_embeddings: true,
  bos_token_id: 1,
  eos_token_id: 2,
  torch_dtype: "float32",
};

function parameterShapes() {
  const { hidden_size: hidden, intermediate_size: inner } = config;
  const keyValue = (hidden / config.num_attention_heads) * config.num_key_value_heads;
  const shapes = { "model.embed_tokens.weight": [config.vocab_size, hidden], "model.norm.weight": [hidden] };
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes[`${prefix}.input_layernorm.weight`] = [hidden];
    shapes[`${prefix}.self_attn.q_proj.weight`] = [hidden, hidden];
    shapes[`${prefix}.self_attn.k_proj.weight`] = [keyValue, hidden];
    shapes[`${prefix}.self_attn.v_proj.weight`] = [keyValue, hidden];
    shapes[`${prefix}.self_attn.o_proj.weight`] = [hidden, hidden];
    shapes[`${prefix}.post_attention_layernorm.weight`] = [hidden];
    shapes[`${prefix}.mlp.gate_proj.weight`] = [inner, hidden];
    shapes[`${prefix}.mlp.up_proj.weight`] = [inner, hidden];
    shapes[`${prefix}.mlp.down_proj.weight`] = [hidden, inner];
  }
  return shapes;
}

/** Norm weights 1, the rest spread evenly over (-0.2, 0.2) by a multiplicative sequence. */
function parameterValues(name, size) {
  if (name.includes("norm")) return new Float32Array(size).fill(1);
  return Float32Array.from(
    { length: size },
    (_, i) => 0.4 * ((i * 0.6180339887498949 + name.length / 7) % 1) - 0.2,
  );
}

function writeModel() {
  const header = { __metadata__: { format: "pt" } };
  const arrays = [];
  let offset = 0;
  for (const [name, shape] of Object.entries(parameterShapes())) {
    const values = parameterValues(
      name,
      shape.reduce((product, extent) => product * extent, 1),
    );
    header[name] = { dtype: "F32", shape, data_offsets: [offset, offset + values.byteLength] };
    arrays.push(Buffer.from(values.buffer));
    offset += values.byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  writeFileSync(join(directory, "model.safetensors"), Buffer.concat([length, padded, ...arrays]));
}

writeModel();
const model = await CausalLM.load(directory, { device: "cpu", dtype: "float32", trainable: "all" });
const tokens = Int32Array.of(1, 5, 9, 13, 17, 21, 25, 2);
const batch = packSequences([{ tokens, promptLength: 1 }]);
const predicted = tokens.length - 1;
const meanLoss = (logProb) => -logProb.reduce((sum, value) => sum + value, 0) / predicted;

const pass = await model.forward(batch, { grad: true });
const before = meanLoss(await pass.logProb());
const dLogProb = new Float32Array(tokens.length).fill(-1 / predicted);
dLogProb[0] = 0;
await pass.backward({ dLogProb });
const optimizer = model.createOptimizer({ weightDecay: 0 });
const { gradNorm } = await optimizer.step({ learningRate: 1e-3, maxGradNorm: 1 });

const check = await model.forward(batch, { grad: false });
const after = meanLoss(await check.logProb());
check.dispose();
optimizer.dispose();
model.dispose();
console.log(JSON.stringify({ before, after, gradNorm }));
