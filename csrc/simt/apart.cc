// The emulated device as a GPU is seen from the host: memory of its own, copies that have not landed when a call returns, and commands
// that can be recorded, which then do not run but when they are asked for.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "ops/entry.h"
#include "ops/host_device.h"
#include "simt/backend.h"
#include "simt/hopper.h"
#include "simt/separate_memory.h"

namespace rlhf::simt {
namespace {

/// A copy to the host that lands when the host waits for it.
struct Landing {
  void* destination;
  std::vector<char> bytes;
};

/// Commands with the arguments that they had when they were recorded.
using Commands = std::vector<std::function<void()>>;

struct ApartDevice : Device {
  SeparateMemory memory;
  std::vector<Landing> landings;
  std::unique_ptr<Commands> recorded;  // while they are being recorded
};

ApartDevice& apart(Device* device) { return *static_cast<ApartDevice*>(device->self); }

Status fail(Device* device, const char* message) {
  std::snprintf(device->error, sizeof device->error, "%s", message);
  return kDeviceFailure;
}

/// How much memory the device has, by RLHF_SIMT_MEMORY; without it as much as the process gets, and limits say nothing of it.
size_t capacity() {
  const char* const bytes = std::getenv("RLHF_SIMT_MEMORY");
  return bytes ? std::strtoull(bytes, nullptr, 10) : 0;
}

Status limitsOf(Device* device, DeviceLimits* out) {
  const Status status = limits(device, out);
  const size_t all = capacity(), held = apart(device).memory.held();
  out->memoryBytes = static_cast<int64_t>(all);
  out->freeBytes = static_cast<int64_t>(all - std::min(all, held));
  return status;
}

Status allocate(Device* device, size_t bytes, void** out) {
  if (apart(device).recorded) return fail(device, "memory was taken while commands were being recorded");
  if (const size_t all = capacity(); all > 0 && apart(device).memory.held() + bytes > all) return kNoMemory;
  return apart(device).memory.allocate(bytes, out);
}

void release(Device* device, void* memory) { apart(device).memory.release(memory); }

/// To the host: at the next wait, and until then the destination holds NaN. To the device: at once, as the driver keeps what it is given.
Status copy(Device* device, Stream* stream, void* destination, const void* source, size_t bytes) {
  if (bytes == 0) return kOk;
  ApartDevice& self = apart(device);
  if (self.recorded) {
    if (!self.memory.holds(destination, bytes) || !self.memory.holds(source, bytes))
      return fail(device, "a copy between host and device was recorded: its host's side would be read, or written, whenever it runs");
    self.recorded->push_back([=] { (void)copy(device, stream, destination, source, bytes); });
    return kOk;
  }
  const SeparateMemory::Access access(self.memory);
  if (self.memory.holds(destination, bytes)) {
    std::memmove(destination, source, bytes);
  } else {
    const auto* begin = static_cast<const char*>(source);
    self.landings.push_back({destination, std::vector<char>(begin, begin + bytes)});
    std::memset(destination, 0xff, bytes);
  }
  return kOk;
}

Status fill(Device* device, Stream* stream, void* destination, int byteValue, size_t bytes) {
  if (bytes == 0) return kOk;
  SeparateMemory& memory = apart(device).memory;
  if (!memory.holds(destination, bytes)) return fail(device, "a fill of memory that is not the device's");
  if (Commands* recorded = apart(device).recorded.get()) {
    recorded->push_back([=] { (void)fill(device, stream, destination, byteValue, bytes); });
    return kOk;
  }
  const SeparateMemory::Access access(memory);
  std::memset(destination, byteValue, bytes);
  return kOk;
}

Status synchronize(Device* device, Stream*) {
  ApartDevice& self = apart(device);
  if (self.recorded) return fail(device, "the host waited while commands were being recorded");
  for (const Landing& landing : self.landings) std::memcpy(landing.destination, landing.bytes.data(), landing.bytes.size());
  self.landings.clear();
  return kOk;
}

Status beginCapture(Device* device, Stream*) {
  if (apart(device).recorded) return fail(device, "a recording began within another");
  apart(device).recorded = std::make_unique<Commands>();
  return kOk;
}

Status endCapture(Device* device, Stream*, Graph** out) {
  if (!apart(device).recorded) return fail(device, "a recording ended that had not begun");
  *out = reinterpret_cast<Graph*>(apart(device).recorded.release());
  return kOk;
}

Status launchGraph(Device* device, Stream*, Graph* graph) {
  logLaunch("graph");
  try {
    for (const auto& command : *reinterpret_cast<const Commands*>(graph)) command();
  } catch (const Error& error) {
    return fail(device, error.what());
  }
  return kOk;
}

void destroyGraph(Device*, Graph* graph) { delete reinterpret_cast<Commands*>(graph); }

/// Throws Error for an array of the host's: a GPU could not follow its address.
template <class Arguments>
void requireOnDevice(const SeparateMemory& memory, Arguments arguments) {
  arguments.fields([&]<class Field>(const char* name, Field& field) {
    if constexpr (std::is_pointer_v<Field>)
      if (field && !memory.holds(field, 0)) throw Error(code::kInternal, format("%s is not in the device's memory", name));
  });
}

/// An op of the emulator with its memory opened for as long as it runs; while commands are recorded, at each of their runs.
template <class Arguments, Status (*Ops::*entry)(OpContext*, const Arguments*)>
void runApart(OpContext& context, const Arguments& arguments) {
  if (Commands* recorded = apart(context.device).recorded.get()) {
    recorded->push_back([context, arguments]() mutable { runApart<Arguments, entry>(context, arguments); });
    return;
  }
  SeparateMemory& memory = apart(context.device).memory;
  requireOnDevice(memory, arguments);
  if (context.scratch && !memory.holds(context.scratch, context.scratchBytes))
    throw Error(code::kInternal, "scratch is not in the device's memory");
  const SeparateMemory::Access access(memory);
  runOp(context, ops().*entry, arguments);
}

}  // namespace

const Ops& apartOps() {
  static const Ops table = [] {
    Ops result = ops();
    result.backend = "simt:apart";
#define RLHF_RUN_APART(name, Arguments) \
  if (result.name) result.name = opEntry<Arguments, runApart<Arguments, &Ops::name>>;
    RLHF_FOR_EACH_OP(RLHF_RUN_APART)
#undef RLHF_RUN_APART
    return result;
  }();
  return table;
}

Device* openApartDevice() {
  auto device = std::make_unique<ApartDevice>();
  static_cast<Device&>(*device) = makeHostDevice("simt:apart");
  device->self = device.get();
  device->unifiedMemory = 0;
  device->limits = limitsOf;
  device->allocate = allocate;
  device->release = release;
  device->copyAsync = copy;
  device->fillAsync = fill;
  device->synchronize = synchronize;
  device->beginCapture = beginCapture;
  device->endCapture = endCapture;
  device->launchGraph = launchGraph;
  device->destroyGraph = destroyGraph;
  return device.release();
}

void closeApartDevice(Device* device) { delete static_cast<ApartDevice*>(device); }

Device* apartDevice() {
  // Never closed: arrays of JavaScript's may be given back as the process ends.
  static Device* const instance = openApartDevice();
  return instance;
}

}  // namespace rlhf::simt
