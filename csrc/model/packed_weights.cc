#include "model/packed_weights.h"

namespace rlhf {

void PackedWeights::prepareLinears(Use use) {
  std::vector<Matrix> matrices;
  for (const Block& block : architecture_.blocks)
    for (const std::vector<LinearLayer>& stage : block.stages)
      for (const LinearLayer& layer : stage)
        matrices.push_back({layer.inputs, layer.outputs, architecture_.transposedLinears, layer.weight});
  prepare(linears_[use], matrices, use);
}

void PackedWeights::prepareHead(Use use) {
  prepare(head_[use], {{architecture_.config.hidden, architecture_.config.vocab, 0, architecture_.head}},
          use);
}

void PackedWeights::prepare(Form& form, const std::vector<Matrix>& matrices, Use use) {
  if (base_.trainable() || (form.ready && form.version == base_.version())) return;
  Engine& engine = base_.engine();
  if (form.weights.empty()) {
    ArenaPlan plan;
    std::vector<size_t> offsets, sizes;
    for (const Matrix& matrix : matrices) {
      sizes.push_back(engine.ops().packedWeightBytes(base_.storage(), engine.compute(), matrix.inputs, matrix.outputs, use));
      offsets.push_back(plan.reserve(sizes.back()));
    }
    form.memory = DeviceMemory(engine, MemoryUse::PackedWeights, plan.bytes(), "packed weights");
    for (size_t i = 0; i < matrices.size(); ++i)
      form.weights.push_back(sizes[i] > 0 ? form.memory.data() + offsets[i] : nullptr);
  }
  form.ready = false;  // until all of them are packed
  for (size_t i = 0; i < matrices.size(); ++i) {
    if (!form.weights[i]) continue;
    engine.run(engine.ops().packWeight, PackWeight{.type = base_.storage(),
                                                   .compute = engine.compute(),
                                                   .inputs = matrices[i].inputs,
                                                   .outputs = matrices[i].outputs,
                                                   .transposed = matrices[i].transposed,
                                                   .backward = use,
                                                   .weight = base_.data(matrices[i].parameter),
                                                   .packed = const_cast<void*>(form.weights[i])});
  }
  form.version = base_.version();
  form.ready = true;
}

const void* PackedWeights::packed(const Form& form, int index) const {
  return form.ready && form.version == base_.version() ? form.weights[static_cast<size_t>(index)] : nullptr;
}

LinearWeight PackedWeights::linear(const LinearLayer& layer) const {
  return {base_.storage(), base_.engine().compute(), architecture_.transposedLinears, base_.data(layer.weight),
          packed(linears_[kForward], layer.index), packed(linears_[kBackward], layer.index)};
}

LinearWeight PackedWeights::head() const {
  return {base_.storage(), base_.engine().compute(), 0, base_.data(architecture_.head), packed(head_[kForward], 0),
          packed(head_[kBackward], 0)};
}

size_t PackedWeights::bytes() const {
  size_t bytes = 0;
  for (const int use : {kForward, kBackward})
    bytes += linears_[use].memory.bytes() + head_[use].memory.bytes();
  return bytes;
}

}  // namespace rlhf
