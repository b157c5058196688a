#pragma once
#include "node/handles.h"

namespace rlhf::node {

struct OptimizerHandle {
  std::shared_ptr<ModelHandle> model;
  std::unique_ptr<Optimizer> optimizer;
};

/// class Optimizer { constructor(model, groups, config); step(options); stepCount(); exportMoments(…); importMoments(…); setStepCount(n);
///   lossScale(); setLossScale(scale, steps) }
class OptimizerWrap : public HandleWrap<OptimizerWrap, OptimizerHandle> {
 public:
  static constexpr const char* kName = "Optimizer";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x6f7074696d000001ull};
  explicit OptimizerWrap(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value stepCount(const Napi::CallbackInfo& info);
  Napi::Value setStepCount(const Napi::CallbackInfo& info);
  Napi::Value lossScale(const Napi::CallbackInfo& info);
  Napi::Value setLossScale(const Napi::CallbackInfo& info);
  Napi::Value exportMoments(const Napi::CallbackInfo& info);
  Napi::Value importMoments(const Napi::CallbackInfo& info);

 private:
  Napi::Value command(const Napi::CallbackInfo& info, std::function<void(Optimizer&)> body, const Pins& pins);
};

}  // namespace rlhf::node
