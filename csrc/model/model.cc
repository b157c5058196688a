#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/initialise.h"
#include "model/model_impl.h"

namespace rlhf {

Model::Model() = default;
Model::~Model() = default;

namespace {

/// Before any memory is taken: else it would be the first pass that fails.
void requireHeadDim(const Ops& ops, int64_t headDim) {
  if (ops.maxHeadDim == 0 || headDim <= ops.maxHeadDim) return;
  throw Error(code::kUnsupported,
              format("the model's attention heads are %lld wide, and the %s backend has kernels for heads up to %lld: use %s",
                     static_cast<long long>(headDim), ops.backend, static_cast<long long>(ops.maxHeadDim),
                     std::strcmp(ops.backend, "cpu") == 0 ? "a model with narrower heads" : "device \"cpu\", or a model with narrower heads"));
}

}  // namespace

std::shared_ptr<Model> Model::create(std::shared_ptr<Engine> engine, const ModelConfig& config,
                                     bool trainable, std::optional<DType> storage) {
  config.validate();
  requireHeadDim(engine->ops(), config.headDim);
  const DType type = engine->type(), kept = storage.value_or(engine->accumulator());
  if (kept != type && kept != engine->accumulator() && type != DType::F32)
    throw Error(code::kUnsupported, format("the %s backend with %s arithmetic cannot keep weights as %s", engine->ops().backend,
                                           dtypeName(type), dtypeName(kept)));
  std::shared_ptr<Model> model(new Model());
  model->impl_ = std::make_unique<Impl>(std::move(engine), config, trainable, kept);
  return model;
}

const ModelConfig& Model::config() const { return impl_->config(); }
Engine& Model::engine() { return *impl_->engine; }

// Names.

std::vector<ParameterGroup*> Model::Impl::groups() {
  std::vector<ParameterGroup*> all = {&transformer.base()};
  for (auto& [name, adapter] : adapters) all.push_back(&adapter->group);
  for (auto& [name, head] : heads) all.push_back(&head->group);
  return all;
}

Model::Impl::ParameterPlace Model::Impl::find(const std::string& name) {
  std::vector<std::string> known;
  for (ParameterGroup* group : groups()) {
    const int index = group->find(name);
    if (index >= 0) return {*group, index};
    for (const Parameter& parameter : group->parameters()) known.push_back(parameter.name);
  }
  throw Error(code::kUnknownName, format("the model has no parameter \"%s\"; did you mean \"%s\"?",
                                         name.c_str(), nearestName(name, known).c_str()));
}

namespace {

template <class Value>
std::shared_ptr<Value> named(const std::map<std::string, std::shared_ptr<Value>>& values,
                             const std::string& name, const char* kind) {
  if (name.empty()) return nullptr;
  const auto found = values.find(name);
  if (found != values.end()) return found->second;
  std::string known;
  for (const auto& [other, value] : values) known += (known.empty() ? "" : ", ") + other;
  throw Error(code::kUnknownName, format("the model has no %s \"%s\"; it has %s", kind, name.c_str(),
                                         known.empty() ? "none" : known.c_str()));
}

}  // namespace

std::shared_ptr<Adapter> Model::Impl::adapter(const std::string& name) const {
  if (merged && mergedName == name)
    throw Error(code::kArgument,
                format("adapter \"%s\" is merged into the weights: name none, or unmergeAdapter(\"%s\") first",
                       name.c_str(), name.c_str()));
  return named(adapters, name, "adapter");
}
std::shared_ptr<Head> Model::Impl::head(const std::string& name) const { return named(heads, name, "head"); }

void Model::Impl::requireNewName(const std::string& name) const {
  if (name.empty() || name.find(':') != std::string::npos)
    throw Error(code::kArgument,
                format("\"%s\" cannot name an adapter or a head: names are not empty and hold no colon",
                       name.c_str()));
  // Parameters of adapters and heads start with the name alone, so the two share one space of names.
  if (adapters.count(name) || heads.count(name) || mergedName == name)
    throw Error(
        code::kArgument,
        format("the model already has an adapter or a head \"%s\": remove it first or choose another name",
               name.c_str()));
}

// Parameters.

std::vector<ParameterInfo> Model::parameters() const {
  std::vector<ParameterInfo> all;
  for (const ParameterGroup* group : impl_->groups())
    for (const Parameter& parameter : group->parameters())
      all.push_back({parameter.name, parameter.shape, group->name(), group->trainable()});
  return all;
}

namespace {

void requireCount(const Parameter& parameter, int64_t count) {
  if (count != parameter.count)
    throw Error(code::kShape, format("parameter \"%s\" has %lld elements, got %lld", parameter.name.c_str(),
                                     static_cast<long long>(parameter.count), static_cast<long long>(count)));
}

}  // namespace

void Model::writeParameter(const std::string& name, const float* values, int64_t count) {
  const auto [group, index] = impl_->find(name);
  requireCount(group.parameter(index), count);
  group.write(index, values);
}

void Model::writeParameter(const std::string& name, int64_t count, const ParameterGroup::ReadValues& read) {
  const auto [group, index] = impl_->find(name);
  requireCount(group.parameter(index), count);
  group.write(index, read);
}

void Model::readParameter(const std::string& name, float* values, int64_t count) {
  const auto [group, index] = impl_->find(name);
  requireCount(group.parameter(index), count);
  group.read(index, values);
}

void Model::readGradient(const std::string& name, float* values, int64_t count) {
  const auto [group, index] = impl_->find(name);
  requireCount(group.parameter(index), count);
  if (!group.trainable())
    throw Error(code::kArgument, format("parameter \"%s\" is frozen and has no gradient", name.c_str()));
  group.readGradient(index, values);
}

void* Model::parameterData(const std::string& name) {
  const auto [group, index] = impl_->find(name);
  void* const data = group.data(index);
  group.markChanged(index);  // the caller may write through the pointer before the next pass
  return data;
}

void* Model::gradientData(const std::string& name) {
  const auto [group, index] = impl_->find(name);
  return group.gradient(index);
}

void Model::initialise(double std, uint64_t seed) {
  if (!(std >= 0) || !std::isfinite(std))
    throw Error(code::kArgument, format("std must be at least 0, got %g", std));
  initialiseBase(impl_->transformer.architecture(), impl_->transformer.base(), std, seed);
}

ParameterGroup& Model::group(const std::string& name) {
  std::vector<std::string> known;
  for (ParameterGroup* group : impl_->groups()) {
    if (group->name() == name) return *group;
    known.push_back(group->name());
  }
  throw Error(code::kUnknownName, format("the model has no parameter group \"%s\"; did you mean \"%s\"?",
                                         name.c_str(), nearestName(name, known).c_str()));
}

void Model::zeroGradients(const std::string& name) { group(name).zeroGradients(); }

// Adapters and heads.

std::vector<LinearLayerInfo> Model::linearLayers() const {
  const Architecture& architecture = impl_->transformer.architecture();
  std::vector<LinearLayerInfo> layers;
  architecture.forEachLinear([&](int, Stage stage, const LinearLayer& linear) {
    layers.push_back({linear.name, linear.inputs, linear.outputs, architecture.transposedLinears,
                      stage == kQkv || stage == kAttentionOut});
  });
  return layers;
}

void Model::addAdapter(const std::string& name, const AdapterConfig& config) {
  impl_->requireNewName(name);
  impl_->adapters[name] =
      std::make_shared<Adapter>(*impl_->engine, impl_->transformer.architecture(), name, config);
}

void Model::addHead(const std::string& name, const HeadConfig& config) {
  impl_->requireNewName(name);
  impl_->heads[name] = std::make_shared<Head>(*impl_->engine, impl_->config().hidden, name, config);
}

void Model::removeAdapter(const std::string& name) {
  require(impl_->adapter(name) != nullptr, code::kArgument, "an adapter to remove must be named");
  impl_->engine->synchronize();
  impl_->adapters.erase(name);
}

void Model::removeHead(const std::string& name) {
  require(impl_->head(name) != nullptr, code::kArgument, "a head to remove must be named");
  impl_->engine->synchronize();
  impl_->heads.erase(name);
}

void Model::copyAdapter(const std::string& from, const std::string& to, bool trainable) {
  const std::shared_ptr<Adapter> source = impl_->adapter(from);
  require(source != nullptr, code::kArgument, "an adapter to copy must be named");
  impl_->requireNewName(to);
  AdapterConfig config = source->config;
  config.trainable = trainable;
  Engine& engine = *impl_->engine;
  auto copy = std::make_shared<Adapter>(engine, impl_->transformer.architecture(), to, config);
  copy->group.copyFrom(source->group);
  impl_->adapters[to] = std::move(copy);
}

void Model::mergeAdapter(const std::string& name, bool reversible) {
  const std::shared_ptr<Adapter> adapter = impl_->adapter(name);
  require(adapter != nullptr, code::kArgument, "an adapter to merge must be named");
  if (impl_->merged)
    throw Error(code::kArgument, format("adapter \"%s\" is merged already: unmergeAdapter(\"%s\") first",
                                        impl_->mergedName.c_str(), impl_->mergedName.c_str()));
  ParameterGroup& base = impl_->transformer.base();
  if (base.kept() != impl_->engine->accumulator())
    throw Error(code::kUnsupported,
                format("weights kept as %s cannot take an adapter in without rounding: load the model as float32, or save it merged",
                       dtypeName(base.kept())));
  if (reversible && base.trainable())
    throw Error(code::kArgument,
                "merging for a while needs a frozen base: training it would be lost by unmergeAdapter");
  auto merged =
      std::make_unique<MergedAdapter>(*impl_->engine, impl_->transformer.architecture(), base, adapter);
  impl_->adapters.erase(name);
  if (!reversible) return;
  impl_->mergedName = name;
  impl_->merged = std::move(merged);
}

void Model::unmergeAdapter(const std::string& name) {
  if (!impl_->merged || impl_->mergedName != name)
    throw Error(code::kUnknownName, format("adapter \"%s\" is not merged", name.c_str()));
  impl_->merged->unmerge();
  impl_->adapters[name] = impl_->merged->adapter();
  impl_->merged.reset();
  impl_->mergedName.clear();
}

// Passes and memory.

std::unique_ptr<Pass> Model::forward(const Batch& batch, const ForwardOptions& options) {
  return impl_->forward(batch, options, shared_from_this());
}
void Model::backward(Pass& pass, const PassGradients& gradients) { impl_->backward(pass, gradients); }
void Model::lossBackward(Pass& pass, const PassLosses& losses, LossSums& sums) { impl_->lossBackward(pass, losses, sums); }
std::unique_ptr<Pass> Model::forwardBackward(const Batch& batch, const ForwardOptions& options, const PassLosses& losses,
                                             LossSums& sums) {
  return impl_->forwardBackward(batch, options, losses, sums);
}

MemoryBytes Model::memory() const {
  MemoryBytes bytes{};
  const auto add = [&](MemoryUse use, size_t held) { bytes[static_cast<size_t>(use)] += held; };
  for (const ParameterGroup* group : impl_->groups()) {
    add(MemoryUse::Weights, group->parameterBytes());
    add(MemoryUse::Gradients, group->gradientBytes());
  }
  if (impl_->merged) add(MemoryUse::Weights, impl_->merged->adapter()->group.parameterBytes() + impl_->merged->bytes());
  const PassMemory& passes = *impl_->passMemory;
  add(MemoryUse::Weights, impl_->transformer.tableBytes());
  add(MemoryUse::PackedWeights, impl_->transformer.packedBytes());
  for (const MemoryPool* pool : {&passes.activations, &passes.outputs, &passes.distributions, &passes.logits}) pool->addBytes(bytes);
  add(MemoryUse::Activations, impl_->workspace.bytes());
  return bytes;
}

void Model::setMaxLivePasses(int64_t count) {
  if (count < 1)
    throw Error(code::kArgument, format("the number of live passes must be at least 1, got %lld",
                                        static_cast<long long>(count)));
  impl_->passMemory->maxLive = count;
}

LossScale& Model::lossScale() { return impl_->lossScale; }

void Model::setLogitsBudget(size_t bytes) { impl_->logitsBudget = bytes; }

int64_t Model::mostKeptPredictions() const {
  const size_t each = logitsBytes(*impl_->engine, impl_->transformer.architecture(), 1);
  return roundedDownCapacity(static_cast<int64_t>(impl_->logitsBudget / each));
}

void Model::setRecomputeLayers(bool recompute) { impl_->recomputeLayers = recompute; }

void Model::setPacksBackward(bool packs) { impl_->transformer.setPacksBackward(packs); }

}  // namespace rlhf
