#pragma once
// Every instruction that CUDA C++ has no name for, and the warp intrinsics. Each wrapper has two bodies: PTX (or the
// intrinsic) for nvcc, the emulator's model for the host compiler. The only file with inline assembly.

#include <type_traits>

#include "cuda/prim/platform.cuh"
#include "cuda/prim/tensor_map.cuh"

#if !defined(__CUDACC__)
#include "simt/hopper.h"
#include "simt/warp_ops.h"
#endif

namespace rlhf::cuda {

inline constexpr uint32_t kFullWarp = 0xffffffffu;

#if defined(__CUDACC__)
RLHF_DEVICE uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#else
inline uint32_t sharedAddress(const void* pointer) { return simt::sharedWindowAddress(pointer); }
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

/// Writes an aligned pair or four of words to global memory by one instruction; an assignment the compiler may take apart into one for each.
template <int kCount>
RLHF_DEVICE void writeWords(void* out, const uint32_t (&words)[kCount]) {
  static_assert(kCount == 2 || kCount == 4);
#if defined(__CUDACC__)
  const auto address = __cvta_generic_to_global(out);
  if constexpr (kCount == 2) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(words[0]), "r"(words[1]) : "memory");
  } else {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
  }
#else
  *static_cast<Pack<uint32_t, kCount>*>(out) = std::bit_cast<Pack<uint32_t, kCount>>(words);
#endif
}

/// Writes the values, rounded to T, by one access; a pack of one stands anywhere.
template <class T, int kCount>
RLHF_DEVICE void writePack(T* out, const Pack<float, kCount>& values) {
  static_assert(kCount == 1 || kCount == 4);
  if constexpr (kCount == 1) {
    *out = fromFloat<T>(values.item[0]);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    writeWords(out, {bitsOf(values.item[0]), bitsOf(values.item[1]), bitsOf(values.item[2]), bitsOf(values.item[3])});
  } else {
    writeWords(out, {packPair<T>(values.item[0], values.item[1]), packPair<T>(values.item[2], values.item[3])});
  }
}

/// 2^x within 2 units in the last place; results below the normal numbers are 0.
RLHF_DEVICE float exp2Approx(float x) {
#if defined(__CUDACC__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return x < -126.0f ? 0.0f : std::exp2(x);
#endif
}

inline constexpr float kLog2E = 1.4426950408889634f;

/// e^x for numbers that come from products in T: in two instructions where 16 bits have blurred them more than rounding x·log₂e does, which
/// moves the result by up to |x|·2⁻²⁴ of itself, beside exp2Approx's error.
template <class T>
RLHF_DEVICE float expFor(float x) {
  if constexpr (sizeof(T) < sizeof(float)) return exp2Approx(x * kLog2E);
  else return expf(x);
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

// What sm_90a has beside: transaction barriers, tile copies by TMA, products of a warpgroup (wgmma), named barriers, the split of registers.
// Only csrc/cuda/hopper uses it, which is compiled for 90a.

/// A barrier in shared memory (mbarrier). A phase ends when all its arrivals have come and as many bytes have been copied as were
/// expected; the next one begins at once. Phases are told apart by their parity: the first has 0.
using TransactionBarrier = uint64_t;

/// Prepares a barrier for `arrivals` a phase. By one thread, which then calls publishBarriers before the block's next barrier.
RLHF_DEVICE void initBarrier(TransactionBarrier* barrier, int arrivals, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(arrivals) : "memory");
#else
  simt::initBarrier(barrier, arrivals, site);
#endif
}

/// Shows what initBarrier wrote to the copies' side.
RLHF_DEVICE void publishBarriers() {
#if defined(__CUDACC__)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  simt::publishBarriers();
#endif
}

RLHF_DEVICE void arrive(TransactionBarrier* barrier, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(barrier)) : "memory");
#else
  simt::arrive(barrier, 0, site);
#endif
}

/// Arrives, and makes the phase wait for so many bytes more.
RLHF_DEVICE void arriveExpecting(TransactionBarrier* barrier, int bytes, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(barrier)), "r"(bytes) : "memory");
#else
  simt::arrive(barrier, bytes, site);
#endif
}

/// Waits until the last phase of this parity has ended. Before the first phase has, that of parity 1 counts as ended.
RLHF_DEVICE void waitFor(TransactionBarrier* barrier, int parity, Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(sharedAddress(barrier)), "r"(parity)
      : "memory");
