#include "model/packed_weights.h"

#include <algorithm>

namespace rlhf {

void PackedWeights::plan(Engine& engine, DType storage) {
  matrices_.resize(static_cast<size_t>(architecture_.linears) + 1);
  architecture_.forEachLinear([&](int, Stage, const LinearLayer& layer) {
    Matrix& matrix = matrices_[static_cast<size_t>(layer.index)];
    matrix.inputs = layer.inputs;
    matrix.outputs = layer.outputs;
    matrix.transposed = architecture_.transposedLinears;
    matrix.parameter = layer.weight;
  });
  Matrix& head = matrices_.back();
  head.inputs = architecture_.config.hidden;
  head.outputs = architecture_.config.vocab;
  head.parameter = architecture_.head;
  if (base_.trainable()) return;
  for (Matrix& matrix : matrices_) {
    for (const Use use : {kForward, kBackward})
      matrix.forms[use].bytes = engine.ops().packedWeightBytes(storage, engine.compute(), matrix.inputs, matrix.outputs, use);
    matrix.apart = matrix.forms[kForward].bytes > 0 && storage == engine.compute();
    if (matrix.apart) base_.keepApart(matrix.parameter, *this);
  }
}

/// Gives memory, in one piece, to forms that have none of those matrices that are `wanted`. A matrix alone would fill whole huge pages
/// only in part, and from the small pages of the rest a core reads a third less (12 GB/s for 17, 8 rows).
template <class Wanted>
void PackedWeights::takeMemory(Use use, Wanted wanted) {
  const auto forEachWanted = [&](auto&& visit) {
    for (Matrix& matrix : matrices_)
      if (Form& form = matrix.forms[use]; form.bytes > 0 && !form.data && wanted(matrix)) visit(form);
  };
  size_t bytes = 0;
  forEachWanted([&](const Form& form) { bytes += alignUp(form.bytes); });
  if (bytes == 0) return;
  char* next = blocks_[use].emplace_back(base_.engine(), MemoryUse::PackedWeights, bytes, "packed weights").data();
  forEachWanted([&](Form& form) { form.data = next, next += alignUp(form.bytes); });
}

void PackedWeights::allocate() {
  takeMemory(kForward, [](const Matrix& matrix) { return matrix.apart; });
}

void PackedWeights::setBackwardForms(bool held) {
  backwardForms_ = held;
  if (formFor(kBackward) == kBackward || blocks_[kBackward].empty()) return;
  base_.engine().synchronize();
  for (Matrix& matrix : matrices_) matrix.forms[kBackward].data = nullptr, matrix.forms[kBackward].ready = false;
  blocks_[kBackward].clear();
}

/// What is held in bfloat16 for products in bfloat16 alone is paired by two of its inputs, and products backward want pairs of outputs.
PackedWeights::Use PackedWeights::formFor(Use use) const {
  const bool serves = base_.storage() == DType::F32 || base_.storage() != base_.engine().compute();
  return use == kBackward && !backwardForms_ && serves ? kForward : use;
}

void PackedWeights::prepareLinears(Use wanted) {
  const Use use = formFor(wanted);
  takeMemory(use, [&](const Matrix& matrix) { return &matrix != &matrices_.back(); });
  for (size_t i = 0; i + 1 < matrices_.size(); ++i) prepare(matrices_[i], use);
}

void PackedWeights::prepareHead(Use wanted) {
  const Use use = formFor(wanted);
  takeMemory(use, [&](const Matrix& matrix) { return &matrix == &matrices_.back(); });
  prepare(matrices_.back(), use);
}

bool PackedWeights::current(const Matrix& matrix, Use use) const {
  const Form& form = matrix.forms[use];
  return form.ready && form.version == base_.parameter(matrix.parameter).version;
}

void PackedWeights::prepare(Matrix& matrix, Use use) {
  Form& form = matrix.forms[use];
  if (form.bytes == 0) return;
  if (!current(matrix, use)) {
    Engine& engine = base_.engine();
    const void* plain = base_.data(matrix.parameter);
    form.ready = false;  // until it is packed
    engine.run(engine.ops().packWeight, PackWeight{.type = base_.storage(),
                                                   .compute = engine.compute(),
                                                   .inputs = matrix.inputs,
                                                   .outputs = matrix.outputs,
                                                   .transposed = matrix.transposed,
                                                   .backward = use,
                                                   .weight = plain,
                                                   .packed = form.data});
    form.version = base_.parameter(matrix.parameter).version;
    form.ready = true;
  }
  if (matrix.apart && current(matrix, kForward)) base_.letGo(matrix.parameter);
}

PackedWeights::Matrix& PackedWeights::matrixOf(int parameter) {
  return *std::find_if(matrices_.begin(), matrices_.end(), [&](const Matrix& matrix) { return matrix.parameter == parameter; });
}

size_t PackedWeights::matrixBytes(const Matrix& matrix) const {
  return static_cast<size_t>(matrix.inputs * matrix.outputs) * dtypeSize(base_.storage());
}

void PackedWeights::keep(int parameter) { prepare(matrixOf(parameter), kForward); }

void PackedWeights::restore(int parameter, void* plain) {
  const Matrix& matrix = matrixOf(parameter);
  Engine& engine = base_.engine();
  if (!current(matrix, kForward)) return engine.zero(plain, matrixBytes(matrix));  // nothing was written yet
  engine.run(engine.ops().unpackWeight, UnpackWeight{.type = base_.storage(),
                                                     .inputs = matrix.inputs,
                                                     .outputs = matrix.outputs,
                                                     .transposed = matrix.transposed,
                                                     .packed = matrix.forms[kForward].data,
                                                     .weight = plain});
}

LinearWeight PackedWeights::weight(const Matrix& matrix) const {
  const auto form = [&](Use use) { return current(matrix, use) ? matrix.forms[use].data : nullptr; };
  return {base_.storage(), base_.engine().compute(), matrix.transposed, base_.held(matrix.parameter), form(kForward),
          form(kBackward)};
}

LinearWeight PackedWeights::linear(const LinearLayer& layer) const { return weight(matrices_[static_cast<size_t>(layer.index)]); }

LinearWeight PackedWeights::head() const { return weight(matrices_.back()); }

const void* PackedWeights::packedEmbedding() {
  Matrix& head = matrices_.back();
  if (head.parameter != architecture_.embedding || !head.apart) return nullptr;
  prepare(head, kForward);
  return head.forms[kForward].data;
}

size_t PackedWeights::bytes() const {
  size_t bytes = 0;
  for (const std::vector<DeviceMemory>& blocks : blocks_)
    for (const DeviceMemory& block : blocks) bytes += block.bytes();
  return bytes;
}

}  // namespace rlhf
