#include "node/kernels_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "cpu/backend.h"
#include "node/kernels_calls.h"
#include "node/kernels_device.h"

namespace rlhf::kernels {
namespace {

Napi::Value toSeconds(Napi::Env env, const std::vector<double>& measured) {
  Napi::Float64Array seconds = Napi::Float64Array::New(env, measured.size());
  std::copy(measured.begin(), measured.end(), seconds.Data());
  return seconds;
}

/// bench(backend, op, arguments, repetitions, { threads? }) → { seconds } of each repetition. For devices with memory of their own there is
/// benchOnDevice.
Napi::Value bench(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), threadsOf(info[4]));
    const int64_t repetitions = toInteger(info[3], "repetitions");
    return withOp(backend.ops(), toText(info[1], "op"), [&]<class Arguments>(const char* name, auto entry) -> Napi::Value {
      const auto arguments = readArguments<Arguments>(name, toObject(info[2], "arguments")).arguments;
      backend.reserveScratch(scratchLimits(arguments), false);
      std::vector<double> seconds;
      for (int64_t i = 0; i < repetitions; ++i) {
        const auto start = std::chrono::steady_clock::now();
        runOp(backend.context(), entry, arguments);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      Napi::Object result = Napi::Object::New(info.Env());
      result.Set("seconds", toSeconds(info.Env(), seconds));
      return result;
    });
  });
}

/// Memory that is overwritten before what is timed begins: so long that the host has queued everything by then.
constexpr size_t kLeadBytes = size_t{1} << 30;

/// benchOnDevice(backend, op, arguments, repetitions, { copies?, leadBytes? }) → { seconds, scratchBytes }: seconds of each repetition by the
/// device's events. Repetitions go through so many copies of the arrays in turn, so that none finds its own in a cache.
Napi::Value benchOnDevice(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), 1);
    const int64_t repetitions = toInteger(info[3], "repetitions");
    const Napi::Object options = toObject(info[4], "options");
    const auto option = [&](const char* name, int64_t fallback) {
      const Napi::Value value = options.Get(name);
      return value.IsUndefined() ? fallback : toInteger(value, name);
    };
    return withOp(backend.ops(), toText(info[1], "op"), [&]<class Arguments>(const char* name, auto entry) -> Napi::Value {
      const auto given = readArguments<Arguments>(name, toObject(info[2], "arguments"));
      backend.reserveScratch(scratchLimits(given.arguments), false);
      std::vector<std::unique_ptr<DeviceCopies>> copies;
      for (int64_t i = 0; i < std::max<int64_t>(option("copies", 1), 1); ++i)
        copies.push_back(std::make_unique<DeviceCopies>(backend, given.buffers));
      const auto run = [&](int64_t i) {
        runOp(backend.context(), entry, copies[static_cast<size_t>(i) % copies.size()]->onDevice(given.arguments));
      };
      run(0);
      const auto leadBytes = static_cast<size_t>(option("leadBytes", kLeadBytes));
      const auto release = [&](void* memory) { backend.release(memory); };
      const std::unique_ptr<void, decltype(release)> lead(backend.allocate(leadBytes, "a measurement's lead"), release);
      backend.fill(lead.get(), 0, leadBytes);
      Napi::Object result = Napi::Object::New(info.Env());
      result.Set("seconds", toSeconds(info.Env(), timeByEvents(backend, repetitions, run)));
      result.Set("scratchBytes", static_cast<double>(backend.context().scratchBytes));
      return result;
    });
  });
}

/// deviceCopySeconds(backend, bytes, repetitions) → seconds of copying so many bytes from one place of the device's memory to another
Napi::Value deviceCopySeconds(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), 1);
    const auto bytes = static_cast<size_t>(toInteger(info[1], "bytes"));
    const auto release = [&](void* memory) { backend.release(memory); };
    using Memory = std::unique_ptr<void, decltype(release)>;
    const Memory from(backend.allocate(bytes, "the source of a copy"), release);
    const Memory to(backend.allocate(bytes, "the destination of a copy"), release);
    backend.fill(from.get(), 0x5a, bytes);
    backend.copy(to.get(), from.get(), bytes);
    return toSeconds(info.Env(), timeByEvents(backend, toInteger(info[2], "repetitions"),
                                              [&](int64_t) { backend.copy(to.get(), from.get(), bytes); }));
  });
}

/// keepsOverwrittenSource(backend, bytes, { leadBytes? }) → whether a copy to the device brings what the host's memory held when it was
/// queued, where that memory is overwritten at once and the device has other things to do first. Models' uploads rely on it.
Napi::Value keepsOverwrittenSource(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), 1);
    const auto bytes = static_cast<size_t>(toInteger(info[1], "bytes"));
    const Napi::Value lead = toObject(info[2], "options").Get("leadBytes");
    const auto leadBytes = lead.IsUndefined() ? kLeadBytes : static_cast<size_t>(toInteger(lead, "leadBytes"));
    const auto release = [&](void* memory) { backend.release(memory); };
    using Memory = std::unique_ptr<void, decltype(release)>;
    const Memory busy(backend.allocate(leadBytes, "what the device is busy with"), release);
    const Memory copied(backend.allocate(bytes, "the destination of a copy"), release);
    constexpr int kFills = 32;
    for (int i = 0; i < kFills; ++i) backend.fill(busy.get(), 0, leadBytes);
    std::vector<char> host(bytes, 1);
    backend.copy(copied.get(), host.data(), bytes);
    std::fill(host.begin(), host.end(), char{2});
    backend.synchronize();
    backend.copy(host.data(), copied.get(), bytes);
    backend.synchronize();
    return Napi::Boolean::New(info.Env(), std::all_of(host.begin(), host.end(), [](char byte) { return byte == 1; }));
  });
}

/// deviceLimits(backend) → what its driver says of the device; 0 and "" where it says nothing
Napi::Value deviceLimits(const Napi::CallbackInfo& info) {
  return guarded(info, [&]() -> Napi::Value {
    Backend& backend = openBackend(toText(info[0], "backend"), 1);
    DeviceLimits limits;
    backend.check(backend.device()->limits(backend.device(), &limits), "asking for the device's limits");
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("name", backend.device()->name);
    result.Set("model", limits.model);
    const std::pair<const char*, double> numbers[] = {{"computeCapability", static_cast<double>(limits.computeCapability)},
                                                      {"multiprocessors", static_cast<double>(limits.multiprocessors)},
                                                      {"memoryBytes", static_cast<double>(limits.memoryBytes)},
                                                      {"l2Bytes", static_cast<double>(limits.l2Bytes)},
                                                      {"clockHz", limits.clockHz},
                                                      {"memoryBytesPerSecond", limits.memoryBytesPerSecond}};
    for (const auto& [name, value] : numbers) result.Set(name, value);
    return result;
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

}  // namespace

void defineBench(Napi::Env env, Napi::Object exports) {
  const std::pair<const char*, Napi::Value (*)(const Napi::CallbackInfo&)> functions[] = {
      {"bench", bench},
      {"benchOnDevice", benchOnDevice},
      {"deviceCopySeconds", deviceCopySeconds},
      {"keepsOverwrittenSource", keepsOverwrittenSource},
      {"deviceLimits", deviceLimits},
      {"multiplyAddPeak", multiplyAddPeak},
      {"bfloat16Peak", bfloat16Peak},
      {"streamingRate", streamingRate},
  };
  for (const auto& [name, function] : functions) exports.Set(name, Napi::Function::New(env, function, name));
}

}  // namespace rlhf::kernels
