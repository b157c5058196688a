#include <napi.h>

#include <algorithm>

#include "core/philox.h"
#include "cpu/backend.h"
#include "node/cuda_plugin.h"
#include "node/kernels_bench.h"
#include "node/kernels_calls.h"
#include "node/kernels_device.h"
#include "node/kernels_model.h"
#include "simt/backend.h"

// rlhf_kernels.node: every op on every backend, for the repository's tests and microbenchmarks.
// test/support/kernels.ts types it.

const char* const rlhf::node::kCudaPluginFolder = "../Release/";  // beside the addon that is shipped

namespace rlhf::kernels {
namespace {

/// run(backend, op, arguments, { threads? })
Napi::Value run(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), threadsOf(info[3]));
    return withOp(backend.ops(), toText(info[1], "op"), [&]<class Arguments>(const char* name, auto entry) {
      const auto given = readArguments<Arguments>(name, toObject(info[2], "arguments"));
      backend.reserveScratch(scratchLimits(given.arguments), true);
      DeviceCopies copies(backend, given.buffers);
      runOp(backend.context(), entry, copies.onDevice(given.arguments));
      copies.copyBack();
      return info.Env().Undefined();
    });
  });
}

/// backends() → names
Napi::Value backends(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::vector<std::string> names = backendNames();
    Napi::Array result = Napi::Array::New(info.Env(), names.size());
    for (size_t i = 0; i < names.size(); ++i) result.Set(static_cast<uint32_t>(i), names[i]);
    return result;
  });
}

/// operators(backend) → names of the ops that it has
Napi::Value operators(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const Ops& ops = openBackend(toText(info[0], "backend"), 1).ops();
    Napi::Array result = Napi::Array::New(info.Env());
#define RLHF_LIST_OP(name, Arguments) \
  if (ops.name) result.Set(result.Length(), #name);
    RLHF_FOR_EACH_OP(RLHF_LIST_OP)
#undef RLHF_LIST_OP
    return result;
  });
}

/// operatorFields(op) → [{ name, kind, element }] in the order of the contract
Napi::Value operatorFields(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    return withOp(openBackend("ref", 1).ops(), toText(info[0], "op"), [&]<class Arguments>(const char*, auto) {
      Napi::Array result = Napi::Array::New(info.Env());
      Arguments arguments;
      arguments.fields([&]<class Field>(const char* name, Field&) {
        Napi::Object field = Napi::Object::New(info.Env());
        field.Set("name", name);
        field.Set("kind", kindName<Field>());
        if constexpr (std::is_pointer_v<Field>) field.Set("element", elementName<Field>());
        result.Set(result.Length(), field);
      });
      return result;
    });
  });
}

/// packedWeightBytes(backend, type, compute, inputs, outputs, backward) → bytes, 0 where the backend has no packed form
Napi::Value packedWeightBytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const Ops& ops = openBackend(toText(info[0], "backend"), 1).ops();
    const size_t bytes = ops.packedWeightBytes(toDType(info[1], "type"), toDType(info[2], "compute"), toInteger(info[3], "inputs"),
                                               toInteger(info[4], "outputs"), info[5].ToBoolean() ? 1 : 0);
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

/// scratchBytes(backend, limits, { threads? }) → bytes
Napi::Value scratchBytes(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), threadsOf(info[2]));
    const Napi::Object object = toObject(info[1], "limits");
    ScratchLimits limits;
    const std::pair<const char*, int64_t*> fields[] = {
        {"rows", &limits.rows},       {"maxWidth", &limits.maxWidth}, {"vocab", &limits.vocab},
        {"maxRank", &limits.maxRank}, {"heads", &limits.heads},       {"kvHeads", &limits.kvHeads},
        {"headDim", &limits.headDim}, {"tableStride", &limits.tableStride}};
    for (const auto& [name, field] : fields)
      if (const Napi::Value value = object.Get(name); !value.IsUndefined()) *field = toInteger(value, name);
    const size_t bytes = backend.ops().scratchBytes(backend.device(), &limits);
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

/// alignedBuffer(bytes) → an ArrayBuffer at a multiple of 64, as device memory is
Napi::Value alignedBuffer(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    static auto& device = *new cpu::CpuDevice(1);  // never destroyed: buffers may outlive all else
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(toInteger(info[0], "bytes"), 1));
    void* memory = nullptr;
    if (device.allocate(&device, bytes, &memory) != kOk)
      throw Error(code::kOutOfMemory, format("cannot allocate %zu bytes", bytes));
    return Napi::ArrayBuffer::New(info.Env(), memory, bytes, [](Napi::Env, void* data) { device.release(&device, data); });
  });
}

