#include "model/parameters.h"

#include <algorithm>
#include <cmath>
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

/// [outer][inner][block] → [inner][outer][block].
void exchange(int64_t outer, int64_t inner, int64_t count, const float* source, float* destination) {
  const int64_t block = count / (outer * inner);
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i)
      std::copy_n(source + (o * inner + i) * block, block, destination + (i * outer + o) * block);
}

bool sameOrder(const Parameter& parameter) { return parameter.rows.outer == 1 || parameter.rows.inner == 1; }

void requireInRange(const Parameter& target, const float* values, int64_t count) {
  constexpr float kLargestHalf = 65504;
  const auto tooLarge = [](float value) { return std::abs(value) > kLargestHalf; };
  if (target.type == DType::F16 && std::any_of(values, values + count, tooLarge))
    throw Error(code::kWeights, format("parameter \"%s\" has values over %g, the largest of float16: keep it as bfloat16 or float32",
                                       target.name.c_str(), static_cast<double>(kLargestHalf)));
}

}  // namespace

int ParameterGroup::add(std::string name, std::vector<int64_t> shape, RowOrder rows) {
  Parameter parameter{std::move(name), std::move(shape), count_, 1, rows};
  for (const int64_t size : parameter.shape) parameter.count *= size;
  if (count_ > kMaxElements)
    throw Error(code::kOutOfMemory, format("%s has more parameters than any memory holds", name_.c_str()));
  count_ += (parameter.count + kAlignmentElements - 1) / kAlignmentElements * kAlignmentElements;
  parameters_.push_back(std::move(parameter));
  return static_cast<int>(parameters_.size()) - 1;
}

void ParameterGroup::allocate(Engine& engine, DType storage) {
  engine_ = &engine;
  const bool narrow = storage != engine.accumulator();
  if (trainable_ && narrow && storage != DType::BF16)
    throw Error(code::kUnsupported,
                format("weights that train are kept as %s or bfloat16, not as %s, in which updates would be lost: load the model with "
                       "one of those, or frozen",
                       dtypeName(engine.accumulator()), dtypeName(storage)));
  const bool mastered = engine.type() != engine.accumulator() && (trainable_ || !narrow);
  storage_ = narrow ? storage : engine.type();
  if (trainable_ && narrow) putMatricesFirst();
  const size_t unmasteredBytes = static_cast<size_t>(unmastered_) * dtypeSize(storage_);
  const bool flat = trainable_ || (storage_ == engine.type() && !keeper_);
  const auto flatPlace = [&](int64_t element) {
    return element < unmastered_ ? static_cast<size_t>(element) * dtypeSize(storage_)
                                 : unmasteredBytes + static_cast<size_t>(element - unmastered_) * dtypeSize(engine.type());
  };
  ArenaPlan plan;
  for (Parameter& parameter : parameters_) {
    parameter.type = parameter.shape.size() > 1 ? storage_ : engine.type();
    if (parameter.apart) continue;
    parameter.place =
        flat ? flatPlace(parameter.offset) : plan.reserve(static_cast<size_t>(parameter.count) * dtypeSize(parameter.type));
  }
  const auto take = [&](size_t bytes, const char* what) {
    DeviceMemory memory(engine, MemoryUse::Weights, bytes, (what + name_).c_str());
    engine.zero(memory.data(), bytes);
    return memory;
  };
  data_ = take(flat ? flatPlace(count_) : plan.bytes(), "the parameters of ");
  if (mastered) master_ = take(static_cast<size_t>(count_ - unmastered_) * dtypeSize(engine.accumulator()), "the master weights of ");
  if (keeper_) apart_.resize(parameters_.size());
}

void ParameterGroup::putMatricesFirst() {
  const int64_t alignment = static_cast<int64_t>(kAlignment / dtypeSize(storage_));
  count_ = 0;
  for (const bool matrices : {true, false}) {
    for (Parameter& parameter : parameters_) {
      if ((parameter.shape.size() > 1) != matrices) continue;
      parameter.offset = count_;
      count_ += (parameter.count + alignment - 1) / alignment * alignment;
    }
    if (matrices) unmastered_ = count_;
  }
}

void ParameterGroup::keepApart(int index, ParameterKeeper& keeper) {
  parameters_[static_cast<size_t>(index)].apart = true;
  keeper_ = &keeper;
}

int ParameterGroup::find(const std::string& name) const {
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (parameters_[i].name == name) return static_cast<int>(i);
  return -1;
}

void* ParameterGroup::held(int index) const {
  if (index < 0) return nullptr;
  if (parameter(index).apart) return apart_[static_cast<size_t>(index)].data();
  return data_.data() + parameter(index).place;
}

void* ParameterGroup::data(int index) const {
  void* const present = held(index);
  if (present || index < 0) return present;
  const Parameter& parameter = this->parameter(index);
  const size_t bytes = static_cast<size_t>(parameter.count) * dtypeSize(parameter.type);
  DeviceMemory memory(*engine_, MemoryUse::Arrays, bytes, parameter.name.c_str());
  keeper_->restore(index, memory.data());
  DeviceMemory& place = apart_[static_cast<size_t>(index)];
  place = std::move(memory);
  return place.data();
}

