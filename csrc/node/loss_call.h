#pragma once
#include <algorithm>
#include <initializer_list>

#include "node/array.h"
#include "node/engine.h"

// What the loss functions of the addon share: (engine, arguments) → Promise of { outputs as DeviceArrays, stats }.

namespace rlhf::node {

/// The outputs of one call by name, with the sums that the kernel reports.
struct Outputs {
  std::vector<std::pair<const char*, std::shared_ptr<ArrayHandle>>> arrays;
  std::vector<const char*> statNames;
  std::vector<float> stats;
};

/// Collects the inputs and parameters of a call on the event loop, then its outputs inside the command.
class Call {
 public:
  explicit Call(const Napi::CallbackInfo& info)
      : engine_(EngineWrap::unwrap(info[0], "engine").handle()), arguments_(toObject(info[1], "arguments")) {}

  /// The first input decides the length that all later ones must have.
  std::shared_ptr<ArrayInput> array(const char* name, bool required = true) {
    auto input = std::make_shared<ArrayInput>(arguments_.Get(name), name, length_, required);
    if (length_ < 0 && input->present()) length_ = input->length();
    return input;
  }
  /// An input whose length is another than the number of tokens.
  std::shared_ptr<ArrayInput> array(const char* name, int64_t length, bool required = true) {
    return std::make_shared<ArrayInput>(arguments_.Get(name), name, length, required);
  }
  std::shared_ptr<std::vector<int32_t>> indices(const char* name) {
    return std::make_shared<std::vector<int32_t>>(toInt32s(field(arguments_, name), name));
  }
  /// The bounds of the sequences that the tokens divide into: kernels trust them.
  std::shared_ptr<std::vector<int32_t>> offsets() {
    auto values = indices("offsets");
    if (values->size() < 2 || values->front() != 0 || values->back() != length_ ||
        !std::is_sorted(values->begin(), values->end()))
      throwArgument(format("offsets must rise from 0 to the number of tokens, %lld", static_cast<long long>(length_)));
    return values;
  }
  bool has(const char* name) const { return !arguments_.Get(name).IsUndefined(); }
  double value(const char* name, double fallback) { return number(arguments_, name, fallback); }
  bool flag(const char* name, bool fallback) { return boolean(arguments_, name, fallback); }
  int64_t count(const char* name, int64_t fallback) { return integer(arguments_, name, fallback); }
  int64_t length() const { return length_; }

  /// Queues body(engine), which fills and returns the outputs.
  template <class Body>
  Napi::Value submit(const Napi::CallbackInfo& info, Body body) {
    return engine_->queue->submit(
        info.Env(),
        [engine = engine_, body]() mutable {
          Outputs outputs = body(engine);
          engine->engine->synchronize();
          return outputs;
        },
        [](Napi::Env env, const Outputs& outputs) -> Napi::Value { return toObject(env, outputs); });
  }

 private:
  static Napi::Value toObject(Napi::Env env, const Outputs& outputs) {
    Napi::Object result = Napi::Object::New(env);
    const AddonData& data = *env.GetInstanceData<AddonData>();
    for (const auto& [name, array] : outputs.arrays) result.Set(name, wrap(env, data.array, array));
    Napi::Object stats = Napi::Object::New(env);
    for (size_t i = 0; i < outputs.stats.size(); ++i) stats.Set(outputs.statNames[i], outputs.stats[i]);
    result.Set("stats", stats);
    return result;
  }
  static Napi::Object toObject(Napi::Value value, const char* name) { return node::toObject(value, name); }

  std::shared_ptr<EngineHandle> engine_;
  Napi::Object arguments_;
  int64_t length_ = -1;
};

inline void* writable(const std::shared_ptr<ArrayHandle>& array) { return const_cast<void*>(array->data); }

/// Integers that a kernel reads, on the device for the time of a command; null where there are none.
class DeviceIndices {
 public:
  DeviceIndices(EngineHandle& engine, const std::vector<int32_t>& values) {
    if (values.empty()) return;
    if (engine.engine->device()->unifiedMemory) {
      data_ = values.data();
      return;
    }
    const size_t bytes = values.size() * sizeof(int32_t);
    copy_ = DeviceMemory(*engine.engine, MemoryUse::Arrays, bytes, "indices");
    engine.engine->copy(copy_.data(), values.data(), bytes);
    data_ = reinterpret_cast<const int32_t*>(copy_.data());
  }
  const int32_t* data() const { return data_; }

 private:
  DeviceMemory copy_;
  const int32_t* data_ = nullptr;
};

/// Room on the device for a kernel's sums, read back once.
class Stats {
 public:
  Stats(EngineHandle& engine, std::initializer_list<const char*> names)
      : engine_(engine), names_(names), memory_(*engine.engine, MemoryUse::Arrays, names.size() * sizeof(float), "sums") {}
  void* data() { return memory_.data(); }
  void readInto(Outputs& outputs) {
    outputs.statNames = names_;
    outputs.stats.resize(names_.size());
    engine_.engine->copy(outputs.stats.data(), memory_.data(), names_.size() * sizeof(float));
    engine_.engine->synchronize();
  }

 private:
  EngineHandle& engine_;
  std::vector<const char*> names_;
  DeviceMemory memory_;
};

using EnginePointer = std::shared_ptr<EngineHandle>;

}  // namespace rlhf::node
