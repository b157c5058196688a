#include "ops/host_device.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

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

/// The one stream runs everything at once and holds nothing.
Status createStream(Device*, Stream** out) {
  *out = nullptr;
  return kOk;
}
void destroyStream(Device*, Stream*) {}
Status synchronize(Device*, Stream*) { return kOk; }
Status waitEvent(Device*, Stream*, Event*) { return kOk; }

/// An event is the time at which it was recorded: what came before it has run by then.
using Clock = std::chrono::steady_clock;
Clock::time_point& timeOf(Event* event) { return *reinterpret_cast<Clock::time_point*>(event); }

Status createEvent(Device*, Event** out) {
  *out = reinterpret_cast<Event*>(new (std::nothrow) Clock::time_point);
  return *out ? kOk : kNoMemory;
}
void destroyEvent(Device*, Event* event) { delete reinterpret_cast<Clock::time_point*>(event); }
Status recordEvent(Device*, Event* event, Stream*) {
  timeOf(event) = Clock::now();
  return kOk;
}
Status eventSeconds(Device*, Event* begin, Event* end, double* seconds) {
  *seconds = std::chrono::duration<double>(timeOf(end) - timeOf(begin)).count();
  return kOk;
}

Status noLimits(Device*, DeviceLimits* out) {
  *out = {};
  return kOk;
}

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
  device.limits = noLimits;
  device.createStream = createStream;
  device.destroyStream = destroyStream;
  device.synchronize = synchronize;
  device.createEvent = createEvent;
  device.destroyEvent = destroyEvent;
  device.recordEvent = recordEvent;
  device.waitEvent = waitEvent;
  device.eventSeconds = eventSeconds;
  return device;
}

}  // namespace rlhf