void* ParameterGroup::master(int index) const {
  if (index < 0 || !hasMaster(index)) return data(index);
  return master_.data() + static_cast<size_t>(parameter(index).offset - unmastered_) * dtypeSize(engine_->accumulator());
}

std::vector<ParameterRun> ParameterGroup::runs() const {
  std::vector<ParameterRun> runs;
  if (unmastered_ > 0) runs.push_back({0, unmastered_, storage_, data_.data(), nullptr});
  const size_t place = static_cast<size_t>(unmastered_) * dtypeSize(storage_);
  if (unmastered_ < count_) runs.push_back({unmastered_, count_ - unmastered_, engine_->type(), data_.data() + place, master_.data()});
  return runs;
}

void ParameterGroup::roundMaster(int index) {
  if (!hasMaster(index)) return;
  engine_->run(engine_->ops().narrow,
               Narrow{.type = engine_->type(), .count = parameter(index).count, .x = master(index), .y = data(index)});
}

void ParameterGroup::copyFrom(const ParameterGroup& other) {
  engine_->copy(data_.data(), other.data_.data(), data_.bytes());
  engine_->copy(master_.data(), other.master_.data(), master_.bytes());
  engine_->synchronize();
}

void ParameterGroup::letGo(int index) const {
  DeviceMemory& place = apart_[static_cast<size_t>(index)];
  if (!place.data()) return;
  engine_->synchronize();  // earlier commands may still read it
  place = DeviceMemory();
}

void* ParameterGroup::gradients() {
  if (!trainable_) return nullptr;
  if (!gradients_.data()) {
    const size_t bytes = static_cast<size_t>(count_) * dtypeSize(engine_->accumulator());
    gradients_ = DeviceMemory(*engine_, MemoryUse::Gradients, bytes, ("the gradients of " + name_).c_str());
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

void ParameterGroup::bringToScale(double lossScale) {
  if (hasGradients() && lossScale != lossScale_)
    engine_->run(engine_->ops().narrow, Narrow{.type = engine_->accumulator(),
                                               .count = count_,
                                               .scale = lossScale / lossScale_,
                                               .x = gradients_.data(),
                                               .y = gradients_.data()});
  lossScale_ = lossScale;
}

void ParameterGroup::write(int index, const float* values) {
  const Parameter& target = parameter(index);
  requireInRange(target, values, target.count);
  writeTo(index, master(index), keptType(index), values);
  roundMaster(index);
  markChanged(index);
  if (target.apart) keeper_->keep(index);
}

void ParameterGroup::write(int index, const ReadValues& read) {
  const Parameter& target = parameter(index);
  if (!sameOrder(target)) {
    std::vector<float> values(static_cast<size_t>(target.count));
    read(0, target.count, values.data());
    return write(index, values.data());
  }
  constexpr int64_t kPiece = int64_t{1} << 20;
  char* const to = static_cast<char*>(master(index));
  const DType type = keptType(index);
  markChanged(index);  // from the first piece on
  std::vector<float> piece(static_cast<size_t>(std::min(kPiece, target.count)));
  for (int64_t first = 0; first < target.count; first += kPiece) {
    const int64_t count = std::min(kPiece, target.count - first);
    read(first, count, piece.data());
    requireInRange(target, piece.data(), count);
    writeFromFloat(*engine_, to + static_cast<size_t>(first) * dtypeSize(type), type, piece.data(), count);
  }
  roundMaster(index);
  if (target.apart) keeper_->keep(index);
}

void ParameterGroup::read(int index, float* values) const {
  const bool present = held(index) != nullptr;
  readFrom(index, master(index), keptType(index), values);
  if (!present) letGo(index);
}

void ParameterGroup::readGradient(int index, float* values) {
  if (hasGradients()) {
    readFrom(index, gradient(index), engine_->accumulator(), values);
    const int64_t count = parameter(index).count;
    std::transform(values, values + count, values, [&](float value) { return static_cast<float>(value / lossScale_); });
  } else {
    std::fill_n(values, parameter(index).count, 0.0f);
  }
}

void ParameterGroup::writeTo(int index, void* array, DType type, const float* values) {
  const Parameter& target = parameter(index);
  if (sameOrder(target)) return writeFromFloat(*engine_, array, type, values, target.count);
  std::vector<float> ordered(static_cast<size_t>(target.count));
  exchange(target.rows.outer, target.rows.inner, target.count, values, ordered.data());
  writeFromFloat(*engine_, array, type, ordered.data(), target.count);
}

void ParameterGroup::readFrom(int index, const void* array, DType type, float* values) const {
  const Parameter& source = parameter(index);
  if (sameOrder(source)) return readAsFloat(*engine_, array, type, values, source.count);
  std::vector<float> ordered(static_cast<size_t>(source.count));
  readAsFloat(*engine_, array, type, ordered.data(), source.count);
  exchange(source.rows.inner, source.rows.outer, source.count, ordered.data(), values);
}

void readAsFloat(Engine& engine, const void* source, DType type, float* values, int64_t count) {
  const size_t elements = static_cast<size_t>(count), bytes = elements * dtypeSize(type);
  if (type == DType::F32) {
    engine.download(values, source, bytes);
    engine.synchronize();
    return;
  }
  std::vector<char> staging(bytes);
  engine.download(staging.data(), source, bytes);
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
  engine.upload(destination, source, bytes);
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
