#include <cmath>

#include "cuda/prim/launch.cuh"
#include "cuda/prim/warp.cuh"
#include "simt/deadline.h"
#include "simt/selftest.h"

// Each kernel is small, right without its bug, and as kernels in csrc/cuda are: built from prim/ alone.

namespace rlhf::simt {
namespace {

using namespace cuda;

constexpr int kThreads = 64;  // two warps
constexpr int kTiles = 6;
constexpr int kPack = 4;      // floats that one cp.async moves

/// "" or which element differs.
std::string compare(const std::vector<float>& actual, const std::vector<float>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(actual[i] == expected[i]))
      return format("wrong result: element %zu is %g instead of %g", i, actual[i], expected[i]);
  }
  return "";
}

std::vector<float> ramp(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i + 1);
  return values;
}

// --- Double-buffered copies: each thread adds up what another warp's thread copied.

enum class CopyBug { None, WaitDepth, NoBarrierAfterWait, NoBarrierBeforeRefill, UnwaitedTail, LeftOnItsWay, Misaligned };

struct CopyShared {
  float stage[2][kThreads * kPack + kPack];
};

RLHF_DEVICE int partnerOf(int thread) { return (thread + 32) % kThreads; }

template <CopyBug kBug>
__global__ void copyKernel(const float* in, float* out) {
  RLHF_SHARED_MEMORY(CopyShared, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int shift = kBug == CopyBug::Misaligned ? 1 : 0;
  const auto load = [&](int tile) {
    const float* const from = in + (tile % kTiles * kThreads + thread) * kPack;
    if (tile < kTiles || kBug == CopyBug::LeftOnItsWay) cpAsync16(&shared.stage[tile % 2][thread * kPack + shift], from, 16);
    if (kBug != CopyBug::UnwaitedTail || tile < kTiles) cpAsyncCommit();
  };
  load(0);
  float sum = 0;
  for (int tile = 0; tile < kTiles; ++tile) {
    load(tile + 1);
    cpAsyncWait<kBug == CopyBug::WaitDepth ? 2 : 1>();
    if (kBug != CopyBug::NoBarrierAfterWait) syncThreads();
    sum += shared.stage[tile % 2][partnerOf(thread) * kPack + tile % kPack];
    if (kBug != CopyBug::NoBarrierBeforeRefill) syncThreads();
  }
  if (kBug != CopyBug::LeftOnItsWay) cpAsyncWait<0>();
  out[thread] = sum;
}

template <CopyBug kBug>
std::string runCopy() {
  const std::vector<float> in = ramp(kTiles * kThreads * kPack);
  std::vector<float> out(kThreads, NAN), expected(kThreads, 0);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int tile = 0; tile < kTiles; ++tile)
      expected[thread] += in[(tile * kThreads + partnerOf(thread)) * kPack + tile % kPack];
  }
  RLHF_LAUNCH(copyKernel<kBug>, dim3(1), dim3(kThreads), sizeof(CopyShared), nullptr, in.data(), out.data());
  return compare(out, expected);
}

// --- Exchange through shared memory: every thread reads what its neighbour wrote.

enum class ExchangeBug { None, LockstepAssumed, Unwritten, Overrun };

struct ExchangeShared {
  float value[kThreads];
};

template <ExchangeBug kBug>
__global__ void exchangeKernel(const float* in, float* out) {
  RLHF_SHARED_MEMORY(ExchangeShared, shared);
  const int thread = static_cast<int>(threadIdx.x), neighbour = thread ^ 1;  // of the same warp
  if (kBug != ExchangeBug::Unwritten || thread != 5) shared.value[thread] = in[thread];
  if (kBug == ExchangeBug::Overrun && thread == 0) reinterpret_cast<float*>(sharedMemory())[kThreads] = 1;
  if (kBug != ExchangeBug::LockstepAssumed) syncThreads();
  out[thread] = shared.value[neighbour];
}

template <ExchangeBug kBug>
std::string runExchange() {
  const std::vector<float> in = ramp(kThreads);
  std::vector<float> out(kThreads, NAN), expected(kThreads);
  for (int thread = 0; thread < kThreads; ++thread) expected[thread] = in[thread ^ 1];
  RLHF_LAUNCH(exchangeKernel<kBug>, dim3(1), dim3(kThreads), sizeof(ExchangeShared), nullptr, in.data(), out.data());
  return compare(out, expected);
}

// --- Warp and block collectives.

enum class CollectiveBug { None, Divergent, OutsideMask, LaneEnded, BarrierDivergent, BarrierAgainstShuffle };

template <CollectiveBug kBug>
__global__ void collectiveKernel(const float* in, float* out) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  float value = in[thread];
  if (kBug == CollectiveBug::LaneEnded && thread == 31) return;
  if (kBug == CollectiveBug::OutsideMask) simt::syncWarp(0x0000ffffu, Site::here());
  if (kBug == CollectiveBug::Divergent && lane < 16) {
    value = groupSum(value);
  } else if (kBug == CollectiveBug::BarrierAgainstShuffle && thread == 3) {
    syncThreads();
  } else {
    value = groupSum(value);
  }
  if (kBug == CollectiveBug::BarrierDivergent && thread < 32) {
    syncThreads();
  } else {
    syncThreads();
  }
  out[thread] = value;
}

