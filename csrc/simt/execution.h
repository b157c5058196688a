#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

// What the CUDA sources see of the emulator: launches, the built-in indices, barriers, warp collectives, shared memory and
// asynchronous copies. csrc/cuda/prim wraps all of it; kernels do not include this file.

namespace rlhf::simt {

/// Three sizes or indices, as CUDA's dim3.
struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
  constexpr Dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

/// Where in the source an operation stands: part of a collective's identity, and of every report.
struct Site {
  const char* file = "";
  int line = 0;
  /// As a default argument: the line of the call that leaves it out.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site&) const = default;
};

/// What the threads of a warp do together. `compute` runs once, when the last lane of the mask has arrived; it finds each
/// lane's operands by lane index (null outside the mask) and writes the results into them.
struct WarpOperation {
  const char* name;
  void (*compute)(void* const* operands, uint32_t mask);
};

/// Runs body(argument) on every thread of the grid, block after block, under the current schedule. Throws Error with the
/// kernel, block, seed and source lines for: a deadlock, a barrier or collective that threads reach at different places, a
/// lane that a mask names but that does not come, misaligned or out-of-range shared memory, resources beyond sm_80's.
void launchErased(const char* kernel, Dim3 grid, Dim3 block, size_t sharedBytes, void (*body)(void*), void* argument);

template <class Body>
void launch(const char* kernel, Dim3 grid, Dim3 block, size_t sharedBytes, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  launchErased(kernel, grid, block, sharedBytes, [](void* self) { (*static_cast<Plain*>(self))(); }, &body);
}

/// The block's dynamic shared memory: filled with NaN when a block starts.
unsigned char* sharedMemory();

/// __syncthreads. All threads of the block that have not ended must come to the same source line.
void blockBarrier(Site site);

/// Waits until every lane of `mask` has come to the same operation at the same source line; `compute` then does its work.
void warpRendezvous(const WarpOperation& operation, uint32_t mask, void* operands, Site site);

/// cp.async of 16 bytes, of which the first `validBytes` come from `global` and the rest are zero. Until a wait covers it the
/// destination holds NaN, and the source is read only then: the latest moment that the hardware may choose.
void asyncCopy16(void* shared, const void* global, int validBytes, Site site);
void asyncCopyCommit();
/// Lands the calling thread's oldest groups until at most `pending` are left.
void asyncCopyWait(int pending);

/// The address as an offset into the block's shared memory; throws Error unless `bytes` fit there at that alignment.
size_t sharedOffset(const void* address, size_t bytes, size_t alignment, const char* operation, Site site);

/// The seed of the schedules from here to the end of the scope, on this thread. Elsewhere it is the number in the
/// environment variable RLHF_SIMT_SEED (1 where that is not set; 0 is the fixed order).
class ScheduleSeed {
 public:
  explicit ScheduleSeed(uint64_t seed);
  ~ScheduleSeed();
  ScheduleSeed(const ScheduleSeed&) = delete;
  ScheduleSeed& operator=(const ScheduleSeed&) = delete;
};

}  // namespace rlhf::simt

// CUDA's built-in variables: those of the thread that runs now.
inline constinit thread_local rlhf::simt::Dim3 threadIdx, blockIdx, blockDim, gridDim;
