#pragma once
#include <cstdint>

#include "ops/context.h"
#include "simt/execution.h"
#include "simt/tensor_map.h"
#include "simt/warpgroup.h"

// The operations of csrc/cuda/prim/ptx.cuh: what sm_90a adds. Models: PTX ISA 9.1, "mbarrier", "cp.async.bulk.tensor",
// "Asynchronous Warpgroup Level Matrix Instructions", "setmaxnreg". Copies and products are asynchronous: until a wait covers them their
// destinations hold NaN, copies land in any order and as late as may be, and what a product reads must not change while it runs.

namespace rlhf::simt {

/// 10 × major + minor of the emulated device: RLHF_CUDA_CAPABILITY, or 80; and how many multiprocessors it claims to have.
int computeCapability();
inline constexpr int kMultiprocessors = 2;

/// What the emulated devices state of themselves: the capability, and nothing of speed.
Status limits(Device* device, DeviceLimits* out);

/// Another capability from here to the end of the scope, on this thread.
class EmulatedCapability {
 public:
  explicit EmulatedCapability(int capability);
  ~EmulatedCapability();
  EmulatedCapability(const EmulatedCapability&) = delete;
  EmulatedCapability& operator=(const EmulatedCapability&) = delete;
};

/// A pointer into the block's shared memory as instructions have it: 32 bits, from the window's beginning.
uint32_t sharedWindowAddress(const void* pointer);

void initBarrier(uint64_t* barrier, int arrivals, Site site);
void publishBarriers();
void arrive(uint64_t* barrier, int expectedBytes, Site site);
void waitFor(uint64_t* barrier, int parity, Site site);

void copyBox(void* shared, const TensorMap& map, const BoxPlace& place, uint64_t* barrier, Site site);

/// Of every lane of a warp: its part of a warpgroup's product, 16 rows of A against all of B.
void wgmma(float* sums, int columns, const ProductFactors& factors, Site site);
void wgmmaFence(Site site);
void wgmmaCommit(Site site);
void wgmmaWait(int pending, Site site);

void namedBarrier(int name, int threads, Site site);
void changeRegisters(int count, bool raise, Site site);

}  // namespace rlhf::simt