/// philox(seed, stream, index) → the four words of a block
Napi::Value philoxWords(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const auto word = [&](size_t i) {
      bool lossless = false;
      if (!info[i].IsBigInt()) throw Napi::TypeError::New(info.Env(), "philox takes BigInts");
      return info[i].As<Napi::BigInt>().Uint64Value(&lossless);
    };
    const PhiloxBlock block = philox(word(0), word(1), word(2));
    Napi::Uint32Array words = Napi::Uint32Array::New(info.Env(), 4);
    for (size_t i = 0; i < 4; ++i) words[i] = block.word[i];
    return words;
  });
}

/// toBits(values: Float32Array, "float16" | "bfloat16") → Uint16Array, rounded to nearest even
Napi::Value toBits(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    if (!info[0].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "values must be a Float32Array");
    const auto values = info[0].As<Napi::Float32Array>();
    Napi::Uint16Array bits = Napi::Uint16Array::New(info.Env(), values.ElementLength());
    convertFromFloat(values.Data(), bits.Data(), toDType(info[1], "type"), values.ElementLength());
    return bits;
  });
}

/// fromBits(bits: Uint16Array, "float16" | "bfloat16") → Float32Array
Napi::Value fromBits(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    if (!info[0].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "bits must be a Uint16Array");
    const auto bits = info[0].As<Napi::Uint16Array>();
    Napi::Float32Array values = Napi::Float32Array::New(info.Env(), bits.ElementLength());
    convertToFloat(bits.Data(), toDType(info[1], "type"), values.Data(), bits.ElementLength());
    return values;
  });
}

Napi::Value abiHashValue(const Napi::CallbackInfo& info) { return Napi::BigInt::New(info.Env(), abiHash()); }

/// simtSelfTests() → names of the emulator's own test kernels
Napi::Value simtSelfTests(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Napi::Array result = Napi::Array::New(info.Env());
    for (const std::string& name : simt::selfTestNames()) result.Set(result.Length(), name);
    return result;
  });
}

/// simtLaunches() → names of the kernels that the emulator has run since the last call
Napi::Value simtLaunches(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Napi::Array result = Napi::Array::New(info.Env());
    for (const std::string& name : simt::takeLaunches()) result.Set(result.Length(), name);
    return result;
  });
}

/// chooseBfloat16Kernel(name) → whether this machine has it: "amx", "dot" or "convert"; the CPU's products use it from now on
Napi::Value chooseBfloat16Kernel(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    return Napi::Boolean::New(info.Env(), cpu::useBfloat16Kernel(toText(info[0], "name").c_str()));
  });
}

/// runSimtSelfTest(name, seed) → what the emulator reported, "" for a sound run
Napi::Value runSimtSelfTest(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const uint64_t seed = static_cast<uint64_t>(toInteger(info[1], "seed"));
    return Napi::String::New(info.Env(), simt::runSelfTest(toText(info[0], "name"), seed));
  });
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  const std::pair<const char*, Napi::Value (*)(const Napi::CallbackInfo&)> functions[] = {
      {"run", run},
      {"backends", backends},
      {"operators", operators},
      {"operatorFields", operatorFields},
      {"packedWeightBytes", packedWeightBytes},
      {"scratchBytes", scratchBytes},
      {"alignedBuffer", alignedBuffer},
      {"philox", philoxWords},
      {"toBits", toBits},
      {"fromBits", fromBits},
      {"abiHash", abiHashValue},
      {"simtSelfTests", simtSelfTests},
      {"runSimtSelfTest", runSimtSelfTest},
      {"simtLaunches", simtLaunches},
      {"chooseBfloat16Kernel", chooseBfloat16Kernel},
  };
  for (const auto& [name, function] : functions) exports.Set(name, Napi::Function::New(env, function, name));
  defineModel(env, exports);
  defineMlp(env, exports);
  defineBench(env, exports);
  return exports;
}

}  // namespace
}  // namespace rlhf::kernels

static Napi::Object initializeKernels(Napi::Env env, Napi::Object exports) {
  return rlhf::kernels::initialize(env, exports);
}
NODE_API_MODULE(rlhf_kernels, initializeKernels)
