#include "model/initialise.h"

#include <cmath>
#include <numbers>

#include "core/philox.h"

namespace rlhf {

void initialiseNormal(ParameterGroup& group, int parameter, double std, uint64_t seed) {
  if (group.engine().plans()) return;
  std::vector<float> values(static_cast<size_t>(group.parameter(parameter).count));
  for (size_t i = 0; i < values.size(); i += 2) {
    const PhiloxBlock bits = philox(seed, static_cast<uint64_t>(parameter), i / 2);
    const double radius = std * std::sqrt(-2 * std::log1p(-uniformDouble(bits.word[0], bits.word[1])));
    const double angle = 2 * std::numbers::pi * uniformDouble(bits.word[2], bits.word[3]);
    values[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < values.size()) values[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  group.write(parameter, values.data());
}

void initialiseUniform(ParameterGroup& group, int parameter, double bound, uint64_t seed) {
  if (group.engine().plans()) return;
  std::vector<float> values(static_cast<size_t>(group.parameter(parameter).count));
  for (size_t i = 0; i < values.size(); ++i) {
    const PhiloxBlock bits = philox(seed, static_cast<uint64_t>(parameter), i);
    values[i] = static_cast<float>(bound * (2 * uniformDouble(bits.word[0], bits.word[1]) - 1));
  }
  group.write(parameter, values.data());
}

void initialiseConstant(ParameterGroup& group, int parameter, double value) {
  if (group.engine().plans()) return;
  const std::vector<float> values(static_cast<size_t>(group.parameter(parameter).count),
                                  static_cast<float>(value));
  group.write(parameter, values.data());
}

void initialiseBase(const Architecture& architecture, ParameterGroup& base, double std, uint64_t seed) {
  std::vector<double> spread(base.parameters().size(), std);
  const auto norm = [&](const NormLayer& layer) {
    if (layer.weight >= 0) initialiseConstant(base, layer.weight, 1);
  };
  norm(architecture.finalNorm);
  for (const Block& block : architecture.blocks) {
    norm(block.attentionNorm);
    norm(block.mlpNorm);
    norm(block.queryNorm);
    norm(block.keyNorm);
    if (architecture.config.family != Family::Gpt2) continue;
    for (const Stage stage : {kAttentionOut, kMlpOut})
      for (const LinearLayer& layer : block.stages[stage])
        spread[static_cast<size_t>(layer.weight)] =
            std / std::sqrt(2.0 * static_cast<double>(architecture.config.layers));
  }
  for (int i = 0; i < static_cast<int>(base.parameters().size()); ++i) {
    const Parameter& parameter = base.parameter(i);
    if (parameter.shape.size() == 2) {
      initialiseNormal(base, i, spread[static_cast<size_t>(i)], seed);
    } else if (parameter.name.ends_with(".bias")) {
      initialiseConstant(base, i, 0);
    }
  }
}

}  // namespace rlhf
