#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

// The C ABI between the engine and a backend: plain data, status codes, function tables.

namespace rlhf {

/// What an op or a device call returns. Zero is success; the text of a failure is in OpContext::error.
enum Status : int32_t {
  kOk = 0,
  kBadArgument = 1,
  kBadShape = 2,
  kNotSupported = 3,
  kNoMemory = 4,
  kTokenOutOfRange = 5,
  kDeviceFailure = 6,
  kNotFinite = 7,
  kNoDriver = 8,
  kOldDriver = 9,
  kNoDevice = 10,
};

struct Stream;  // an in-order queue of a device; the CPU has one and runs it at once
struct Event;
struct Graph;

/// What a device is and can do at most, as its driver states it; 0 where that is not known.
struct DeviceLimits {
  char model[256] = {0};  // "NVIDIA H200"
  int64_t computeCapability = 0;  // 10 × major + minor
  int64_t multiprocessors = 0;
  int64_t memoryBytes = 0;
  int64_t freeBytes = 0;  // of them, now: what no process holds
  int64_t l2Bytes = 0;
  double clockHz = 0;  // the highest of the multiprocessors
  double memoryBytesPerSecond = 0;
};

/// Memory, queues and events of one backend. Every function is required unless marked (optional).
struct Device {
  uint64_t abiHash;        // abiHash() of the headers the backend was built with
  const char* name;        // "cpu", "cuda:0", …
  void* self;              // the backend's own state
  int32_t unifiedMemory;   // 1 where the host may read and write arrays directly
  char error[256];         // what the driver said of the last call that failed; empty where it says nothing

  Status (*limits)(Device*, DeviceLimits* out);

  Status (*allocate)(Device*, size_t bytes, void** out);  // 64-byte aligned, contents undefined
  void (*release)(Device*, void* memory);
  Status (*copyAsync)(Device*, Stream*, void* destination, const void* source, size_t bytes);  // any direction
  Status (*fillAsync)(Device*, Stream*, void* destination, int byteValue, size_t bytes);

  Status (*createStream)(Device*, Stream** out);
  void (*destroyStream)(Device*, Stream*);
  Status (*synchronize)(Device*, Stream*);  // blocks the host until the stream is empty

  Status (*createEvent)(Device*, Event** out);
  void (*destroyEvent)(Device*, Event*);
  Status (*recordEvent)(Device*, Event*, Stream*);
  Status (*waitEvent)(Device*, Stream*, Event*);
  Status (*eventSeconds)(Device*, Event* begin, Event* end, double* seconds);  // between two events that their streams have passed

  Status (*beginCapture)(Device*, Stream*);              // (optional) all four or none: recorded launches, replayed at once
  Status (*endCapture)(Device*, Stream*, Graph** out);
  Status (*launchGraph)(Device*, Stream*, Graph*);
  void (*destroyGraph)(Device*, Graph*);
};

/// What every op runs in. `scratch` is device memory of at least Ops::scratchBytes(); an op leaves nothing in it.
struct OpContext {
  Device* device = nullptr;
  Stream* stream = nullptr;
  void* scratch = nullptr;
  size_t scratchBytes = 0;
  char error[512] = {0};  // message of the last failure
};

}  // namespace rlhf
