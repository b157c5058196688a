#include <algorithm>
#include <cmath>

#include "cuda/prim/ptx.cuh"
#include "simt/selftest.h"

// A product of 64 × 128 on one warpgroup, its factors copied by a fifth warp through two stages: right without its bug, and made of
// prim/ alone as csrc/cuda/hopper is. The factors are small integers, so that every sum is exact.

namespace rlhf::simt {
namespace {

using namespace cuda;

constexpr int kRows = 64, kCols = 128, kStageDepth = 64, kStages = 2, kWarps = 5;
constexpr int kRowsThere = 61, kColsThere = 123, kDepthThere = 5 * kStageDepth - 8;  // the rest of the boxes is outside the arrays
constexpr int kStageBytes = (kRows + kCols) * kStageDepth * 2;

enum class Bug {
  None,
  NoWait,
  WrongParity,
  TooFewBytes,
  TooManyBytes,
  WrongSwizzle,
  UnswizzledCopy,
  NoFence,
  NoFinalWait,
  SumsWrittenEarly,
  FragmentWrittenEarly,
  FreedEarly,
  NotPublished,
  NotInitialised,
  TooManyArrivals,
  TooFewArrivals,
  NeverFreed,
  Misaligned,
  LanesDiffer,
  WarpsDiffer,
  WarpIdle,
  BarrierOverwritten,
  BlockEndsEarly,
  NotCommitted,
};

/// How the factors lie: both in rows of k, both in rows of i, or A in registers and B in rows of i.
enum class Layout { Inner, Outer, Fragment };
constexpr bool isOuterA(Layout layout) { return layout == Layout::Outer; }
constexpr bool isOuterB(Layout layout) { return layout != Layout::Inner; }

struct ProductShared {
  struct Stage {
    alignas(1024) uint16_t a[kRows * kStageDepth];
    alignas(1024) uint16_t b[kCols * kStageDepth];
  } stage[kStages];
  TransactionBarrier filled[kStages], free[kStages];
};

template <Bug kBug, Layout kLayout>
void produce(ProductShared& shared, const TensorMap& a, const TensorMap& b, int tiles) {
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages, parity = tile / kStages % 2;
    cuda::waitFor(&shared.free[stage], parity ^ 1);
    const int bytes = kStageBytes + (kBug == Bug::TooFewBytes ? -1024 : kBug == Bug::TooManyBytes ? 16 : 0);
    arriveExpecting(&shared.filled[stage], bytes);
    const int k = tile * kStageDepth, shift = kBug == Bug::Misaligned ? 64 : 0;
    if (isOuterA(kLayout)) {
      cuda::copyBox(shared.stage[stage].a, a, 0, k, &shared.filled[stage]);
    } else {
      cuda::copyBox(shared.stage[stage].a + shift, a, k, 0, &shared.filled[stage]);
    }
    if (isOuterB(kLayout)) {
      for (int panel = 0; panel < kCols; panel += 64)
        cuda::copyBox(shared.stage[stage].b + panel * kStageDepth, b, panel, k, &shared.filled[stage]);
    } else {
      cuda::copyBox(shared.stage[stage].b, b, k, 0, &shared.filled[stage]);
    }
  }
}

/// The lane's registers of A for 16 values of k, from rows of k.
void readFragment(uint32_t (&fragment)[4], const uint16_t* a, int firstK) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = 0; r < 4; ++r) {
    const int row = 16 * warp + lane / 4 + 8 * (r % 2), k = firstK + 2 * (lane % 4) + 8 * (r / 2);
    const uint16_t* pair = &a[row * kStageDepth + (k / 8 ^ row % 8) * 8 + k % 8];
    fragment[r] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

template <Bug kBug, Layout kLayout>
void consume(ProductShared& shared, float (&sums)[kCols / 2], int tiles) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages, parity = tile / kStages % 2;
    if (kBug != Bug::NoWait) cuda::waitFor(&shared.filled[stage], kBug == Bug::WrongParity ? parity ^ 1 : parity);
    uint64_t a = matrixDescriptor(shared.stage[stage].a, 8192), b = matrixDescriptor(shared.stage[stage].b, 8192);
    if (kBug == Bug::WrongSwizzle) a ^= uint64_t{3} << 62;  // of 64 bytes in the place of 128
    if (kBug == Bug::LanesDiffer && lane == 7) b += 1;
    if (kBug == Bug::WarpsDiffer && warp == 2) b += 1;
    if (kBug != Bug::NoFence) beginProducts(sums);
    if (kBug == Bug::SumsWrittenEarly) sums[3] = 0;
    uint32_t fragments[kStageDepth / 16][4];
    for (int step = 0; step < kStageDepth / 16; ++step) {
      const uint64_t bStep = advance(b, step * (isOuterB(kLayout) ? 2048 : 32));
      if (kBug == Bug::WarpIdle && warp == 1 && tile == 2) continue;
      if constexpr (kLayout == Layout::Fragment) {
        readFragment(fragments[step], shared.stage[stage].a, 16 * step);
        multiplyFragment<isOuterB(kLayout)>(sums, fragments[step], bStep);
      } else {
        const uint64_t aStep = advance(a, step * (isOuterA(kLayout) ? 2048 : 32));
        multiplyTiles<isOuterA(kLayout), isOuterB(kLayout)>(sums, aStep, bStep, tile > 0 || step > 0);
      }
    }
    if (kBug == Bug::SumsWrittenEarly) sums[3] = 0;
    if (kBug == Bug::FragmentWrittenEarly) fragments[1][2] ^= 0x80000000u;
    if (kBug != Bug::NotCommitted || tile + 1 < tiles) commitProducts();
    const bool frees = kBug == Bug::TooManyArrivals || (kBug == Bug::TooFewArrivals ? threadIdx.x == 0 : lane == 0);
    if (kBug == Bug::FreedEarly && lane == 0) cuda::arrive(&shared.free[stage]);
    if (kBug != Bug::NoFinalWait || tile + 1 < tiles) waitForProducts<0>(sums);
    if (kBug == Bug::BarrierOverwritten && tile == 1) shared.free[stage] = 0;
    if (kBug != Bug::FreedEarly && kBug != Bug::NeverFreed && frees) cuda::arrive(&shared.free[stage]);
  }
}

