#pragma once
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "node/array_call.h"

// Calls of one op. Its fields are bound by name: parameters have the same names in JavaScript, and so have inputs and outputs.

namespace rlhf::node {

/// Integers that a kernel reads, on the device for the time of a command; null where there are none.
class DeviceIndices {
 public:
  DeviceIndices(Engine& engine, const std::vector<int32_t>& values) {
    if (values.empty()) return;
    if (engine.device()->unifiedMemory) {
      data_ = values.data();
      return;
    }
    const size_t bytes = values.size() * sizeof(int32_t);
    copy_ = DeviceMemory(engine, MemoryUse::Arrays, bytes, "indices");
    engine.upload(copy_.data(), values.data(), bytes);
    data_ = reinterpret_cast<const int32_t*>(copy_.data());
  }
  const int32_t* data() const { return data_; }

 private:
  DeviceMemory copy_;
  const int32_t* data_ = nullptr;
};

/// An op with what it reads and writes, to be run in a command.
template <class Op>
struct OpPlan {
  struct Indices {
    const char* name;
    std::shared_ptr<std::vector<int32_t>> values;
  };

  Status (*Ops::*op)(OpContext*, const Op*) = nullptr;
  Op arguments;
  std::vector<std::pair<const char*, std::shared_ptr<ArrayInput>>> inputs;
  std::vector<Indices> indices;
  std::vector<std::pair<const char*, int64_t>> outputs;
  std::pair<const char*, int64_t> workspace{nullptr, 0};
  std::vector<const char*> statNames;

  Outputs run(const EnginePointer& handle) {
    Engine& engine = *handle->engine;
    for (const auto& [name, input] : inputs) bind(name, input->on(*handle));
    std::vector<DeviceIndices> onDevice;
    for (const auto& [name, values] : indices) bind(name, onDevice.emplace_back(engine, *values).data());
    Outputs results;
    for (const auto& [name, length] : outputs) {
      const auto& array = results.arrays.emplace_back(name, makeArray(handle, length)).second;
      bind(name, writable(array));
    }
    DeviceMemory work, sums;
    if (workspace.first) {
      work = DeviceMemory(engine, MemoryUse::Arrays, static_cast<size_t>(workspace.second) * sizeof(int32_t), workspace.first);
      bind(workspace.first, reinterpret_cast<int32_t*>(work.data()));
    }
    const size_t sumBytes = statNames.size() * sizeof(float);
    if (sumBytes > 0) {
      sums = DeviceMemory(engine, MemoryUse::Arrays, sumBytes, "sums");
      bind("stats", static_cast<void*>(sums.data()));
    }
    engine.run(engine.ops().*op, arguments);
    if (sumBytes > 0) {
      results.statNames = statNames;
      results.stats.resize(statNames.size());
      engine.download(results.stats.data(), sums.data(), sumBytes);
    }
    engine.synchronize();
    return results;
  }

 private:
  template <class Pointer>
  void bind(const char* name, Pointer array) {
    bool bound = false;
    arguments.fields([&](const char* field, auto& member) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(member)>, Pointer>)
        if (std::strcmp(field, name) == 0) member = array, bound = true;
    });
    if (!bound) throw Error(code::kInternal, format("the op has no array \"%s\" of this type", name));
  }
};

/// Collects a call of one op on the event loop. Parameters are read as it is made; the caller sets the sizes and names the arrays.
template <class Op>
class OpCall {
 public:
  OpCall(const Napi::CallbackInfo& info, Status (*Ops::*op)(OpContext*, const Op*)) : call_(info) {
    plan_.op = op;
    arguments.fields([&](const char* name, auto& parameter) { read(name, parameter); });
  }

  Op& arguments = plan_.arguments;

  /// Inputs that are as long as the first of them.
  void inputs(std::initializer_list<const char*> names) {
    for (const char* name : names) input(name);
  }
  void input(const char* name, bool required = true) { plan_.inputs.emplace_back(name, call_.array(name, required)); }
  /// An input of another length.
  void input(const char* name, int64_t length, bool required) {
    plan_.inputs.emplace_back(name, call_.array(name, length, required));
  }
  /// How long the first input is.
  int64_t length() const { return call_.length(); }

  /// Integers; returns how many there are.
  int64_t indices(const char* name) {
    plan_.indices.push_back({name, std::make_shared<std::vector<int32_t>>(toInt32s(field(call_.given(), name), name))});
    return static_cast<int64_t>(plan_.indices.back().values->size());
  }
  void indices(const char* name, int64_t length) { requireLength(name, indices(name), length); }
  /// None where they are left out or empty.
  void optionalIndices(const char* name, int64_t length) {
    if (call_.given().Get(name).IsUndefined()) return;
    if (const int64_t count = indices(name); count > 0) requireLength(name, count, length);
  }
  /// The bounds of the sequences that the tokens divide into: kernels trust them.
  void offsets() {
    arguments.sequences = indices("offsets") - 1;
    const std::vector<int32_t>& values = *plan_.indices.back().values;
    if (values.size() < 2 || values.front() != 0 || values.back() != length() || !std::is_sorted(values.begin(), values.end()))
      throwArgument(format("offsets must rise from 0 to the number of tokens, %lld", static_cast<long long>(length())));
  }

  void output(const char* name, int64_t length) { plan_.outputs.emplace_back(name, length); }
  /// Integers that the kernel works with and nobody reads.
  void workspace(const char* name, int64_t count) { plan_.workspace = {name, count}; }
  /// The sums that the op reports, in the order of its Stat.
  void stats(std::vector<const char*> names) { plan_.statNames = std::move(names); }

  Napi::Value submit() {
    return call_.submit([plan = plan_](const EnginePointer& engine) mutable { return plan.run(engine); });
  }

 private:
  /// A parameter keeps its default where it is left out; sizes, types and arrays are no parameters.
  template <class Field>
  void read(const char* name, Field& parameter) {
    if constexpr (std::is_same_v<Field, double>) {
      parameter = number(call_.given(), name, parameter);
    } else if constexpr (std::is_same_v<Field, int32_t>) {
      parameter = boolean(call_.given(), name, parameter != 0);
    } else if constexpr (std::is_enum_v<Field> && !std::is_same_v<Field, DType>) {
      parameter = static_cast<Field>(integer(call_.given(), name, static_cast<int64_t>(parameter)));
    }
  }

  static void requireLength(const char* name, int64_t count, int64_t length) {
    if (count != length)
      throw Error(code::kShape, format("%s has %lld elements, expected %lld", name, static_cast<long long>(count),
                                       static_cast<long long>(length)));
  }

  ArrayCall call_;
  OpPlan<Op> plan_;
};

}  // namespace rlhf::node
