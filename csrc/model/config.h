#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "ops/activation.h"

namespace rlhf {

enum class Family { Gpt2, Llama };

/// The shape of a decoder-only transformer. lib/model/config.ts makes it from a Hugging Face config.json.
struct ModelConfig {
  Family family = Family::Llama;
  int64_t layers = 0, hidden = 0, heads = 0, kvHeads = 0, headDim = 0, intermediate = 0, vocab = 0;
  int64_t maxPositions = 0;       // the context length; sequences are at most this long
  double normEps = 1e-5;
  double ropeTheta = 10000;       // llama
  Activation activation = Activation::Silu;  // gpt2: one of the GELUs; llama: Silu (gated)
  bool tiedEmbeddings = false;    // the head is the embedding table
  bool attentionBias = false;     // llama: biases on q, k, v, o
  bool mlpBias = false;           // llama: biases on gate, up, down

  /// Throws Error(ERR_RLHF_CONFIG) that names the field, its value and what is allowed.
  void validate() const;
};

/// One LoRA adapter: on which linear layers (by the last part of their name, "q_proj", "c_attn", …), rank and scale α/r.
struct AdapterConfig {
  int64_t rank = 16;
  double alpha = 32;
  std::vector<std::string> targetModules;  // an unknown name is an Error that lists the known ones
  uint64_t seed = 0;                       // A is drawn uniformly from ±1/√K (kaiming-uniform with a = √5), B is zero
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
