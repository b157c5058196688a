#include "node/array.h"

namespace rlhf::node {
namespace {

/// Refuses arrays whose memory backward() has given back.
void requireUsable(const ArrayHandle& array) {
  if (array.pass && array.pass->consumed)
    throw Error(code::kPassConsumed, "this array belongs to a pass that backward() has consumed; read it before backward()");
}

}  // namespace

ArrayWrap::ArrayWrap(const Napi::CallbackInfo& info) : HandleWrap(info) {
  std::shared_ptr<ArrayHandle> array = handleFrom<ArrayHandle>(info, kName);
  std::shared_ptr<CommandQueue> queue = array->engine->queue;
  set(std::move(array), std::move(queue));
}

Napi::Value ArrayWrap::length(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value { return Napi::Number::New(info.Env(), static_cast<double>(handle()->length)); });
}

Napi::Value ArrayWrap::read(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::shared_ptr<ArrayHandle> array = handle();
    requireUsable(*array);
    const auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(array->length));
    return array->engine->queue->submit(
        info.Env(),
        [array, values] {
          array->engine->engine->download(values->data(), array->data, values->size() * sizeof(float));
          array->engine->engine->synchronize();
          return values;
        },
        [](Napi::Env env, const std::shared_ptr<std::vector<float>>& copied) -> Napi::Value {
          Napi::Float32Array result = Napi::Float32Array::New(env, copied->size());
          std::copy(copied->begin(), copied->end(), result.Data());
          return result;
        });
  });
}

ArrayInput::ArrayInput(Napi::Value value, const char* name, int64_t length, bool required) {
  if (value.IsUndefined() || value.IsNull()) {
    if (required) throwArgument(format("%s is missing: a Float32Array or a DeviceArray", name));
    return;
  }
  if (value.IsTypedArray()) {
    host_ = copyFloats(value, name);
    length_ = static_cast<int64_t>(host_->size());
  } else {
    array_ = ArrayWrap::unwrap(value, name).handle();
    requireUsable(*array_);
    length_ = array_->length;
  }
  if (length >= 0 && length_ != length)
    throw Error(code::kShape, format("%s has %lld elements, expected %lld (one per token of the batch)", name,
                                     static_cast<long long>(length_), static_cast<long long>(length)));
}

const void* ArrayInput::on(EngineHandle& engine) {
  if (array_) return array_->data;
  if (!host_) return nullptr;
  if (engine.engine->device()->unifiedMemory) return host_->data();
  const size_t bytes = host_->size() * sizeof(float);
  copy_ = DeviceMemory(*engine.engine, MemoryUse::Arrays, bytes, "an input array");
  engine.engine->upload(copy_.data(), host_->data(), bytes);
  return copy_.data();
}

std::shared_ptr<ArrayHandle> makeArray(const std::shared_ptr<EngineHandle>& engine, int64_t length) {
  auto array = std::make_shared<ArrayHandle>();
  array->engine = engine;
  array->length = length;
  array->memory = std::make_shared<DeviceMemory>(*engine->engine, MemoryUse::Arrays, static_cast<size_t>(length) * sizeof(float), "an array");
  array->data = array->memory->data();
  return array;
}

void defineArray(Napi::Env env, Napi::Object exports, AddonData& data) {
  const Napi::Function constructor = ArrayWrap::DefineClass(
      env, ArrayWrap::kName,
      {ArrayWrap::InstanceAccessor<&ArrayWrap::length>("length"), ArrayWrap::InstanceMethod<&ArrayWrap::read>("read"),
       ArrayWrap::InstanceMethod("dispose", &ArrayWrap::dispose)});
  data.array = Napi::Persistent(constructor);
  exports.Set(ArrayWrap::kName, constructor);
}

}  // namespace rlhf::node
