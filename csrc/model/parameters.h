#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/engine.h"
#include "model/model.h"

namespace rlhf {

/// A tensor whose rows stand in files as [outer][inner][…] and in memory as [inner][outer][…], so that GPT-NeoX's
/// query_key_value, [head][q, k, v], reads like the projections of other families.
struct RowOrder {
  int64_t outer = 1, inner = 1;
};

/// One tensor of a ParameterGroup; `offset` and `count` are in elements of the group's flat arrays, `place` in bytes.
struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;
  int64_t count = 0;
  RowOrder rows{};
  DType type = DType::F32;  // in memory
  size_t place = 0;
  uint64_t version = 0;  // of its values
  bool apart = false;    // in memory of its own (ParameterGroup::keepApart)
};

/// Holds parameters of a frozen group in a form of its own.
class ParameterKeeper {
 public:
  /// Writes the values of a parameter that is not held plainly to `plain`.
  virtual void restore(int parameter, void* plain) = 0;
  /// The parameter was written: takes its values over, and may letGo of it.
  virtual void keep(int parameter) = 0;

 protected:
  ~ParameterKeeper() = default;
};

/// Parameters one after another in the flat arrays that an optimizer updates at once.
struct ParameterRun {
  int64_t first = 0, count = 0;  // elements of the flat arrays, gaps included
  DType type = DType::F32;       // of `parameters`
  void* parameters = nullptr;
  void* master = nullptr;        // null where the parameters have no master weights
};

/// A flat block of parameters that train (or not) together. First `add` every parameter, then `allocate`
/// once. Parameters start at 64-byte boundaries; the gaps between them hold zeros and stay zero under AdamW.
class ParameterGroup {
 public:
  ParameterGroup(std::string name, bool trainable) : name_(std::move(name)), trainable_(trainable) {}

  /// Returns the index by which the parameter is known from now on.
  int add(std::string name, std::vector<int64_t> shape, RowOrder rows = {});
  /// Zeroes all parameters. Matrices are kept as `storage`; vectors, of which there are few, have the engine's type, and in a group that
  /// trains are kept in the accumulator's. Where the engine's type is narrower than what is kept, the latter are master weights
  /// (Micikevicius et al., 2018), and ops read a copy that is rounded to the engine's type. Matrices that train are kept in the
  /// accumulator's type or, without master weights, in bfloat16, where updates are rounded stochastically.
  void allocate(Engine& engine, DType storage);
  void allocate(Engine& engine) { allocate(engine, engine.accumulator()); }

  const std::string& name() const { return name_; }
  bool trainable() const { return trainable_; }
  DType storage() const { return storage_; }  // of matrices, as ops read them
  /// The type of matrices as they are written, read and trained.
  DType kept() const { return master_.data() && unmastered_ == 0 ? engine_->accumulator() : storage_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& parameter(int index) const { return parameters_[static_cast<size_t>(index)]; }
  int find(const std::string& name) const;  // −1 if there is none
  Engine& engine() const { return *engine_; }

  int64_t count() const { return count_; }  // elements of the flat arrays, gaps included
  void* data() const { return data_.data(); }
  /// Parameter `index`; null for −1, so that absent biases need no case of their own. One that is kept apart is brought back first, for
  /// as long as nobody lets go of it.
  void* data(int index) const;
  /// The same, but null where a parameter that is kept apart is not held at present.
  void* held(int index) const;

  /// The master weights of a parameter, or the parameter itself where it has none.
  void* master(int index) const;
  /// What an optimizer updates, of a group that trains.
  std::vector<ParameterRun> runs() const;
  /// Rounds the master weights of a parameter to what ops read, as an update does by itself; nothing without them.
  void roundMaster(int index);
  /// Takes the values of a group that is laid out alike.
  void copyFrom(const ParameterGroup& other);

  /// Before `allocate`: `index` is not part of the flat array, and `keeper` has it most of the time.
  void keepApart(int index, ParameterKeeper& keeper);
  /// Gives the memory of a parameter back that its keeper has.
  void letGo(int index) const;
  /// Gradients have the accumulator type. They are allocated, zeroed, when first asked for; null when the
  /// group is frozen.
  void* gradients();
  void* gradient(int index);
  bool hasGradients() const { return gradients_.data() != nullptr; }
  void zeroGradients();
  /// What the gradients have been multiplied by; backward passes bring them to their own scale first.
  double lossScale() const { return lossScale_; }
  void bringToScale(double lossScale);
  size_t parameterBytes() const { return data_.bytes() + master_.bytes(); }  // without those that are kept apart
  size_t gradientBytes() const { return gradients_.bytes(); }

  // Values come and go in the order of files.
  void write(int index, const float* values);
  /// The same, of values that come piece by piece: read(first, count, values).
  using ReadValues = std::function<void(int64_t first, int64_t count, float* values)>;
  void write(int index, const ReadValues& read);
  void read(int index, float* values) const;
  void readGradient(int index, float* values);
  /// The same for an array of `type` that is laid out as the parameter is: an optimizer's moments.
  void writeTo(int index, void* array, DType type, const float* values);
  void readFrom(int index, const void* array, DType type, float* values) const;

  /// Counts changes made from outside the optimizer. Packed copies of a frozen weight are valid for one version of that parameter.
  uint64_t version() const { return version_; }
  void markChanged(int index) { parameters_[static_cast<size_t>(index)].version = ++version_; }

 private:
  bool hasMaster(int index) const { return master_.data() && parameter(index).offset >= unmastered_; }
  /// The type of a parameter's values at master(index).
  DType keptType(int index) const { return hasMaster(index) ? engine_->accumulator() : parameter(index).type; }
  /// Lays the flat arrays out anew: matrices, then vectors.
  void putMatricesFirst();

  std::string name_;
  bool trainable_;
  std::vector<Parameter> parameters_;
  int64_t count_ = 0;
  int64_t unmastered_ = 0;  // elements at the beginning of the flat arrays that train as they are, in storage_
  uint64_t version_ = 0;
  DType storage_ = DType::F32;
  Engine* engine_ = nullptr;
  DeviceMemory data_, master_;  // the second, from element unmastered_ on, is empty where the first is kept itself
  // Of parameters kept apart; empty where they are not held. Reading brings one back, which changes no value.
  mutable std::vector<DeviceMemory> apart_;
  ParameterKeeper* keeper_ = nullptr;
  DeviceMemory gradients_;
  double lossScale_ = 1;
};

/// Device array of `type` to float32 on the host and back; waits for the stream.
void readAsFloat(Engine& engine, const void* source, DType type, float* values, int64_t count);
void writeFromFloat(Engine& engine, void* destination, DType type, const float* values, int64_t count);

/// The member of `known` that is nearest to `name` by edit distance; empty if `known` is empty.
std::string nearestName(const std::string& name, const std::vector<std::string>& known);

}  // namespace rlhf
