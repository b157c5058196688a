#include "model/architecture.h"

#include <algorithm>

namespace rlhf {

Architecture::Architecture(const ModelConfig& modelConfig, ParameterGroup& base) : config(modelConfig) {
  config.validate();
  if (config.family == Family::Gpt2) {
    describeGpt2(base);
  } else {
    describeLlama(base);
  }
}

void Architecture::describeGpt2(ParameterGroup& base) {
  norm = NormKind::LayerNorm;
  transposedLinears = true;
  gatedMlp = false;
  rotary = 0;
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
  head = config.tiedEmbeddings ? embedding : base.add("lm_head.weight", {config.vocab, config.hidden});
}

void Architecture::describeLlama(ParameterGroup& base) {
  norm = NormKind::RmsNorm;
  transposedLinears = false;
  gatedMlp = true;
  rotary = config.headDim;
  embedding = base.add("model.embed_tokens.weight", {config.vocab, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string path = "model.layers." + std::to_string(i) + ".";
    Block& block = blocks.emplace_back();
    addLinear(base, block, kQkv, path + "self_attn.q_proj", queryWidth(), config.attentionBias);
    addLinear(base, block, kQkv, path + "self_attn.k_proj", keyWidth(), config.attentionBias);
    addLinear(base, block, kQkv, path + "self_attn.v_proj", keyWidth(), config.attentionBias);
    addLinear(base, block, kAttentionOut, path + "self_attn.o_proj", config.hidden, config.attentionBias);
    addLinear(base, block, kMlpIn, path + "mlp.gate_proj", config.intermediate, config.mlpBias);
    addLinear(base, block, kMlpIn, path + "mlp.up_proj", config.intermediate, config.mlpBias);
    addLinear(base, block, kMlpOut, path + "mlp.down_proj", config.hidden, config.mlpBias);
    block.attentionNorm = addNorm(base, path + "input_layernorm");
    block.mlpNorm = addNorm(base, path + "post_attention_layernorm");
  }
  finalNorm = addNorm(base, "model.norm");
  head = config.tiedEmbeddings ? embedding : base.add("lm_head.weight", {config.vocab, config.hidden});
}

NormLayer Architecture::addNorm(ParameterGroup& base, const std::string& name) {
  NormLayer layer;
  layer.weight = base.add(name + ".weight", {config.hidden});
  if (norm == NormKind::LayerNorm) layer.bias = base.add(name + ".bias", {config.hidden});
  return layer;
}

void Architecture::addLinear(ParameterGroup& base, Block& block, Stage stage, const std::string& name,
                             int64_t outputs, bool bias) {
  std::vector<LinearLayer>& siblings = block.stages[stage];
  LinearLayer layer;
  layer.name = name;
  layer.index = linears++;
  layer.inputs = inputWidth(stage);
  layer.outputs = outputs;
  layer.column = siblings.empty() ? 0 : siblings.back().column + siblings.back().outputs;
  layer.weight = base.add(name + ".weight", transposedLinears ? std::vector<int64_t>{layer.inputs, outputs}
                                                              : std::vector<int64_t>{outputs, layer.inputs});
  if (bias) layer.bias = base.add(name + ".bias", {outputs});
  siblings.push_back(std::move(layer));
}

int64_t Architecture::outputWidth(int stage) const {
  return stage == kQkv ? qkvWidth() : stage == kMlpIn ? mlpInWidth() : config.hidden;
}

int64_t Architecture::inputWidth(int stage) const {
  return stage == kAttentionOut ? queryWidth() : stage == kMlpOut ? config.intermediate : config.hidden;
}

std::vector<std::string> Architecture::linearModuleNames() const {
  std::vector<std::string> names;
  for (const Block& block : blocks)
    for (const std::vector<LinearLayer>& stage : block.stages)
      for (const LinearLayer& layer : stage) {
        std::string last = layer.name.substr(layer.name.rfind('.') + 1);
        if (std::find(names.begin(), names.end(), last) == names.end()) names.push_back(std::move(last));
      }
  return names;
}

}  // namespace rlhf
