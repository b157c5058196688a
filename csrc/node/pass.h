#pragma once
#include "node/handles.h"

namespace rlhf::node {

/// Throws ERR_RLHF_PASS_CONSUMED.
void requireNotConsumed(const PassHandle& pass);

/// class Pass { readonly rows; array(which: "logProb" | "lse" | "entropy" | "value" | "kl"); backward(gradients);
/// lossBackward(loss, value?); dispose() }
class PassWrap : public HandleWrap<PassWrap, PassHandle> {
 public:
  static constexpr const char* kName = "Pass";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x7061737300000001ull};
  explicit PassWrap(const Napi::CallbackInfo& info);
  Napi::Value rows(const Napi::CallbackInfo& info);
  Napi::Value array(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
  Napi::Value lossBackward(const Napi::CallbackInfo& info);
};

}  // namespace rlhf::node
