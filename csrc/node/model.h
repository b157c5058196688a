#pragma once
#include "node/handles.h"

namespace rlhf::node {

/// class Model: lib/engine/native.ts documents the methods.
class ModelWrap : public HandleWrap<ModelWrap, ModelHandle> {
 public:
  static constexpr const char* kName = "Model";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x6d6f64656c000001ull};
  explicit ModelWrap(const Napi::CallbackInfo& info);

  Napi::Value parameters(const Napi::CallbackInfo& info);
  Napi::Value linearLayers(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value setMaxLivePasses(const Napi::CallbackInfo& info);
  Napi::Value setRecomputeLayers(const Napi::CallbackInfo& info);
  Napi::Value setPacksBackward(const Napi::CallbackInfo& info);
  Napi::Value mostKeptPredictions(const Napi::CallbackInfo& info);
  Napi::Value addAdapter(const Napi::CallbackInfo& info);
  Napi::Value removeAdapter(const Napi::CallbackInfo& info);
  Napi::Value addHead(const Napi::CallbackInfo& info);
  Napi::Value removeHead(const Napi::CallbackInfo& info);

  Napi::Value initialise(const Napi::CallbackInfo& info);
  Napi::Value copyAdapter(const Napi::CallbackInfo& info);
  Napi::Value mergeAdapter(const Napi::CallbackInfo& info);
  Napi::Value unmergeAdapter(const Napi::CallbackInfo& info);
  Napi::Value loadParameter(const Napi::CallbackInfo& info);
  Napi::Value writeParameter(const Napi::CallbackInfo& info);
  Napi::Value readParameter(const Napi::CallbackInfo& info);
  Napi::Value readGradient(const Napi::CallbackInfo& info);
  Napi::Value zeroGradients(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value forwardBackward(const Napi::CallbackInfo& info);
  Napi::Value generate(const Napi::CallbackInfo& info);

 private:
  /// Runs a short change of the model's structure after everything queued before, and waits for it.
  Napi::Value change(const Napi::CallbackInfo& info, const std::function<void(Model&)>& body);
  /// Queues a change of the model's structure.
  Napi::Value queuedChange(const Napi::CallbackInfo& info, std::function<void(Model&)> body);
  /// Queues a command without a result.
  Napi::Value command(const Napi::CallbackInfo& info, std::function<void(Model&)> body, const Pins& pins);
  Napi::Value read(const Napi::CallbackInfo& info, void (Model::*reader)(const std::string&, float*, int64_t));
};

}  // namespace rlhf::node
