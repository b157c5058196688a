#include <chrono>

#include "cpu/kernels/table.h"
#include "cpu/simd.h"

namespace rlhf::RLHF_ISA {
namespace {

// Enough independent chains to cover the latency of two multiply-add units (4 cycles each) on any processor of the last decade.
constexpr int kChains = 12;

/// Runs `steps` rounds of kChains multiply-adds; the sum keeps the compiler from dropping them.
float multiplyAdds(int64_t steps, float factor) {
  Vec chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = set1(static_cast<float>(i));
  const Vec scale = set1(factor), step = set1(0.5f);
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * scale + step;
  }
  Vec total{};
  for (const Vec& chain : chains) total += chain;
  return sum(total);
}

}  // namespace

double measureMultiplyAddPeak(ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kSteps = 2'000'000;
  constexpr int kRepetitions = 15;
  double best = 0;
  volatile float sink = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    const auto begin = Clock::now();
    pool.run(pool.size(), [&](int64_t, int) { sink = multiplyAdds(kSteps, 0.5f); });
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const double operations = 2.0 * kWidth * kChains * static_cast<double>(kSteps) * pool.size();
    if (operations / seconds > best) best = operations / seconds;
  }
  return best;
}

}  // namespace rlhf::RLHF_ISA
