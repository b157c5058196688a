#include "model/parameters.h"

#include <algorithm>
#include <numeric>

namespace rlhf {
namespace {

constexpr int64_t kAlignmentElements = kAlignment / sizeof(float);
constexpr int64_t kMaxElements = int64_t{1} << 48;  // sums and sizes in bytes stay far from overflow

int64_t editDistance(const std::string& a, const std::string& b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int64_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

int ParameterGroup::add(std::string name, std::vector<int64_t> shape) {
  Parameter parameter{std::move(name), std::move(shape), count_, 1};
  for (const int64_t size : parameter.shape) parameter.count *= size;
  if (count_ > kMaxElements)
    throw Error(code::kOutOfMemory, format("%s has more parameters than any memory holds", name_.c_str()));
  count_ += (parameter.count + kAlignmentElements - 1) / kAlignmentElements * kAlignmentElements;
  parameters_.push_back(std::move(parameter));
  return static_cast<int>(parameters_.size()) - 1;
}

void ParameterGroup::allocate(Engine& engine) {
  engine_ = &engine;
  const size_t bytes = static_cast<size_t>(count_) * dtypeSize(engine.type());
  data_ = DeviceMemory(engine, bytes, ("the parameters of " + name_).c_str());
  engine.zero(data_.data(), bytes);
}

int ParameterGroup::find(const std::string& name) const {
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (parameters_[i].name == name) return static_cast<int>(i);
  return -1;
}

void* ParameterGroup::data(int index) const {
  if (index < 0) return nullptr;
  return data_.data() + static_cast<size_t>(parameter(index).offset) * dtypeSize(engine_->type());
}

void* ParameterGroup::gradients() {
  if (!trainable_) return nullptr;
  if (!gradients_.data()) {
    const size_t bytes = static_cast<size_t>(count_) * dtypeSize(engine_->accumulator());
    gradients_ = DeviceMemory(*engine_, bytes, ("the gradients of " + name_).c_str());
    engine_->zero(gradients_.data(), bytes);
  }
  return gradients_.data();
}

void* ParameterGroup::gradient(int index) {
  if (index < 0 || !trainable_) return nullptr;
  return static_cast<char*>(gradients()) +
         static_cast<size_t>(parameter(index).offset) * dtypeSize(engine_->accumulator());
}

void ParameterGroup::zeroGradients() {
  if (hasGradients()) engine_->zero(gradients_.data(), gradients_.bytes());
}

void ParameterGroup::write(int index, const float* values) {
  writeFromFloat(*engine_, data(index), engine_->type(), values, parameter(index).count);
  markChanged();
}

void ParameterGroup::read(int index, float* values) const {
  readAsFloat(*engine_, data(index), engine_->type(), values, parameter(index).count);
}

void ParameterGroup::readGradient(int index, float* values) {
  if (hasGradients()) {
    readAsFloat(*engine_, gradient(index), engine_->accumulator(), values, parameter(index).count);
  } else {
    std::fill_n(values, parameter(index).count, 0.0f);
  }
}

void readAsFloat(Engine& engine, const void* source, DType type, float* values, int64_t count) {
  const size_t elements = static_cast<size_t>(count), bytes = elements * dtypeSize(type);
  if (type == DType::F32) {
    engine.copy(values, source, bytes);
    engine.synchronize();
    return;
  }
  std::vector<char> staging(bytes);
  engine.copy(staging.data(), source, bytes);
  engine.synchronize();
  convertToFloat(staging.data(), type, values, elements);
}

void writeFromFloat(Engine& engine, void* destination, DType type, const float* values, int64_t count) {
  const size_t elements = static_cast<size_t>(count), bytes = elements * dtypeSize(type);
  std::vector<char> staging;
  const void* source = values;
  if (type != DType::F32) {
    staging.resize(bytes);
    convertFromFloat(values, staging.data(), type, elements);
    source = staging.data();
  }
  engine.copy(destination, source, bytes);
  engine.synchronize();
}

std::string nearestName(const std::string& name, const std::vector<std::string>& known) {
  const auto closer = [&](const std::string& a, const std::string& b) {
    return editDistance(name, a) < editDistance(name, b);
  };
  const auto best = std::min_element(known.begin(), known.end(), closer);
  return best == known.end() ? std::string() : *best;
}

}  // namespace rlhf
