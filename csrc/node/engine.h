#pragma once
#include "node/handles.h"

namespace rlhf::node {

/// class Engine { constructor({ device?, threads?, instructionSet?, compute?, planning? }); readonly info; createModel(config, trainable, dtype); memory(); copies();
/// setMemoryBudget(bytes); dispose() }
class EngineWrap : public HandleWrap<EngineWrap, EngineHandle> {
 public:
  static constexpr const char* kName = "Engine";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x656e67696e650001ull};
  explicit EngineWrap(const Napi::CallbackInfo& info);
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value limits(const Napi::CallbackInfo& info);
  Napi::Value createModel(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value copies(const Napi::CallbackInfo& info);
  Napi::Value setMemoryBudget(const Napi::CallbackInfo& info);
};

}  // namespace rlhf::node
