#include "ops/host_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/arena.h"
#include "ops/ops.h"

namespace rlhf {
namespace {

Status allocate(Device*, size_t bytes, void** out) {
  *out = std::aligned_alloc(kAlignment, alignUp(std::max<size_t>(bytes, 1)));
  return *out ? kOk : kNoMemory;
}
void release(Device*, void* memory) { std::free(memory); }

Status copy(Device*, Stream*, void* destination, const void* source, size_t bytes) {
  if (bytes > 0) std::memmove(destination, source, bytes);
  return kOk;
}
Status fill(Device*, Stream*, void* destination, int byteValue, size_t bytes) {
  if (bytes > 0) std::memset(destination, byteValue, bytes);
  return kOk;
}

template <class Handle>
Status createNothing(Device*, Handle** out) {
  *out = nullptr;
  return kOk;
}
template <class Handle>
void destroyNothing(Device*, Handle*) {}
Status synchronize(Device*, Stream*) { return kOk; }
Status recordEvent(Device*, Event*, Stream*) { return kOk; }
Status waitEvent(Device*, Stream*, Event*) { return kOk; }

}  // namespace

Device makeHostDevice(const char* name) {
  Device device{};
  device.abiHash = abiHash();
  device.name = name;
  device.unifiedMemory = 1;
  device.allocate = allocate;
  device.release = release;
  device.copyAsync = copy;
  device.fillAsync = fill;
  device.createStream = createNothing<Stream>;
  device.destroyStream = destroyNothing<Stream>;
  device.synchronize = synchronize;
  device.createEvent = createNothing<Event>;
  device.destroyEvent = destroyNothing<Event>;
  device.recordEvent = recordEvent;
  device.waitEvent = waitEvent;
  return device;
}

}  // namespace rlhf
