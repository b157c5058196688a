#include "model/adapter.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "model/initialise.h"

namespace rlhf {
namespace {

/// The configured layers by module path, checked but for the paths themselves.
std::map<std::string, const AdapterLayerConfig*> layersByModule(const AdapterConfig& config) {
  if (config.layers.empty()) throw Error(code::kArgument, "an adapter needs at least one layer");
  if (!(config.dropout >= 0 && config.dropout < 1))
    throw Error(code::kArgument, format("adapter dropout must be 0 to below 1, got %g", config.dropout));
  std::map<std::string, const AdapterLayerConfig*> byModule;
  for (const AdapterLayerConfig& layer : config.layers) {
    const char* module = layer.module.c_str();
    if (layer.rank < 1 || layer.rank > 65536)
      throw Error(code::kArgument, format("adapter rank must be 1 to 65536, got %lld for %s",
                                          static_cast<long long>(layer.rank), module));
    if (!std::isfinite(layer.scale))
      throw Error(code::kArgument,
                  format("adapter scale must be a finite number, got %g for %s", layer.scale, module));
    if (!byModule.emplace(layer.module, &layer).second)
      throw Error(code::kArgument, format("adapter layer \"%s\" is named twice", module));
  }
  return byModule;
}

}  // namespace

Adapter::Adapter(Engine& engine, const Architecture& architecture, const std::string& name,
                 const AdapterConfig& adapterConfig)
    : config(adapterConfig),
      group("adapter:" + name, config.trainable),
      layers(static_cast<size_t>(architecture.linears)),
      lowestStage(static_cast<int>(architecture.blocks.size()) * kStages) {
  std::map<std::string, const AdapterLayerConfig*> wanted = layersByModule(config);
  std::vector<std::string> known;
  architecture.forEachLinear([&](int block, Stage stage, const LinearLayer& linear) {
    known.push_back(linear.name);
    const auto found = wanted.find(linear.name);
    if (found == wanted.end()) return;
    const int64_t rank = found->second->rank;
    const std::string path = name + ":" + linear.name;
    Layer& layer = layers[static_cast<size_t>(linear.index)];
    layer.rank = rank;
    layer.scale = found->second->scale;
    layer.a = group.add(path + ".lora_A", {rank, linear.inputs});
    layer.b = group.add(path + ".lora_B", {linear.outputs, rank}, linear.rows);
    wanted.erase(found);
    lowestStage = std::min(lowestStage, block * kStages + stage);
    maxRank = std::max(maxRank, rank);
    maxInputs = std::max(maxInputs, linear.inputs);
  });
  if (!wanted.empty()) {
    const std::string& unknown = wanted.begin()->first;
    throw Error(code::kUnknownName,
                format("this model has no linear layer \"%s\" for an adapter; did you mean \"%s\"?",
                       unknown.c_str(), nearestName(unknown, known).c_str()));
  }
  group.allocate(engine);
  for (const Layer& layer : layers)
    if (layer.rank > 0) {
      const double bound = 1 / std::sqrt(static_cast<double>(group.parameter(layer.a).shape[1]));
      initialiseUniform(group, layer.a, bound, config.seed);
    }
}

LoraFactors Adapter::factors(const LinearLayer& linear) const {
  const Layer& factors = layer(linear);
  return {factors.rank, factors.scale, group.data(factors.a), group.data(factors.b)};
}

}  // namespace rlhf
