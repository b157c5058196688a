#pragma once
#include "node/handles.h"

namespace rlhf::node {

/// class Pass { readonly rows; array(which: "logProb" | "lse" | "entropy" | "value" | "kl"); backward(gradients); dispose() }
class PassWrap : public HandleWrap<PassWrap, PassHandle> {
 public:
  static constexpr const char* kName = "Pass";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x7061737300000001ull};
  explicit PassWrap(const Napi::CallbackInfo& info);
  Napi::Value rows(const Napi::CallbackInfo& info);
  Napi::Value array(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
};

}  // namespace rlhf::node
