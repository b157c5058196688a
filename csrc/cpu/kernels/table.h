#pragma once
#include "core/thread_pool.h"
#include "cpu/stream.h"
#include "ops/ops.h"

namespace rlhf::RLHF_ISA {

/// Every kernel of this instruction set: `void name(OpContext&, const Arguments&)`. Each is called through opEntry, so its
/// arguments are valid already; it throws Error.
#define RLHF_DECLARE_KERNEL(name, Arguments) void name(OpContext& context, const Arguments& arguments);
RLHF_FOR_EACH_OP(RLHF_DECLARE_KERNEL)
#undef RLHF_DECLARE_KERNEL

/// Bytes of a weight packed for y = x·Wᵀ (backward = 0) or dx = dy·W (backward = 1); 0 for types without a packed form: 16 bits computed in float32.
size_t packedWeightBytes(DType type, DType compute, int64_t inputs, int64_t outputs, int32_t backward);

/// This instruction set's table, with every entry filled but scratchBytes, which cpu/backend.cc owns.
Ops kernelTable();

/// The most float32 multiply-adds that all threads of the pool together were seen to do, in operations (two each) a second: the best
/// of so many repetitions of so many steps of 8 cycles.
double measureMultiplyAddPeak(ThreadPool& pool, int64_t steps, int repetitions);

/// The same of products in bfloat16: this instruction set's kernel on panels that stay in the first-level cache, so many tiles of C.
double measureBfloat16Peak(ThreadPool& pool, int64_t tiles, int repetitions);

/// Bytes a second that all threads together read and write where they go through arrays of these sizes again and again.
double measureStreaming(ThreadPool& pool, const cpu::Stream& bytes, int repetitions);

}  // namespace rlhf::RLHF_ISA
