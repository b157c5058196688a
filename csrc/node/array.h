#pragma once
#include "node/handles.h"

namespace rlhf::node {

/// class DeviceArray { readonly length; read(): Promise<Float32Array>; dispose() }
class ArrayWrap : public HandleWrap<ArrayWrap, ArrayHandle> {
 public:
  static constexpr const char* kName = "DeviceArray";
  static constexpr napi_type_tag kTag = {0x6e6f64652d726c68ull, 0x6172726179000001ull};
  explicit ArrayWrap(const Napi::CallbackInfo& info);
  Napi::Value length(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
};

}  // namespace rlhf::node
