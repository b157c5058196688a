#pragma once
#include "node/array.h"
#include "node/engine.h"

// What the addon's functions on arrays share: (engine, arguments) → Promise of { outputs as DeviceArrays, stats }.

namespace rlhf::node {

using EnginePointer = std::shared_ptr<EngineHandle>;

/// The outputs of one call by name, with the sums that the kernel reports.
struct Outputs {
  std::vector<std::pair<const char*, std::shared_ptr<ArrayHandle>>> arrays;
  std::vector<const char*> statNames;
  std::vector<float> stats;
};

inline void* writable(const std::shared_ptr<ArrayHandle>& array) { return const_cast<void*>(array->data); }

/// Collects the inputs and parameters of a call on the event loop, then its outputs inside the command.
class ArrayCall {
 public:
  explicit ArrayCall(const Napi::CallbackInfo& info)
      : env_(info.Env()), engine_(EngineWrap::unwrap(info[0], "engine").handle()), given_(toObject(info[1], "arguments")) {}

  /// The first input decides the length that all later ones must have.
  std::shared_ptr<ArrayInput> array(const char* name, bool required = true) {
    auto input = array(name, length_, required);
    if (length_ < 0 && input->present()) length_ = input->length();
    return input;
  }
  /// An input whose length is another than the first one's.
  std::shared_ptr<ArrayInput> array(const char* name, int64_t length, bool required) {
    return std::make_shared<ArrayInput>(given_.Get(name), name, length, required);
  }
  const Napi::Object& given() const { return given_; }
  int64_t length() const { return length_; }

  /// Queues body(engine), which fills and returns the outputs.
  template <class Body>
  Napi::Value submit(Body body) {
    return engine_->queue->submit(
        env_,
        [engine = engine_, body = std::move(body)]() mutable {
          Outputs outputs = body(engine);
          engine->engine->synchronize();
          return outputs;
        },
        [](Napi::Env env, const Outputs& outputs) -> Napi::Value { return toJavaScript(env, outputs); });
  }

 private:
  static Napi::Value toJavaScript(Napi::Env env, const Outputs& outputs) {
    Napi::Object result = Napi::Object::New(env);
    const AddonData& data = *env.GetInstanceData<AddonData>();
    for (const auto& [name, array] : outputs.arrays) result.Set(name, wrap(env, data.array, array));
    Napi::Object stats = Napi::Object::New(env);
    for (size_t i = 0; i < outputs.stats.size(); ++i) stats.Set(outputs.statNames[i], outputs.stats[i]);
    result.Set("stats", stats);
    return result;
  }

  Napi::Env env_;
  EnginePointer engine_;
  Napi::Object given_;
  int64_t length_ = -1;
};

}  // namespace rlhf::node
