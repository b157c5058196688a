#pragma once

#include "core/thread_pool.h"
#include "cpu/stream.h"
#include "ops/ops.h"

namespace rlhf::cpu {

/// The CPU's operator table for the best instruction set that this processor has, or for the one that RLHF_ISA names
/// ("avx512", "avx2", "scalar"); a name that the processor cannot run is an Error.
const Ops& ops();

/// The operator table for one named instruction set, or null where the processor or the build lacks it.
const Ops* opsFor(const char* instructionSet);

/// The float32 multiply-add peak of `threads` threads with the instruction set of ops(), measured now (a fraction of a second),
/// in floating-point operations a second: what matrix products are compared with.
double measureMultiplyAddPeak(int threads);

/// The same of products in bfloat16 by the kernel in use, on operands that stay in the first-level cache.
double measureBfloat16Peak(int threads);

/// Bytes a second that so many threads read and write where they stream arrays of these sizes again and again: from the caches
/// where they fit. What ops that only pass over arrays are compared with, and all others where their arrays are large.
double measureStreaming(int threads, const Stream& bytes);

/// Has products in bfloat16 use another kernel than the machine's best: "amx", "dot", "convert". False where there is no such.
bool useBfloat16Kernel(const char* name);

/// The kernel that they use.
const char* bfloat16KernelName();

/// A device whose memory is the process's own and whose one stream runs everything at once.
struct CpuDevice : Device {
  explicit CpuDevice(int threads);
  ThreadPool pool;
};

/// The thread pool of the device that an op runs on.
inline ThreadPool& pool(OpContext& context) { return static_cast<CpuDevice*>(context.device)->pool; }

/// Each thread's share of the context's scratch memory: kScratchPerThread bytes, 64-byte aligned. What lies behind all threads'
/// shares is for buffers that they have in common (kernels/gemm.h, SharedScratch).
inline constexpr size_t kScratchPerThread = size_t{4} << 20;
inline char* threadScratch(OpContext& context, int slot) {
  return static_cast<char*>(context.scratch) + static_cast<size_t>(slot) * kScratchPerThread;
}

/// The ops over the vocabulary go through predictions and vocabulary in blocks of these sizes, and sum in that order.
inline constexpr int64_t kPredictionsPerBlock = 1024;
inline constexpr int64_t kVocabPerBlock = 2048;
inline constexpr int64_t kVocabPerStatistic = 256;  // what one set of running maxima and sums covers

}  // namespace rlhf::cpu
