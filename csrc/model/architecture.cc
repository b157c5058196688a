#include "model/architecture.h"

namespace rlhf {

Architecture::Architecture(const ModelConfig& modelConfig, ParameterGroup& base) : config(modelConfig) {
  config.validate();
  switch (config.family) {
    case Family::Gpt2: describeGpt2(base); break;
    case Family::Llama: describeLlama(base); break;
    case Family::GptNeoX: describeGptNeoX(base); break;
  }
  for (size_t i = 0; i < config.windows.size(); ++i) blocks[i].window = config.windows[i];
}

void Architecture::describeGpt2(ParameterGroup& base) {
  norm = NormKind::LayerNorm;
  transposedLinears = true;
  gatedMlp = false;
  embedding = base.add("transformer.wte.weight", {config.vocab, config.hidden});
  positionEmbedding = base.add("transformer.wpe.weight", {config.maxPositions, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string path = "transformer.h." + std::to_string(i) + ".";
    Block& block = blocks.emplace_back();
    block.attentionNorm = addNorm(base, path + "ln_1");
    addLinear(base, block, kQkv, path + "attn.c_attn", qkvWidth(), true);
    addLinear(base, block, kAttentionOut, path + "attn.c_proj", config.hidden, true);
    block.mlpNorm = addNorm(base, path + "ln_2");
    addLinear(base, block, kMlpIn, path + "mlp.c_fc", config.intermediate, true);
    addLinear(base, block, kMlpOut, path + "mlp.c_proj", config.hidden, true);
  }
  finalNorm = addNorm(base, "transformer.ln_f");
  addHead(base);
}

void Architecture::describeLlama(ParameterGroup& base) {
  norm = NormKind::RmsNorm;
  transposedLinears = false;
  gatedMlp = true;
  embedding = base.add("model.embed_tokens.weight", {config.vocab, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string path = "model.layers." + std::to_string(i) + ".";
    Block& block = blocks.emplace_back();
    addLinear(base, block, kQkv, path + "self_attn.q_proj", queryWidth(), config.attentionBias);
    addLinear(base, block, kQkv, path + "self_attn.k_proj", keyWidth(), config.attentionBias);
    addLinear(base, block, kQkv, path + "self_attn.v_proj", keyWidth(), config.attentionBias);
    addLinear(base, block, kAttentionOut, path + "self_attn.o_proj", config.hidden, config.attentionOutBias);
    if (config.headNorm) addHeadNorms(base, block, path + "self_attn.");
    addLinear(base, block, kMlpIn, path + "mlp.gate_proj", config.intermediate, config.mlpBias);
    addLinear(base, block, kMlpIn, path + "mlp.up_proj", config.intermediate, config.mlpBias);
    addLinear(base, block, kMlpOut, path + "mlp.down_proj", config.hidden, config.mlpBias);
    block.attentionNorm = addNorm(base, path + "input_layernorm");
    block.mlpNorm = addNorm(base, path + "post_attention_layernorm");
  }
  finalNorm = addNorm(base, "model.norm");
  addHead(base);
}

void Architecture::describeGptNeoX(ParameterGroup& base) {
  norm = NormKind::LayerNorm;
  transposedLinears = false;
  gatedMlp = false;
  // The rows of query_key_value stand in files as [head][q, k, v][headDim], those of the other families as
  // [q, k, v][head][headDim].
  const RowOrder headsOutside{config.heads, 3};
  embedding = base.add("gpt_neox.embed_in.weight", {config.vocab, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string path = "gpt_neox.layers." + std::to_string(i) + ".";
    Block& block = blocks.emplace_back();
    block.attentionNorm = addNorm(base, path + "input_layernorm");
    block.mlpNorm = addNorm(base, path + "post_attention_layernorm");
    addLinear(base, block, kQkv, path + "attention.query_key_value", qkvWidth(), config.attentionBias,
              headsOutside);
    addLinear(base, block, kAttentionOut, path + "attention.dense", config.hidden, config.attentionOutBias);
    addLinear(base, block, kMlpIn, path + "mlp.dense_h_to_4h", config.intermediate, true);
    addLinear(base, block, kMlpOut, path + "mlp.dense_4h_to_h", config.hidden, true);
  }
  finalNorm = addNorm(base, "gpt_neox.final_layer_norm");
  addHead(base);
}

void Architecture::addHead(ParameterGroup& base) {
  head = config.tiedEmbeddings ? embedding : base.add("lm_head.weight", {config.vocab, config.hidden});
}

void Architecture::addHeadNorms(ParameterGroup& base, Block& block, const std::string& path) {
  block.queryNorm.weight = base.add(path + "q_norm.weight", {config.headDim});
  block.keyNorm.weight = base.add(path + "k_norm.weight", {config.headDim});
}

NormLayer Architecture::addNorm(ParameterGroup& base, const std::string& name) {
  NormLayer layer;
  layer.weight = base.add(name + ".weight", {config.hidden});
  if (norm == NormKind::LayerNorm) layer.bias = base.add(name + ".bias", {config.hidden});
  return layer;
}

void Architecture::addLinear(ParameterGroup& base, Block& block, Stage stage, const std::string& name,
                             int64_t outputs, bool bias, RowOrder rows) {
  std::vector<LinearLayer>& siblings = block.stages[stage];
  LinearLayer layer;
  layer.name = name;
  layer.index = linears++;
  layer.inputs = inputWidth(stage);
  layer.outputs = outputs;
  layer.column = siblings.empty() ? 0 : siblings.back().column + siblings.back().outputs;
  layer.rows = rows;
  layer.weight = base.add(name + ".weight",
                          transposedLinears ? std::vector<int64_t>{layer.inputs, outputs}
                                            : std::vector<int64_t>{outputs, layer.inputs},
                          rows);
  if (bias) layer.bias = base.add(name + ".bias", {outputs}, rows);
  siblings.push_back(std::move(layer));
}

int64_t Architecture::outputWidth(int stage) const {
  return stage == kQkv ? qkvWidth() : stage == kMlpIn ? mlpInWidth() : config.hidden;
}

int64_t Architecture::inputWidth(int stage) const {
  return stage == kAttentionOut ? queryWidth() : stage == kMlpOut ? config.intermediate : config.hidden;
}

}  // namespace rlhf