#else
  simt::waitFor(barrier, parity, site);
#endif
}

/// Starts the copy of the map's box at column `inner`, row `outer` of its array; what lies outside the array becomes zero. The bytes of
/// the whole box count for the barrier. The destination, at a multiple of 1024 bytes (of 128, where a box has fewer than eight rows), holds
/// the box's rows 128 bytes apart, their 16-byte pieces swizzled: that at address b lies at b ^ (b / 128 % 8 · 16).
RLHF_DEVICE void copyBox(void* shared, const TensorMap& map, int inner, int outer, TransactionBarrier* barrier,
                         Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          sharedAddress(shared)),
      "l"(&map), "r"(inner), "r"(outer), "r"(sharedAddress(barrier))
      : "memory");
#else
  simt::copyBox(shared, map, {inner, 0, outer}, barrier, site);
#endif
}

/// The same of a map of heads, at column `inner` of a head.
RLHF_DEVICE void copyHeadBox(void* shared, const TensorMap& map, int inner, int head, int outer, TransactionBarrier* barrier,
                             Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
          sharedAddress(shared)),
      "l"(&map), "r"(inner), "r"(head), "r"(outer), "r"(sharedAddress(barrier))
      : "memory");
#else
  simt::copyBox(shared, map, {inner, head, outer}, barrier, site);
#endif
}

/// Where a factor of a product begins in shared memory, for wgmma: tiles as copyBox leaves them. Of a factor whose rows are of k, eight
/// rows lie 1024 bytes apart and 16 values of k are 32 bytes. Of one whose rows are of i (kOuter), eight k lie 1024 bytes apart, 16 are
/// 2048 bytes, and every 64 values of i are a panel of `panelBytes`.
RLHF_DEVICE uint64_t matrixDescriptor(const void* shared, int panelBytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const auto units = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffffu) >> 4); };
  return units(sharedAddress(shared)) | units(static_cast<uint32_t>(panelBytes)) << 16 | units(1024) << 32 | kSwizzle128;
}

/// The descriptor so many bytes further on.
RLHF_DEVICE uint64_t advance(uint64_t descriptor, int bytes) { return descriptor + static_cast<uint64_t>(bytes >> 4); }

/// Keeps the compiler from moving what reads or writes these registers past this place.
template <class T, int kCount>
RLHF_DEVICE void pin([[maybe_unused]] T (&registers)[kCount]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
#endif
}

/// Hands the sums over to the products that follow. Before the first of them, and whenever other code has had the sums.
template <int kCount>
RLHF_DEVICE void beginProducts(float (&sums)[kCount], [[maybe_unused]] Site site = Site::here()) {
  pin(sums);
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  simt::wgmmaFence(site);
#endif
}