template <Bug kBug, Layout kLayout>
__global__ void productKernel(TensorMap a, TensorMap b, int tiles, float* out) {
  RLHF_SHARED_MEMORY(ProductShared, shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      if (kBug != Bug::NotInitialised || stage == 0) cuda::initBarrier(&shared.filled[stage], 1);
      cuda::initBarrier(&shared.free[stage], 4);
    }
    if (kBug != Bug::NotPublished) cuda::publishBarriers();
  }
  syncThreads();
  if (warp == 4) {
    if (lane == 0) produce<kBug, kLayout>(shared, a, b, tiles + (kBug == Bug::BlockEndsEarly ? 1 : 0));
    return;
  }
  float sums[kCols / 2];
  std::ranges::fill(sums, kLayout == Layout::Fragment ? 0.0f : NAN);  // the first product of tiles overwrites them
  consume<kBug, kLayout>(shared, sums, tiles);
  for (int i = 0; i < kCols / 2; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    if (row < kRowsThere && col < kColsThere) out[row * kColsThere + col] = sums[i];
  }
}

int valueOfA(int row, int k) { return (row * 7 + k * 3 + row * k) % 17 - 8; }
int valueOfB(int k, int col) { return (k * 5 + col * 11 + k * col) % 13 - 6; }

/// The values of a factor, its rows of k (i, k), or of i (k, i), 8 elements and more of NaN behind each.
template <class Value>
std::vector<uint16_t> factorOf(int extent, bool outer, int64_t stride, const Value& value) {
  std::vector<uint16_t> factor(static_cast<size_t>(outer ? kDepthThere : extent) * stride, 0xffff);
  for (int i = 0; i < extent; ++i) {
    for (int k = 0; k < kDepthThere; ++k)
      factor[outer ? k * stride + i : i * stride + k] = floatToBf16(static_cast<float>(value(i, k))).bits;
  }
  return factor;
}

