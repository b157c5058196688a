#include "model/adapter.h"

#include <algorithm>
#include <cmath>

#include "model/initialise.h"

namespace rlhf {
namespace {

bool matches(const std::string& module, const std::string& target) {
  return module == target || module.ends_with("." + target);
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void validateConfig(const Architecture& architecture, const AdapterConfig& config) {
  if (config.rank < 1 || config.rank > 65536)
    throw Error(code::kArgument,
                format("adapter rank must be 1 to 65536, got %lld", static_cast<long long>(config.rank)));
  if (!std::isfinite(config.alpha)) throw Error(code::kArgument, "adapter alpha must be a finite number");
  if (config.targetModules.empty())
    throw Error(code::kArgument, "an adapter needs at least one target module, of " +
                                     listed(architecture.linearModuleNames()));
  for (const std::string& target : config.targetModules) {
    const auto known = [&](const LinearLayer& layer) { return matches(layer.name, target); };
    const auto inBlock = [&](const Block& block) {
      return std::any_of(block.stages.begin(), block.stages.end(),
                         [&](const auto& stage) { return std::any_of(stage.begin(), stage.end(), known); });
    };
    if (std::none_of(architecture.blocks.begin(), architecture.blocks.end(), inBlock))
      throw Error(code::kUnknownName,
                  format("this model has no linear layer \"%s\" for an adapter; it has %s", target.c_str(),
                         listed(architecture.linearModuleNames()).c_str()));
  }
}

}  // namespace

Adapter::Adapter(Engine& engine, const Architecture& architecture, const std::string& name,
                 const AdapterConfig& adapterConfig)
    : config(adapterConfig),
      group("adapter:" + name, true),
      a(static_cast<size_t>(architecture.linears), -1),
      b(static_cast<size_t>(architecture.linears), -1),
      lowestStage(static_cast<int>(architecture.blocks.size()) * kStages) {
  validateConfig(architecture, config);
  for (size_t block = 0; block < architecture.blocks.size(); ++block)
    for (int stage = 0; stage < kStages; ++stage)
      for (const LinearLayer& layer : architecture.blocks[block].stages[static_cast<size_t>(stage)]) {
        const auto targets = [&](const std::string& target) { return matches(layer.name, target); };
        if (std::none_of(config.targetModules.begin(), config.targetModules.end(), targets)) continue;
        const size_t index = static_cast<size_t>(layer.index);
        a[index] = group.add(name + ":" + layer.name + ".lora_A", {config.rank, layer.inputs});
        b[index] = group.add(name + ":" + layer.name + ".lora_B", {layer.outputs, config.rank}, layer.rows);
        lowestStage = std::min(lowestStage, static_cast<int>(block) * kStages + stage);
      }
  group.allocate(engine);
  for (const int parameter : a)
    if (parameter >= 0) {
      const double bound = 1 / std::sqrt(static_cast<double>(group.parameter(parameter).shape[1]));
      initialiseUniform(group, parameter, bound, config.seed);
    }
}

LoraFactors Adapter::factors(const LinearLayer& layer) const {
  const size_t index = static_cast<size_t>(layer.index);
  return {config.rank, config.alpha / static_cast<double>(config.rank), group.data(a[index]),
          group.data(b[index])};
}

}  // namespace rlhf
