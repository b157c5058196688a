#pragma once

#include "core/thread_pool.h"
#include "ops/ops.h"

namespace rlhf::cpu {

/// The CPU's operator table for the best instruction set that this processor has, or for the one that RLHF_ISA names
/// ("avx512", "avx2", "scalar"); a name that the processor cannot run is an Error.
const Ops& ops();

/// The operator table for one named instruction set, or null where the processor or the build lacks it.
const Ops* opsFor(const char* instructionSet);

/// A device whose memory is the process's own and whose one stream runs everything at once.
struct CpuDevice : Device {
  explicit CpuDevice(int threads);
  ThreadPool pool;
};

/// The thread pool of the device that an op runs on.
inline ThreadPool& pool(OpContext& context) { return static_cast<CpuDevice*>(context.device)->pool; }

/// Each thread's share of the context's scratch memory: kScratchPerThread bytes, 64-byte aligned.
inline constexpr size_t kScratchPerThread = size_t{4} << 20;
inline char* threadScratch(OpContext& context, int slot) {
  return static_cast<char*>(context.scratch) + static_cast<size_t>(slot) * kScratchPerThread;
}

}  // namespace rlhf::cpu
