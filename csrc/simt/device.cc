#include <cstdlib>
#include <cstring>

#include "core/arena.h"
#include "ops/host_device.h"
#include "simt/backend.h"
#include "simt/hopper.h"

namespace rlhf::simt {
namespace {

Status allocate(Device*, size_t bytes, void** out) {
  *out = std::aligned_alloc(kAlignment, alignUp(bytes > 0 ? bytes : 1));
  if (!*out) return kNoMemory;
  std::memset(*out, 0xff, bytes);  // NaN: contents are undefined, and shall not look like zeros
  return kOk;
}

Device makeDevice() {
  Device device = makeHostDevice("simt");
  device.limits = limits;
  device.allocate = allocate;
  return device;
}

}  // namespace

Status limits(Device*, DeviceLimits* out) {
  *out = {};
  out->computeCapability = computeCapability();
  return kOk;
}

Device* device() {
  static Device instance = makeDevice();
  return &instance;
}

}  // namespace rlhf::simt
