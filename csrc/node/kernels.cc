#include <napi.h>

#include <chrono>
#include <cmath>
#include <cstdlib>

#include "core/arena.h"
#include "core/philox.h"
#include "cpu/backend.h"
#include "node/kernels_arguments.h"
#include "node/kernels_backends.h"
#include "node/kernels_model.h"
#include "simt/backend.h"

// rlhf_kernels.node: every op on every backend, for the repository's tests and microbenchmarks.
// test/support/kernels.ts types it.

namespace rlhf::kernels {
namespace {

/// Runs a function of the addon: an rlhf::Error becomes a JavaScript Error with its `code`.
template <class Body>
Napi::Value guarded(const Napi::CallbackInfo& info, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    Napi::Error thrown = Napi::Error::New(info.Env(), error.what());
    thrown.Value().Set("code", error.code());
    throw thrown;
  }
}

std::string toText(Napi::Value value, const char* what) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

Napi::Object toObject(Napi::Value value, const char* what) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be an object");
  return value.As<Napi::Object>();
}

int64_t toInteger(Napi::Value value, const char* what) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a number");
  return value.As<Napi::Number>().Int64Value();
}

/// options.threads, 1 where nothing is said.
int threadsOf(Napi::Value options) {
  if (options.IsUndefined()) return 1;
  const Napi::Value threads = toObject(options, "options").Get("threads");
  return threads.IsUndefined() ? 1 : static_cast<int>(toInteger(threads, "options.threads"));
}

/// Calls body.operator()<Arguments>(name, entry) for the op of that name; `entry` is its place in the table.
template <class Body>
Napi::Value withOp(const Ops& ops, const std::string& op, Body&& body) {
#define RLHF_MATCH_OP(name, Arguments) \
  if (op == #name) return body.template operator()<Arguments>(#name, ops.name);
  RLHF_FOR_EACH_OP(RLHF_MATCH_OP)
#undef RLHF_MATCH_OP
  throw Error(code::kUnknownName, format("there is no op \"%s\"", op.c_str()));
}

/// run(backend, op, arguments, { threads? })
Napi::Value run(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), threadsOf(info[3]));
    return withOp(backend.ops(), toText(info[1], "op"), [&]<class Arguments>(const char* name, auto entry) {
      const auto arguments = readArguments<Arguments>(name, toObject(info[2], "arguments"));
      backend.reserveScratch(scratchLimits(arguments), true);
      runOp(backend.context(), entry, arguments);
      return info.Env().Undefined();
    });
  });
}

/// bench(backend, op, arguments, repetitions, { threads?, burst? }) → { seconds, peak } of each repetition; peak is the multiply-add rate
/// right after it, NaN without `burst` and where the backend is not the CPU's
Napi::Value bench(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const std::string backendName = toText(info[0], "backend");
    const bool hasPeak = backendName.rfind("cpu", 0) == 0 && toObject(info[4], "options").Get("burst").ToBoolean();
    Backend& backend = openBackend(backendName, threadsOf(info[4]));
    const int64_t repetitions = toInteger(info[3], "repetitions");
    return withOp(backend.ops(), toText(info[1], "op"), [&]<class Arguments>(const char* name, auto entry) {
      const auto arguments = readArguments<Arguments>(name, toObject(info[2], "arguments"));
      backend.reserveScratch(scratchLimits(arguments), false);
      Napi::Float64Array seconds = Napi::Float64Array::New(info.Env(), static_cast<size_t>(repetitions));
      Napi::Float64Array peak = Napi::Float64Array::New(info.Env(), static_cast<size_t>(repetitions));
      for (int64_t i = 0; i < repetitions; ++i) {
        const auto start = std::chrono::steady_clock::now();
        runOp(backend.context(), entry, arguments);
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        seconds[static_cast<size_t>(i)] = elapsed.count();
        peak[static_cast<size_t>(i)] = hasPeak ? cpu::measureMultiplyAddBurst(backend.context()) : std::nan("");
      }
      Napi::Object result = Napi::Object::New(info.Env());
      result.Set("seconds", seconds);
      result.Set("peak", peak);
      return result;
    });
  });
}

/// multiplyAddPeak(threads) → floating-point operations a second that the CPU reaches now, the measure of matrix products
Napi::Value multiplyAddPeak(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const int threads = static_cast<int>(toInteger(info[0], "threads"));
    return Napi::Number::New(info.Env(), cpu::measureMultiplyAddPeak(threads));
  });
}

/// bfloat16Peak(threads) → the same of products in bfloat16 by the kernel that is in use
Napi::Value bfloat16Peak(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    return Napi::Number::New(info.Env(), cpu::measureBfloat16Peak(static_cast<int>(toInteger(info[0], "threads"))));
  });
}

/// streamingRate(threads, { readBytes, writtenBytes, updatedBytes }) → bytes a second, going through arrays of these sizes again and again
Napi::Value streamingRate(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    const int threads = static_cast<int>(toInteger(info[0], "threads"));
    const Napi::Object work = toObject(info[1], "work");
    const auto bytes = [&](const char* name) { return toInteger(work.Get(name), name); };
    const cpu::Stream stream{bytes("readBytes"), bytes("writtenBytes"), bytes("updatedBytes")};
    return Napi::Number::New(info.Env(), cpu::measureStreaming(threads, stream));
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
        {"headDim", &limits.headDim}};
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
      {"bench", bench},
      {"multiplyAddPeak", multiplyAddPeak},
      {"bfloat16Peak", bfloat16Peak},
      {"streamingRate", streamingRate},
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
      {"chooseBfloat16Kernel", chooseBfloat16Kernel},
  };
  for (const auto& [name, function] : functions) exports.Set(name, Napi::Function::New(env, function, name));
  defineModel(env, exports);
  defineMlp(env, exports);
  return exports;
}

}  // namespace
}  // namespace rlhf::kernels

static Napi::Object initializeKernels(Napi::Env env, Napi::Object exports) {
  return rlhf::kernels::initialize(env, exports);
}
NODE_API_MODULE(rlhf_kernels, initializeKernels)
