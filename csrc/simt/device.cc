#include <cstdlib>
#include <cstring>

#include "core/arena.h"
#include "simt/backend.h"

namespace rlhf::simt {
namespace {

Status allocate(Device*, size_t bytes, void** out) {
  *out = std::aligned_alloc(kAlignment, alignUp(bytes > 0 ? bytes : 1));
  if (!*out) return kNoMemory;
  std::memset(*out, 0xff, bytes);  // NaN: contents are undefined, and shall not look like zeros
  return kOk;
}

void release(Device*, void* memory) { std::free(memory); }

Status copyAsync(Device*, Stream*, void* destination, const void* source, size_t bytes) {
  std::memmove(destination, source, bytes);
  return kOk;
}

Status fillAsync(Device*, Stream*, void* destination, int byteValue, size_t bytes) {
  std::memset(destination, byteValue, bytes);
  return kOk;
}

// Launches run at once, so streams and events have nothing to hold.
Status createStream(Device*, Stream** out) {
  *out = nullptr;
  return kOk;
}
void destroyStream(Device*, Stream*) {}
Status synchronize(Device*, Stream*) { return kOk; }
Status createEvent(Device*, Event** out) {
  *out = nullptr;
  return kOk;
}
void destroyEvent(Device*, Event*) {}
Status recordEvent(Device*, Event*, Stream*) { return kOk; }
Status waitEvent(Device*, Stream*, Event*) { return kOk; }

Device makeDevice() {
  Device device{};
  device.abiHash = abiHash();
  device.name = "simt";
  device.unifiedMemory = 1;
  device.allocate = allocate;
  device.release = release;
  device.copyAsync = copyAsync;
  device.fillAsync = fillAsync;
  device.createStream = createStream;
  device.destroyStream = destroyStream;
  device.synchronize = synchronize;
  device.createEvent = createEvent;
  device.destroyEvent = destroyEvent;
  device.recordEvent = recordEvent;
  device.waitEvent = waitEvent;
  return device;
}

}  // namespace

Device* device() {
  static Device instance = makeDevice();
  return &instance;
}

}  // namespace rlhf::simt
