#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "ops/activation.h"

namespace rlhf {

/// Whose names and places of parameters a model has. Mistral and Qwen are Llama's with other settings.
enum class Family { Gpt2, Llama, GptNeoX };

/// The shape of a decoder-only transformer. lib/model/config.ts makes it from a Hugging Face config.json.
struct ModelConfig {
  Family family = Family::Llama;
  int64_t layers = 0, hidden = 0, heads = 0, kvHeads = 0, headDim = 0, intermediate = 0, vocab = 0;
  int64_t maxPositions = 0;       // the context length; sequences are at most this long
  double normEps = 1e-5;
  std::vector<double> inverseFrequencies;  // rotary positions: radians per position of each pair of a head; empty: learned
  double rotaryScale = 1;         // multiplies rotary sines and cosines (YaRN's attention factor)
  std::vector<int64_t> windows;   // per layer, how many keys a query sees, its own included; 0: all. Empty: all everywhere
  Activation activation = Activation::Silu;  // llama: Silu (gated); else of the plain MLP
  bool tiedEmbeddings = false;    // the head is the embedding table
  bool attentionBias = false;     // biases on q, k and v
  bool attentionOutBias = false;  // bias on attention's output projection
  bool mlpBias = false;           // llama: biases on gate, up, down
  bool headNorm = false;          // llama: RMSNorm of each query and key head before it is rotated
  bool parallelResidual = false;  // gpt_neox: attention and MLP read the same residual stream

  /// Throws Error(ERR_RLHF_CONFIG) that names the field, its value and what is allowed.
  void validate() const;

 private:
  void validateRotary() const;
  void validateFamily() const;
};

/// What an adapter puts on one linear layer.
struct AdapterLayerConfig {
  std::string module;  // full path, "model.layers.0.self_attn.q_proj"
  int64_t rank = 0;
  double scale = 0;    // of B·A: α/r, or α/√r
};

/// One LoRA adapter. lib/model/adapters.ts makes the list of layers from peft's patterns.
struct AdapterConfig {
  std::vector<AdapterLayerConfig> layers;
  double dropout = 0;     // probability with which a training pass drops an element of a layer's input
  bool trainable = true;  // false: a frozen copy, without gradients
  uint64_t seed = 0;      // A is drawn uniformly from ±1/√K (kaiming-uniform with a = √5), B is zero
};

/// A scalar head on the final hidden states: one linear layer, or hidden → inner → 1 with an activation between.
struct HeadConfig {
  int64_t inner = 0;                       // 0: linear
  Activation activation = Activation::Tanh;
  bool bias = true;
  double initStd = 0;                      // of the last layer's weight; 0: zeros. Inner weights: normal, std 1/√inputs
  uint64_t seed = 0;
};

}  // namespace rlhf
