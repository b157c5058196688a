// The emulated device as a GPU is seen from the host: memory of its own, and copies that have not landed when a call returns.

#include <cstring>
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

struct ApartDevice : Device {
  SeparateMemory memory;
  std::vector<Landing> landings;
};

ApartDevice& apart(Device* device) { return *static_cast<ApartDevice*>(device->self); }

Status allocate(Device* device, size_t bytes, void** out) { return apart(device).memory.allocate(bytes, out); }
void release(Device* device, void* memory) { apart(device).memory.release(memory); }

Status fail(Device* device, const char* message) {
  std::snprintf(device->error, sizeof device->error, "%s", message);
  return kDeviceFailure;
}

/// To the host: at the next wait, and until then the destination holds NaN. To the device: at once, as the driver keeps what it is given.
Status copy(Device* device, Stream*, void* destination, const void* source, size_t bytes) {
  if (bytes == 0) return kOk;
  ApartDevice& self = apart(device);
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

Status fill(Device* device, Stream*, void* destination, int byteValue, size_t bytes) {
  if (bytes == 0) return kOk;
  SeparateMemory& memory = apart(device).memory;
  if (!memory.holds(destination, bytes)) return fail(device, "a fill of memory that is not the device's");
  const SeparateMemory::Access access(memory);
  std::memset(destination, byteValue, bytes);
  return kOk;
}

Status synchronize(Device* device, Stream*) {
  ApartDevice& self = apart(device);
  for (const Landing& landing : self.landings) std::memcpy(landing.destination, landing.bytes.data(), landing.bytes.size());
  self.landings.clear();
  return kOk;
}

/// Throws Error for an array of the host's: a GPU could not follow its address.
template <class Arguments>
void requireOnDevice(const SeparateMemory& memory, Arguments arguments) {
  arguments.fields([&]<class Field>(const char* name, Field& field) {
    if constexpr (std::is_pointer_v<Field>)
      if (field && !memory.holds(field, 0)) throw Error(code::kInternal, format("%s is not in the device's memory", name));
  });
}

/// An op of the emulator with its memory opened for as long as it runs.
template <class Arguments, Status (*Ops::*entry)(OpContext*, const Arguments*)>
void runApart(OpContext& context, const Arguments& arguments) {
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

Device* apartDevice() {
  // Never destroyed: arrays of JavaScript's may be given back as the process ends.
  static ApartDevice& instance = [&]() -> ApartDevice& {
    auto& device = *new ApartDevice;
    static_cast<Device&>(device) = makeHostDevice("simt:apart");
    device.self = &device;
    device.unifiedMemory = 0;
    device.limits = limits;
    device.allocate = allocate;
    device.release = release;
    device.copyAsync = copy;
    device.fillAsync = fill;
    device.synchronize = synchronize;
    return device;
  }();
  return &instance;
}

}  // namespace rlhf::simt