template <CollectiveBug kBug>
std::string runCollective() {
  const std::vector<float> in = ramp(kThreads);
  std::vector<float> out(kThreads, NAN), expected(kThreads, 0);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int lane = 0; lane < 32; ++lane) expected[thread] += in[thread / 32 * 32 + lane];
  }
  RLHF_LAUNCH(collectiveKernel<kBug>, dim3(1), dim3(kThreads), 0, nullptr, in.data(), out.data());
  return compare(out, expected);
}

// --- Votes and partial masks.

__global__ void voteKernel(float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const uint32_t odd = simt::ballot(kFullWarp, lane % 2 == 1, Site::here());
  uint32_t low = 0;
  if (lane < 8) low = simt::ballot(0xffu, lane > 5, Site::here());
  out[lane] = odd == 0xaaaaaaaau && low == (lane < 8 ? 0xc0u : 0u) ? 1.0f : 0.0f;
}

std::string runVote() {
  std::vector<float> out(32, NAN);
  RLHF_LAUNCH(voteKernel, dim3(1), dim3(32), 0, nullptr, out.data());
  return compare(out, std::vector<float>(32, 1.0f));
}

// --- Blocks that count on the order of their indices.

__global__ void blockOrderKernel(float* out) {
  if (threadIdx.x > 0) return;
  out[blockIdx.x] = blockIdx.x == 0 ? 1.0f : out[blockIdx.x - 1] + 1.0f;
}

std::string runBlockOrder() {
  std::vector<float> out(8, NAN);
  RLHF_LAUNCH(blockOrderKernel, dim3(8), dim3(32), 0, nullptr, out.data());
  return compare(out, ramp(8));
}

// --- What does not come back.

enum class EndlessBug { Loop, LoopOfBarriers, Stack };

/// As many frames as nobody has room for.
__attribute__((noinline)) float descend(const float* in, int depth) {
  volatile float frame[256];
  for (int i = 0; i < 256; ++i) frame[i] = in[i % kThreads];
  return depth == 0 ? frame[0] : descend(in, depth - 1) + frame[depth % 256];
}

template <EndlessBug kBug>
__global__ void endlessKernel(const float* in, float* out) {
  const volatile float* value = in;
  while (kBug == EndlessBug::Loop && threadIdx.x == 37 && *value > 0) {}
  while (kBug == EndlessBug::LoopOfBarriers && *value > 0) syncThreads();
  out[threadIdx.x] = kBug == EndlessBug::Stack && threadIdx.x == 37 ? descend(in, 1 << 20) : 1.0f;
}

template <EndlessBug kBug>
std::string runEndless() {
  const DeadlineOf deadline(0.02);
  const std::vector<float> in = ramp(kThreads);
  std::vector<float> out(kThreads, NAN);
  RLHF_LAUNCH(endlessKernel<kBug>, dim3(1), dim3(kThreads), 0, nullptr, in.data(), out.data());
  return "";
}

// --- Limits of the hardware.

__global__ void emptyKernel(float*) {}

std::string runTooManyThreads() {
  RLHF_LAUNCH(emptyKernel, dim3(1), dim3(2048), 0, nullptr, nullptr);
  return "";
}

std::string runTooMuchShared() {
  RLHF_LAUNCH(emptyKernel, dim3(1), dim3(32), 200 << 10, nullptr, nullptr);
  return "";
}

}  // namespace

std::vector<SelfTest> bugTests() {
  return {
      {"copy", runCopy<CopyBug::None>},
      {"copy: wait depth", runCopy<CopyBug::WaitDepth>},
      {"copy: no barrier after the wait", runCopy<CopyBug::NoBarrierAfterWait>},
      {"copy: no barrier before the refill", runCopy<CopyBug::NoBarrierBeforeRefill>},
      {"copy: no empty group at the end", runCopy<CopyBug::UnwaitedTail>},
      {"copy: left on its way", runCopy<CopyBug::LeftOnItsWay>},
      {"copy: misaligned", runCopy<CopyBug::Misaligned>},
      {"exchange", runExchange<ExchangeBug::None>},
      {"exchange: lock-step assumed", runExchange<ExchangeBug::LockstepAssumed>},
      {"exchange: read before written", runExchange<ExchangeBug::Unwritten>},
      {"exchange: past the end", runExchange<ExchangeBug::Overrun>},
      {"collective", runCollective<CollectiveBug::None>},
      {"collective: divergent shuffle", runCollective<CollectiveBug::Divergent>},
      {"collective: outside the mask", runCollective<CollectiveBug::OutsideMask>},
      {"collective: a lane has ended", runCollective<CollectiveBug::LaneEnded>},
      {"collective: divergent barrier", runCollective<CollectiveBug::BarrierDivergent>},
      {"collective: barrier against shuffle", runCollective<CollectiveBug::BarrierAgainstShuffle>},
      {"vote", runVote},
      {"block order", runBlockOrder},
      {"endless: loop", runEndless<EndlessBug::Loop>},
      {"endless: loop of barriers", runEndless<EndlessBug::LoopOfBarriers>},
      {"endless: stack", runEndless<EndlessBug::Stack>},
      {"limits: threads", runTooManyThreads},
      {"limits: shared memory", runTooMuchShared},
  };
}

}  // namespace rlhf::simt
