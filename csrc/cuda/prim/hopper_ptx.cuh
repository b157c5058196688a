#pragma once
// What sm_90a has beside ptx.cuh: transaction barriers, tile copies by TMA, products of a warpgroup (wgmma), named barriers, the split
// of registers. Each wrapper has two bodies, as there. Included by csrc/cuda/hopper alone, which is compiled for 90a.

#include "cuda/prim/ptx.cuh"
#include "cuda/prim/tensor_map.cuh"

#if !defined(__CUDACC__)
#include "simt/hopper.h"
#endif

namespace rlhf::cuda {

#if !defined(__CUDACC__)
inline uint32_t sharedAddress(const void* pointer) { return simt::sharedWindowAddress(pointer); }
#endif

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
/// the whole box count for the barrier. The destination, at a multiple of 1024 bytes, holds the box's rows 128 bytes apart, their
/// 16-byte pieces swizzled: that at byte b lies at b ^ (b / 128 % 8 · 16).
RLHF_DEVICE void copyBox(void* shared, const TensorMap& map, int inner, int outer, TransactionBarrier* barrier,
                         Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          sharedAddress(shared)),
      "l"(&map), "r"(inner), "r"(outer), "r"(sharedAddress(barrier))
      : "memory");
#else
  simt::copyBox(shared, map, inner, outer, barrier, site);
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

/// Keeps the compiler from moving what reads or writes the sums past this place.
template <int kCount>
RLHF_DEVICE void pin([[maybe_unused]] float (&sums)[kCount]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
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

/// D += A·B for 16 values of k, by the four warps of an aligned warpgroup: A 64 × 16, B 16 × kColumns, both in shared memory. kOuter: the
/// factor's rows are of i, not of k. With group = lane / 4, pair = lane % 4, warp in the warpgroup w, sums[i] is
/// D(16·w + group + 8·(i / 2 % 2), 8·(i / 4) + 2·pair + i % 2).
template <bool kOuterA, bool kOuterB>
RLHF_DEVICE void multiplyTiles(float (&sums)[64], uint64_t a, uint64_t b, [[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, add, 1, 1, %66, %67;\n}"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
        "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
        "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
        "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
        "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
        "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
        "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
        "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63])
      : "l"(a), "l"(b), "n"(kOuterA), "n"(kOuterB)
      : "memory");
#else
  simt::wgmma(sums, 128, a, b, kOuterA, kOuterB, site);
#endif
}

template <bool kOuterA, bool kOuterB>
RLHF_DEVICE void multiplyTiles(float (&sums)[128], uint64_t a, uint64_t b, [[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile(
      "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, add, 1, 1, %130, %131;\n}"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]), "+f"(sums[7]),
        "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]), "+f"(sums[14]), "+f"(sums[15]),
        "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]),
        "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]),
        "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]),
        "+f"(sums[40]), "+f"(sums[41]), "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]),
        "+f"(sums[48]), "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]),
        "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), "+f"(sums[63]),
        "+f"(sums[64]), "+f"(sums[65]), "+f"(sums[66]), "+f"(sums[67]), "+f"(sums[68]), "+f"(sums[69]), "+f"(sums[70]), "+f"(sums[71]),
        "+f"(sums[72]), "+f"(sums[73]), "+f"(sums[74]), "+f"(sums[75]), "+f"(sums[76]), "+f"(sums[77]), "+f"(sums[78]), "+f"(sums[79]),
        "+f"(sums[80]), "+f"(sums[81]), "+f"(sums[82]), "+f"(sums[83]), "+f"(sums[84]), "+f"(sums[85]), "+f"(sums[86]), "+f"(sums[87]),
        "+f"(sums[88]), "+f"(sums[89]), "+f"(sums[90]), "+f"(sums[91]), "+f"(sums[92]), "+f"(sums[93]), "+f"(sums[94]), "+f"(sums[95]),
        "+f"(sums[96]), "+f"(sums[97]), "+f"(sums[98]), "+f"(sums[99]), "+f"(sums[100]), "+f"(sums[101]), "+f"(sums[102]), "+f"(sums[103]),
        "+f"(sums[104]), "+f"(sums[105]), "+f"(sums[106]), "+f"(sums[107]), "+f"(sums[108]), "+f"(sums[109]), "+f"(sums[110]), "+f"(sums[111]),
        "+f"(sums[112]), "+f"(sums[113]), "+f"(sums[114]), "+f"(sums[115]), "+f"(sums[116]), "+f"(sums[117]), "+f"(sums[118]), "+f"(sums[119]),
        "+f"(sums[120]), "+f"(sums[121]), "+f"(sums[122]), "+f"(sums[123]), "+f"(sums[124]), "+f"(sums[125]), "+f"(sums[126]), "+f"(sums[127])
      : "l"(a), "l"(b), "n"(kOuterA), "n"(kOuterB)
      : "memory");
#else
  simt::wgmma(sums, 256, a, b, kOuterA, kOuterB, site);
#endif
}

/// A barrier of `threads` threads, whole warps of which all lanes come; `name` is 1 to 15.
RLHF_DEVICE void syncNamed(int name, int threads, [[maybe_unused]] Site site = Site::here()) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
#else
  simt::namedBarrier(name, threads, site);
#endif
}

/// Gives registers back, or takes them: the calling warpgroup has kCount a thread from here on (setmaxnreg). All its warps call it.
template <int kCount>
RLHF_DEVICE void lowerRegisters([[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  simt::changeRegisters(kCount, false, site);
#endif
}

template <int kCount>
RLHF_DEVICE void raiseRegisters([[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  simt::changeRegisters(kCount, true, site);
#endif
}

}  // namespace rlhf::cuda
