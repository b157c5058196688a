#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "cpu/backend.h"
#include "cpu/kernels/bfloat16.h"
#include "cpu/kernels/table.h"
#include "cpu/simd.h"

namespace rlhf::RLHF_ISA {
namespace {

// Independent chains cover the latency of two multiply-add units (4 to 5 cycles each); 12 were measured 3 % short of 16 with AVX-512,
// and 12 are what AVX2's registers hold.
constexpr int kChains = kWidth == 16 ? 16 : 12;

/// Runs `steps` rounds of kChains multiply-adds; the sum keeps the compiler from dropping them.
float multiplyAdds(int64_t steps, float factor) {
  Vec chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = set1(static_cast<float>(i));
  const Vec scale = set1(factor), step = set1(0.5f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * scale + step;
  }
  Vec total{};
  for (const Vec& chain : chains) total += chain;
  return sum(total);
}

/// The least seconds that `body(slot)` took on all threads of the pool together.
template <class Body>
double fastestSeconds(ThreadPool& pool, int repetitions, Body body) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    const auto begin = Clock::now();
    pool.run(pool.size(), [&](int64_t part, int) { body(part); });
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

/// Steps of a panel of A and one of B that stay in the first-level cache together.
constexpr int64_t kCachedSteps = 8;
constexpr int kSegmentsPerTile = 16;  // as deep as the products of a layer of 4,096 inputs

/// Products of one pair of panels: what the kernel reaches where nothing has to be fetched.
void multiplyPanels(int64_t tiles) {
  alignas(64) uint16_t a[kCachedSteps * kBfloat16StepElements], b[kCachedSteps * kBfloat16StepElements];
  alignas(64) float c[kBfloat16Tile * kBfloat16Tile];
  std::fill(std::begin(a), std::end(a), uint16_t{0x3f80});  // 1
  std::fill(std::begin(b), std::end(b), uint16_t{0x3f80});
  cpu::Bfloat16Segment segments[kSegmentsPerTile];
  std::fill(std::begin(segments), std::end(segments), cpu::Bfloat16Segment{a, b, kCachedSteps});
  const cpu::Bfloat16Kernel& kernel = bfloat16Kernel();
  if (kernel.begin) kernel.begin();
  for (int64_t tile = 0; tile < tiles; ++tile) kernel.rounded.multiply(segments, kSegmentsPerTile, kBfloat16Tile, c, false, {});
  if (kernel.end) kernel.end();
}

/// Part `part` of `parts` of `count` floats, in whole vectors.
int64_t cut(int64_t count, int64_t part, int64_t parts) { return count / kWidth * part / parts * kWidth; }

/// Sums what stands in [begin, end).
Vec sumOf(const float* from, int64_t begin, int64_t end) {
  Vec sums[4] = {};
  int64_t i = begin;
  for (; i + 4 * kWidth <= end; i += 4 * kWidth)
    for (int lane = 0; lane < 4; ++lane) sums[lane] += load(from + i + lane * kWidth);
  for (; i < end; i += kWidth) sums[0] += load(from + i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/// Floats that stand in memory, in huge pages where the system gives them, as the device's large arrays.
class StreamBuffer {
 public:
  explicit StreamBuffer(int64_t count) {
    if (device_.allocate(&device_, static_cast<size_t>(count) * sizeof(float), &memory_) != kOk)
      throw Error(code::kOutOfMemory, "no memory to measure its bandwidth with");
    std::fill_n(data(), count, 1.0f);
  }
  ~StreamBuffer() { device_.release(&device_, memory_); }
  StreamBuffer(const StreamBuffer&) = delete;
  StreamBuffer& operator=(const StreamBuffer&) = delete;
  float* data() const { return static_cast<float*>(memory_); }

 private:
  cpu::CpuDevice device_{1};
  void* memory_ = nullptr;
};

}  // namespace

double measureMultiplyAddPeak(ThreadPool& pool, int64_t steps, int repetitions) {
  volatile float sink = 0;
  const double seconds = fastestSeconds(pool, repetitions, [&](int64_t) { sink = multiplyAdds(steps, 0.5f); });
  return 2.0 * kWidth * kChains * static_cast<double>(steps) * pool.size() / seconds;
}

double measureBfloat16Peak(ThreadPool& pool, int64_t tiles, int repetitions) {
  const double seconds = fastestSeconds(pool, repetitions, [&](int64_t) { multiplyPanels(tiles); });
  constexpr double kPerTile = 2.0 * kBfloat16Tile * kBfloat16StepElements * kCachedSteps * kSegmentsPerTile;
  return kPerTile * static_cast<double>(tiles) * pool.size() / seconds;
}

double measureStreaming(ThreadPool& pool, const cpu::Stream& bytes, int repetitions) {
  constexpr int64_t kBlocks = 64;  // reads and writes take turns, as those of an op do
  const int64_t parts = pool.size() * kBlocks;
  constexpr int64_t kBytes = sizeof(float);
  const int64_t reads = bytes.read / kBytes, writes = bytes.written / kBytes, updates = bytes.updated / kBytes;
  const StreamBuffer from(reads), to(writes), both(updates);
  volatile float sink = 0;
  const double seconds = fastestSeconds(pool, repetitions, [&](int64_t thread) {
    for (int64_t part = thread * kBlocks; part < (thread + 1) * kBlocks; ++part) {
      const Vec total = sumOf(from.data(), cut(reads, part, parts), cut(reads, part + 1, parts));
      const int64_t end = cut(writes, part + 1, parts);
      for (int64_t i = cut(writes, part, parts); i < end; i += kWidth) store(to.data() + i, total);
      const int64_t lastUpdate = cut(updates, part + 1, parts);
      for (int64_t i = cut(updates, part, parts); i < lastUpdate; i += kWidth)
        store(both.data() + i, load(both.data() + i) * set1(0.5f) + total);
      sink = sum(total);
    }
  });
  return static_cast<double>(cut(reads, 1, 1) + cut(writes, 1, 1) + 2 * cut(updates, 1, 1)) * kBytes / seconds;
}

}  // namespace rlhf::RLHF_ISA