std::string compareProduct(const std::vector<float>& out) {
  for (int row = 0; row < kRowsThere; ++row) {
    for (int col = 0; col < kColsThere; ++col) {
      int expected = 0;
      for (int k = 0; k < kDepthThere; ++k) expected += valueOfA(row, k) * valueOfB(k, col);
      const float actual = out[row * kColsThere + col];
      if (!(actual == static_cast<float>(expected)))
        return format("wrong result: D(%d, %d) is %g instead of %d", row, col, actual, expected);
    }
  }
  return "";
}

template <Bug kBug, Layout kLayout = Layout::Inner>
std::string runProduct() {
  const EmulatedCapability hopper(90);
  constexpr int64_t kStride = 448;
  const auto a = factorOf(kRowsThere, isOuterA(kLayout), kStride, valueOfA);
  const auto b = factorOf(kColsThere, isOuterB(kLayout), kStride, [](int col, int k) { return valueOfB(k, col); });
  const auto mapOf = [&](const std::vector<uint16_t>& factor, bool outer, int extent, int boxRows) {
    const Swizzle swizzle = kBug == Bug::UnswizzledCopy ? Swizzle::None : Swizzle::Bytes128;
    const auto [rows, cols] = outer ? std::pair{kDepthThere, extent} : std::pair{extent, kDepthThere};
    return simt::makeTensorMap(factor.data(), rows, cols, kStride, kBoxColumns, outer ? kStageDepth : boxRows, swizzle);
  };
  std::vector<float> out(kRowsThere * kColsThere, NAN);
  RLHF_LAUNCH((productKernel<kBug, kLayout>), dim3(1), dim3(32 * kWarps), sizeof(ProductShared), nullptr,
              mapOf(a, isOuterA(kLayout), kRowsThere, kRows), mapOf(b, isOuterB(kLayout), kColsThere, kCols), (kDepthThere + kStageDepth - 1) / kStageDepth, out.data());
  return compareProduct(out);
}

// --- What is no part of a product.

enum class BlockBug { None, NoBarrier, TooManyRegisters, WrongDirection };

struct HalvesShared {
  float value[128];
};

/// Two of four warps exchange values behind a barrier of their own; registers go from the others to them.
template <BlockBug kBug>
__global__ void halvesKernel(float* out) {
  RLHF_SHARED_MEMORY(HalvesShared, shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= 64) {
    if (kBug == BlockBug::WrongDirection) return setRegisters<Registers::GiveBack, 256>();
    if (kBug != BlockBug::TooManyRegisters) setRegisters<Registers::GiveBack, 64>();
    return;
  }
  setRegisters<Registers::Take, 256>();
  shared.value[thread] = static_cast<float>(thread);
  if (kBug != BlockBug::NoBarrier) syncNamed(3, 64);
  out[thread] = shared.value[63 - thread];
}

template <BlockBug kBug>
std::string runHalves() {
  const EmulatedCapability hopper(90);
  std::vector<float> out(64, NAN);
  RLHF_LAUNCH(halvesKernel<kBug>, dim3(1), dim3(128), sizeof(HalvesShared), nullptr, out.data());
  for (int thread = 0; thread < 64; ++thread) {
    if (!(out[thread] == static_cast<float>(63 - thread))) return format("wrong result: element %d is %g", thread, out[thread]);
  }
  return "";
}

