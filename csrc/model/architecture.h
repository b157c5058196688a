#pragma once
#include <array>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"

// What a model family is made of, as data: the transformer's forward and backward passes read this table and
// know no family.

namespace rlhf {

enum class NormKind { RmsNorm, LayerNorm };

/// A normalisation's parameters in the base group; bias is −1 for RMSNorm.
struct NormLayer {
  int weight = -1;
  int bias = -1;
};

/// One linear layer. Sibling layers of a stage (q, k and v; gate and up) write side by side into rows they
/// share, each from its own first column on, so that separate and fused projections run through the same
/// code.
struct LinearLayer {
  std::string name;  // module path as in transformers: "model.layers.0.self_attn.q_proj"
  int index = 0;     // number among all linear layers of the model
  int64_t inputs = 0, outputs = 0;
  int64_t column = 0;  // of the shared rows
  int weight = -1, bias = -1;
  RowOrder rows;  // of weight and bias, and so of an adapter's B
};

/// The four places of a block where linear layers stand, in the order of the forward pass.
enum Stage { kQkv = 0, kAttentionOut = 1, kMlpIn = 2, kMlpOut = 3, kStages = 4 };

struct Block {
  NormLayer attentionNorm, mlpNorm;
  NormLayer queryNorm, keyNorm;  // of every head, shared by the heads of a layer; weight −1: none
  int64_t window = 0;            // keys that a query sees, its own included; 0: all
  std::array<std::vector<LinearLayer>, kStages> stages;
};

/// A pre-norm decoder:  x += attentionOut(attention(qkv(norm(x)))),  x += mlpOut(activation(mlpIn(norm(x)))).
/// With parallel residuals both read the same x:  x += attentionOut(…norm(x)) + mlpOut(…norm(x)).
struct Architecture {
  Architecture(const ModelConfig& config,
               ParameterGroup& base);  // adds the parameters in the order of named_parameters()

  ModelConfig config;
  NormKind norm;
  bool transposedLinears;  // GPT-2's Conv1D stores [inputs, outputs]
  bool gatedMlp;           // mlpIn is gate and up; the activation is silu(gate)·up
  int embedding = -1, positionEmbedding = -1;
  int head = -1;  // the embedding when tied
  NormLayer finalNorm;
  std::vector<Block> blocks;
  int linears = 0;

  int64_t queryWidth() const { return config.heads * config.headDim; }
  int64_t keyWidth() const { return config.kvHeads * config.headDim; }
  int64_t qkvWidth() const { return queryWidth() + 2 * keyWidth(); }
  int64_t mlpInWidth() const { return gatedMlp ? 2 * config.intermediate : config.intermediate; }
  /// Dimensions of a head that turn with the position, its first ones; 0: learned positions.
  int64_t rotary() const { return 2 * static_cast<int64_t>(config.inverseFrequencies.size()); }
  /// Width of the rows that the layers of a stage write, and of those that they read.
  int64_t outputWidth(int stage) const;
  int64_t inputWidth(int stage) const;
  /// Calls body(block, stage, layer) for every linear layer, in the order of the forward pass.
  template <class Body>
  void forEachLinear(Body&& body) const {
    for (size_t block = 0; block < blocks.size(); ++block)
      for (int stage = 0; stage < kStages; ++stage)
        for (const LinearLayer& layer : blocks[block].stages[static_cast<size_t>(stage)])
          body(static_cast<int>(block), static_cast<Stage>(stage), layer);
  }

 private:
  void describeGpt2(ParameterGroup& base);
  void describeLlama(ParameterGroup& base);
  void describeGptNeoX(ParameterGroup& base);
  NormLayer addNorm(ParameterGroup& base, const std::string& name);
  void addHeadNorms(ParameterGroup& base, Block& block, const std::string& path);
  void addHead(ParameterGroup& base);
  void addLinear(ParameterGroup& base, Block& block, Stage stage, const std::string& name, int64_t outputs,
                 bool bias, RowOrder rows = {});
};

}  // namespace rlhf
