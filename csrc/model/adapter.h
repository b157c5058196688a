#pragma once
#include <functional>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "ops/linear.h"

namespace rlhf {

/// A LoRA adapter: low-rank factors A [R, K] and B [M, R] for the linear layers that its configuration names,
/// as peft does it: a target matches a module path that equals it or ends in "." + target.
struct Adapter {
  /// Throws ERR_RLHF_UNKNOWN_NAME when a target matches no layer, ERR_RLHF_ARGUMENT for a rank below 1 or a
  /// scale that is not finite.
  Adapter(Engine& engine, const Architecture& architecture, const std::string& name,
          const AdapterConfig& config);

  AdapterConfig config;
  ParameterGroup group;
  std::vector<int> a, b;  // parameters by LinearLayer::index; −1 where the layer is not adapted
  int lowestStage;        // block · kStages + stage of the first adapted layer

  bool adapts(const LinearLayer& layer) const { return a[static_cast<size_t>(layer.index)] >= 0; }
  LoraFactors factors(const LinearLayer& layer) const;
};

}  // namespace rlhf
