#include "model/merge.h"

namespace rlhf {

template <class Body>
size_t MergedAdapter::forEachCopy(Body&& body) const {
  ArenaPlan plan;
  architecture_.forEachLinear([&](int, Stage, const LinearLayer& linear) {
    if (adapter_->adapts(linear)) body(linear, plan.reserve(weightBytes(linear)));
  });
  return plan.bytes();
}

size_t MergedAdapter::weightBytes(const LinearLayer& linear) const {
  return static_cast<size_t>(base_.parameter(linear.weight).count) * dtypeSize(engine_.accumulator());
}

MergedAdapter::MergedAdapter(Engine& engine, const Architecture& architecture, ParameterGroup& base,
                             std::shared_ptr<Adapter> adapter)
    : engine_(engine), architecture_(architecture), base_(base), adapter_(std::move(adapter)) {
  int64_t factorElements = 0;
  ScratchLimits limits;
  limits.rows = limits.maxRank = adapter_->maxRank;
  const size_t bytes = forEachCopy([&](const LinearLayer& linear, size_t) {
    factorElements = std::max(factorElements, linear.outputs * adapter_->layer(linear).rank);
    limits.maxWidth = std::max({limits.maxWidth, linear.inputs, linear.outputs});
  });
  engine.reserveScratch(limits);
  const size_t factorBytes = static_cast<size_t>(factorElements) * dtypeSize(engine.accumulator());
  DeviceMemory dy(engine, MemoryUse::Arrays, factorBytes, "merging an adapter");
  originals_ =
      DeviceMemory(engine, MemoryUse::Weights, bytes, "a copy of the weights that an adapter is merged into");
  forEachCopy([&](const LinearLayer& linear, size_t offset) {
    engine.copy(originals_.data() + offset, base.master(linear.weight), weightBytes(linear));
  });
  try {
    forEachCopy([&](const LinearLayer& linear, size_t) { add(linear, dy); });
    engine.synchronize();
  } catch (...) {
    restore();
    throw;
  }
  forEachCopy([&](const LinearLayer& linear, size_t) { changed(linear); });
  version_ = base.version();
}

void MergedAdapter::add(const LinearLayer& linear, DeviceMemory& dy) {
  // W += (scale·Bᵀ)ᵀ·A is the weight gradient of a linear layer with R rows, x = A and dy = scale·Bᵀ.
  const Adapter::Layer& layer = adapter_->layer(linear);
  const int64_t rank = layer.rank;
  std::vector<float> b(static_cast<size_t>(linear.outputs * rank)), transposed(b.size());
  readAsFloat(engine_, adapter_->group.master(layer.b), engine_.accumulator(), b.data(), linear.outputs * rank);
  for (int64_t m = 0; m < linear.outputs; ++m)
    for (int64_t r = 0; r < rank; ++r)
      transposed[static_cast<size_t>(r * linear.outputs + m)] =
          static_cast<float>(layer.scale) * b[static_cast<size_t>(m * rank + r)];
  writeFromFloat(engine_, dy.data(), engine_.accumulator(), transposed.data(), static_cast<int64_t>(transposed.size()));
  LinearBackward merge{.type = engine_.accumulator(),
                       .rows = rank,
                       .inputs = linear.inputs,
                       .outputs = linear.outputs,
                       .xStride = linear.inputs,
                       .dyStride = linear.outputs,
                       .dxStride = linear.inputs};
  merge.x = adapter_->group.master(layer.a);
  merge.dy = dy.data();
  merge.weight = {.type = engine_.accumulator(), .transposed = architecture_.transposedLinears};
  merge.dWeight = base_.master(linear.weight);
  engine_.run(engine_.ops().linearBackward, merge);
}

void MergedAdapter::restore() {
  forEachCopy([&](const LinearLayer& linear, size_t offset) {
    engine_.copy(base_.master(linear.weight), originals_.data() + offset, weightBytes(linear));
  });
  engine_.synchronize();
}

void MergedAdapter::unmerge() {
  if (base_.version() != version_)
    throw Error(code::kArgument,
                "the base's weights were written after the adapter was merged; restoring them would lose that");
  restore();
  forEachCopy([&](const LinearLayer& linear, size_t) { changed(linear); });
}

void MergedAdapter::changed(const LinearLayer& linear) {
  base_.roundMaster(linear.weight);
  base_.markChanged(linear.weight);
}

}  // namespace rlhf
