#pragma once
// Every instruction that CUDA C++ has no name for, and the warp intrinsics. Each wrapper has two bodies: PTX (or the
// intrinsic) for nvcc, the emulator's model for the host compiler. The only file with inline assembly, but for what sm_90a alone has
// (hopper_ptx.cuh).

#include <type_traits>

#include "cuda/prim/platform.cuh"

#if !defined(__CUDACC__)
#include "simt/warp_ops.h"
#endif

namespace rlhf::cuda {

inline constexpr uint32_t kFullWarp = 0xffffffffu;

#if defined(__CUDACC__)
RLHF_DEVICE uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

/// Starts a copy of 16 bytes from global to shared memory, both 16-byte aligned, past the registers (cp.async.cg). Bytes
/// from `validBytes` on are not read and become zero; `global` must be a valid address even where that is 0.
RLHF_DEVICE void cpAsync16(void* shared, const void* global, int validBytes, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(global), "r"(validBytes)
               : "memory");
#else
  simt::asyncCopy16(shared, global, validBytes, site);
#endif
}

/// Closes the calling thread's current group of copies; empty groups count.
RLHF_DEVICE void cpAsyncCommit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::asyncCopyCommit();
#endif
}

/// Waits until at most kPending of the calling thread's groups are unfinished. What they wrote is then visible to this
/// thread; a barrier makes it so to the others.
template <int kPending>
RLHF_DEVICE void cpAsyncWait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  simt::asyncCopyWait(kPending);
#endif
}

/// Loads four 8×8 matrices of 16-bit elements; lane 8m + r gives the 16-byte aligned address of row r of matrix m. With
/// group = lane / 4 and pair = lane % 4, register m receives elements (group, 2·pair) and (group, 2·pair + 1) of matrix m.
RLHF_DEVICE void ldmatrixX4(uint32_t (&registers)[4], const void* row, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(sharedAddress(row))
               : "memory");
#else
  simt::ldmatrixX4(registers, row, false, site);
#endif
}

/// The same, each matrix transposed: elements (2·pair, group) and (2·pair + 1, group).
RLHF_DEVICE void ldmatrixX4Transposed(uint32_t (&registers)[4], const void* row, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(sharedAddress(row))
               : "memory");
#else
  simt::ldmatrixX4(registers, row, true, site);
#endif
}

/// D += A·B, A 16×16 and B 16×8 of T, bfloat16 or float16, D 16×8 in float32 (mma.sync.m16n8k16). With group = lane / 4, pair = lane % 4:
/// a[r], half h: A(group + 8·(r & 1), 2·pair + h + 8·(r >> 1));  b[r], half h: B(2·pair + h + 8·r, group);
/// d[i]: D(group + 8·(i >> 1), 2·pair + (i & 1)).
template <class T>
RLHF_DEVICE void mmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
#if defined(__CUDACC__)
#define RLHF_MMA(type)                                                                                                          \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                                           \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                           \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, f16>) {
    RLHF_MMA("f16");
  } else {
    static_assert(std::is_same_v<T, bf16>);
    RLHF_MMA("bf16");
  }
#undef RLHF_MMA
#else
  simt::mmaM16N8K16(d, a, b, std::is_same_v<T, f16>, site);
#endif
}

/// The value of 4 or 8 bytes that lane `source` holds. All lanes of the warp take part.
template <class T>
RLHF_DEVICE T shuffle(T value, int source, Site site = Site::here()) {
#if defined(__CUDACC__)
  return __shfl_sync(kFullWarp, value, source);
#else
  return simt::shuffle(kFullWarp, value, source, site);
#endif
}

/// The value held by the lane whose index is the caller's XOR laneMask. All lanes of the warp take part.
template <class T>
RLHF_DEVICE T shuffleXor(T value, int laneMask, Site site = Site::here()) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(kFullWarp, value, laneMask);
#else
  return simt::shuffle(kFullWarp, value, static_cast<int>(threadIdx.x % 32) ^ laneMask, site);
#endif
}

/// What a lane wrote to shared memory before is what the others read from here on. All lanes of the warp take part.
RLHF_DEVICE void syncWarp(Site site = Site::here()) {
#if defined(__CUDACC__)
  __syncwarp();
#else
  simt::syncWarp(kFullWarp, site);
#endif
}

/// A bit for every lane whose predicate holds. All lanes of the warp take part.
RLHF_DEVICE uint32_t ballot(bool predicate, Site site = Site::here()) {
#if defined(__CUDACC__)
  return __ballot_sync(kFullWarp, predicate);
#else
  return simt::ballot(kFullWarp, predicate, site);
#endif
}

/// How many bits are set.
RLHF_DEVICE int popCount(uint32_t bits) {
#if defined(__CUDACC__)
  return __popc(bits);
#else
  return std::popcount(bits);
#endif
}

/// The index of the lowest and of the highest bit that is set; `bits` is not 0.
RLHF_DEVICE int lowestBit(uint32_t bits) {
#if defined(__CUDACC__)
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return std::countr_zero(bits);
#endif
}

RLHF_DEVICE int highestBit(uint32_t bits) {
#if defined(__CUDACC__)
  return 31 - __clz(static_cast<int>(bits));
#else
  return 31 - std::countl_zero(bits);
#endif
}

}  // namespace rlhf::cuda