/// wgmma on a device that has none.
std::string runWithoutHopper() {
  const EmulatedCapability ampere(80);
  std::vector<uint16_t> factor(kCols * kStageDepth);
  const TensorMap map = simt::makeTensorMap(factor.data(), kCols, kStageDepth, kStageDepth, kBoxColumns, kCols, Swizzle::Bytes128);
  const TensorMap narrow = simt::makeTensorMap(factor.data(), kRows, kStageDepth, kStageDepth, kBoxColumns, kRows, Swizzle::Bytes128);
  std::vector<float> out(kRows * kCols);
  RLHF_LAUNCH((productKernel<Bug::None, Layout::Inner>), dim3(1), dim3(32 * kWarps), sizeof(ProductShared), nullptr, narrow, map, 1, out.data());
  return "";
}

std::string runStrideOfTensorMap() {
  std::vector<uint16_t> factor(4096);
  simt::makeTensorMap(factor.data(), 8, 64, 68, kBoxColumns, 8, Swizzle::Bytes128);
  return "";
}

std::string runWidthOfHeadMap() {
  std::vector<uint16_t> factor(4096);
  simt::makeHeadMap(factor.data(), 8, 2, 36, 72, kBoxColumns, 8, Swizzle::Bytes128);
  return "";
}

}  // namespace

std::vector<SelfTest> hopperTests() {
  return {
      {"hopper: product", runProduct<Bug::None>},
      {"hopper: product, rows of i", runProduct<Bug::None, Layout::Outer>},
      {"hopper: product, a factor in registers", runProduct<Bug::None, Layout::Fragment>},
      {"hopper: no wait for the copies", runProduct<Bug::NoWait>},
      {"hopper: wrong parity", runProduct<Bug::WrongParity>},
      {"hopper: too few bytes expected", runProduct<Bug::TooFewBytes>},
      {"hopper: too many bytes expected", runProduct<Bug::TooManyBytes>},
      {"hopper: wrong swizzle of the descriptor", runProduct<Bug::WrongSwizzle>},
      {"hopper: no swizzle of the copy", runProduct<Bug::UnswizzledCopy>},
      {"hopper: no fence", runProduct<Bug::NoFence>},
      {"hopper: no wait for the products", runProduct<Bug::NoFinalWait>},
      {"hopper: sums written in between", runProduct<Bug::SumsWrittenEarly>},
      {"hopper: registers of a factor written in between", runProduct<Bug::FragmentWrittenEarly, Layout::Fragment>},
      {"hopper: stage freed early", runProduct<Bug::FreedEarly>},
      {"hopper: barriers not published", runProduct<Bug::NotPublished>},
      {"hopper: barrier not initialised", runProduct<Bug::NotInitialised>},
      {"hopper: too many arrivals", runProduct<Bug::TooManyArrivals>},
      {"hopper: too few arrivals", runProduct<Bug::TooFewArrivals>},
      {"hopper: stages never freed", runProduct<Bug::NeverFreed>},
      {"hopper: tile misaligned", runProduct<Bug::Misaligned>},
      {"hopper: lanes differ", runProduct<Bug::LanesDiffer>},
      {"hopper: warps differ", runProduct<Bug::WarpsDiffer>},
      {"hopper: a warp leaves a product out", runProduct<Bug::WarpIdle>},
      {"hopper: barrier overwritten", runProduct<Bug::BarrierOverwritten>},
      {"hopper: block ends before a copy", runProduct<Bug::BlockEndsEarly>},
      {"hopper: products not committed", runProduct<Bug::NotCommitted>},
      {"hopper: named barrier and registers", runHalves<BlockBug::None>},
      {"hopper: no named barrier", runHalves<BlockBug::NoBarrier>},
      {"hopper: too many registers", runHalves<BlockBug::TooManyRegisters>},
      {"hopper: registers the wrong way", runHalves<BlockBug::WrongDirection>},
      {"hopper: not on this device", runWithoutHopper},
      {"hopper: stride of a tensor map", runStrideOfTensorMap},
      {"hopper: width of a map's heads", runWidthOfHeadMap},
  };
}

}  // namespace rlhf::simt