/// Closes the current group of products.
RLHF_DEVICE void commitProducts([[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  simt::wgmmaCommit(site);
#endif
}

/// Waits until at most kPending groups are unfinished. The sums may be touched, and the factors overwritten, of those that are finished.
template <int kPending, int kCount>
RLHF_DEVICE void waitForProducts(float (&sums)[kCount], [[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  simt::wgmmaWait(kPending, site);
#endif
  pin(sums);
}

#if defined(__CUDACC__)
// All sums of a warpgroup's product are operands, with names of their own.
#define RLHF_SUMS8(i)                                                                                                              \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), \
      "+f"(sums[i + 7])
#define RLHF_SUMS32(i) RLHF_SUMS8(i), RLHF_SUMS8(i + 8), RLHF_SUMS8(i + 16), RLHF_SUMS8(i + 24)
#define RLHF_SUMS64(i) RLHF_SUMS32(i), RLHF_SUMS32(i + 32)
#define RLHF_NAMES32                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RLHF_NAMES64                                                                                                              \
  RLHF_NAMES32                                                                                                                    \
  ", "                                                                                                                            \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                              \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RLHF_NAMES128                                                                                                             \
  RLHF_NAMES64                                                                                                                    \
  ", "                                                                                                                            \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                              \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                              \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                                  \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// D's columns, the names of its sums, the factors' operands, whether D is added to, how the factors lie, inputs, sums.
#define RLHF_WGMMA(columns, names, factors, adds, outers, inputs, ...)                                                    \
  asm volatile("{\n.reg .pred add;\nsetp.ne.u32 add, " adds ", 0;\n"                                                      \
               "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" names "}, " factors ", add, 1, 1, " outers \
               ";\n}"                                                                                                     \
               : __VA_ARGS__                                                                                              \
               : inputs                                                                                                   \
               : "memory")
#define RLHF_SHARED_FACTORS "l"(factorA), "l"(factorB), "n"(kOuterA), "n"(kOuterB), "r"(static_cast<int>(adds))
#define RLHF_FRAGMENT_FACTORS "r"(factorA[0]), "r"(factorA[1]), "r"(factorA[2]), "r"(factorA[3]), "l"(factorB), "n"(kOuterB)
#endif

/// D += A·B for 16 values of k, or D = A·B unless it `adds`, by the four warps of an aligned warpgroup: A 64 × 16, B 16 × kCount · 2, both in
/// shared memory. kOuter: the factor's rows are of i, not of k. With group = lane / 4, pair = lane % 4, warp in the warpgroup w, sums[i] is
/// D(16·w + group + 8·(i / 2 % 2), 8·(i / 4) + 2·pair + i % 2).
template <bool kOuterA, bool kOuterB, int kCount>
RLHF_DEVICE void multiplyTiles(float (&sums)[kCount], uint64_t factorA, uint64_t factorB, bool adds = true,
                               [[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount == 32 || kCount == 64 || kCount == 128);
#if defined(__CUDACC__)
  if constexpr (kCount == 32) {
    RLHF_WGMMA("64", RLHF_NAMES32, "%32, %33", "%36", "%34, %35", RLHF_SHARED_FACTORS, RLHF_SUMS32(0));
  } else if constexpr (kCount == 64) {
    RLHF_WGMMA("128", RLHF_NAMES64, "%64, %65", "%68", "%66, %67", RLHF_SHARED_FACTORS, RLHF_SUMS64(0));
  } else {
    RLHF_WGMMA("256", RLHF_NAMES128, "%128, %129", "%132", "%130, %131", RLHF_SHARED_FACTORS, RLHF_SUMS64(0), RLHF_SUMS64(64));
  }
#else
  simt::wgmma(sums, 2 * kCount, {nullptr, factorA, factorB, kOuterA, kOuterB, adds}, site);
#endif
}

/// D += A·B with A in registers: factorA[r], half h, is A(16·w + group + 8·(r % 2), 2·pair + h + 8·(r / 2)). They must stay as they are until
/// a wait covers the product.
template <bool kOuterB, int kCount>
RLHF_DEVICE void multiplyFragment(float (&sums)[kCount], const uint32_t (&factorA)[4], uint64_t factorB,
                                  [[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount == 32 || kCount == 64);
#if defined(__CUDACC__)
  if constexpr (kCount == 32) {
    RLHF_WGMMA("64", RLHF_NAMES32, "{%32, %33, %34, %35}, %36", "1", "%37", RLHF_FRAGMENT_FACTORS, RLHF_SUMS32(0));
  } else {
    RLHF_WGMMA("128", RLHF_NAMES64, "{%64, %65, %66, %67}, %68", "1", "%69", RLHF_FRAGMENT_FACTORS, RLHF_SUMS64(0));
  }
#else
  simt::wgmma(sums, 2 * kCount, {factorA, 0, factorB, false, kOuterB, true}, site);
#endif
}

#if defined(__CUDACC__)
#undef RLHF_SUMS8
#undef RLHF_SUMS32
#undef RLHF_SUMS64
#undef RLHF_NAMES32
#undef RLHF_NAMES64
#undef RLHF_NAMES128
#undef RLHF_WGMMA
#undef RLHF_SHARED_FACTORS
#undef RLHF_FRAGMENT_FACTORS
#endif

/// A barrier of `threads` threads, whole warps of which all lanes come; `name` is 1 to 15.
RLHF_DEVICE void syncNamed(int name, int threads, [[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
#else
  simt::namedBarrier(name, threads, site);
#endif
}

enum class Registers { GiveBack, Take };

/// The calling warpgroup has kCount registers a thread from here on (setmaxnreg). All its warps call it.
template <Registers kWay, int kCount>
RLHF_DEVICE void setRegisters([[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#if defined(__CUDACC__)
  if constexpr (kWay == Registers::Take) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
  }
#else
  simt::changeRegisters(kCount, kWay == Registers::Take, site);
#endif
}

}  // namespace rlhf::cuda
