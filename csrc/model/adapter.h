#pragma once
#include <string>
#include <vector>

#include "model/architecture.h"
#include "ops/linear.h"

namespace rlhf {

/// A LoRA adapter: low-rank factors A [R, K] and B [M, R] for some of the linear layers, each with its own rank and scale.
struct Adapter {
  /// Throws ERR_RLHF_UNKNOWN_NAME for a layer that the model does not have, ERR_RLHF_ARGUMENT for an empty list, a layer
  /// named twice, and ranks, scales and probabilities out of their range.
  Adapter(Engine& engine, const Architecture& architecture, const std::string& name,
          const AdapterConfig& config);

  /// The factors on one layer; rank 0 where it is not adapted.
  struct Layer {
    int64_t rank = 0;
    double scale = 0;
    int a = -1, b = -1;  // parameters of the group
  };

  AdapterConfig config;
  ParameterGroup group;
  std::vector<Layer> layers;  // by LinearLayer::index
  int lowestStage;            // block · kStages + stage of the first adapted layer
  int64_t maxRank = 0;
  int64_t maxInputs = 0;      // the widest input of an adapted layer

  const Layer& layer(const LinearLayer& linear) const { return layers[static_cast<size_t>(linear.index)]; }
  bool adapts(const LinearLayer& linear) const { return layer(linear).rank > 0; }
  LoraFactors factors(const LinearLayer& linear) const;
};

}  // namespace rlhf
