#include "model/mlp.h"
#include "node/arguments.h"
#include "node/kernels_arguments.h"
#include "node/kernels_backends.h"
#include "node/kernels_model.h"
#include "node/settings.h"

namespace rlhf::kernels {
namespace {

DeviceMemory copyIn(Engine& engine, Napi::Value value, const char* name, int64_t elements) {
  const auto bytes = static_cast<size_t>(elements) * dtypeSize(engine.type());
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array ||
      value.As<Napi::TypedArray>().ByteLength() != bytes)
    throw Error(code::kShape, format("%s must be a Float64Array of %zu bytes", name, bytes));
  DeviceMemory memory(engine, MemoryUse::Arrays, bytes, name);
  engine.upload(memory.data(), value.As<Napi::Float64Array>().Data(), bytes);
  return memory;
}

Napi::Value copyOut(Napi::Env env, Engine& engine, const DeviceMemory& memory) {
  Napi::Float64Array array = Napi::Float64Array::New(env, memory.bytes() / sizeof(double));
  engine.download(array.Data(), memory.data(), memory.bytes());
  engine.synchronize();
  return array;
}

/// runMlp({ type, sizes, activation, rows, x, parameters, dy? }) → { y, gradient?, dx? } on the oracle, float64 or complex128.
Napi::Value runMlp(const Napi::CallbackInfo& info) {
  return node::guarded(info, [&]() -> Napi::Value {
    const Napi::Object arguments = node::toObject(info[0], "arguments");
    const DType type = toDType(node::field(arguments, "type"), "type");
    if (type != DType::F64 && type != DType::C128) throw Error(code::kArgument, "runMlp: type must be float64 or complex128");
    Backend& backend = openBackend("ref", 1);
    Engine engine(backend.ops(), backend.device(), type);
    MlpShape shape{node::toIntegers(node::field(arguments, "sizes"), "sizes"),
                   node::toActivation(node::text(arguments, "activation", "tanh"))};
    shape.validate();
    const int64_t rows = node::integer(arguments, "rows", 1);
    const auto make = [&](int64_t elements) {
      return DeviceMemory(engine, MemoryUse::Arrays, static_cast<size_t>(elements) * dtypeSize(type), "an MLP's array");
    };
    const DeviceMemory x = copyIn(engine, arguments.Get("x"), "x", rows * shape.inputs());
    const DeviceMemory parameters = copyIn(engine, arguments.Get("parameters"), "parameters", shape.parameterCount());
    const DeviceMemory kept = make(rows * shape.keptPerRow()), y = make(rows * shape.outputs());
    mlpForward(engine, shape, rows, x.data(), parameters.data(), kept.data(), y.data());
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("y", copyOut(info.Env(), engine, y));
    if (arguments.Get("dy").IsUndefined()) return result;
    const DeviceMemory dy = copyIn(engine, arguments.Get("dy"), "dy", rows * shape.outputs());
    const DeviceMemory work = make(rows * shape.workPerRow()), gradient = make(shape.parameterCount());
    const DeviceMemory dx = make(rows * shape.inputs());
    mlpBackward(engine, shape, rows, x.data(), parameters.data(), kept.data(), dy.data(), work.data(), gradient.data(), dx.data());
    result.Set("gradient", copyOut(info.Env(), engine, gradient));
    result.Set("dx", copyOut(info.Env(), engine, dx));
    return result;
  });
}

}  // namespace

void defineMlp(Napi::Env env, Napi::Object exports) { exports.Set("runMlp", Napi::Function::New<runMlp>(env, "runMlp")); }

}  // namespace rlhf::kernels
