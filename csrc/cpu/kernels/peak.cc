#include <chrono>

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

}  // namespace

double measureMultiplyAddPeak(ThreadPool& pool, int64_t steps, int repetitions) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  volatile float sink = 0;
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    const auto begin = Clock::now();
    pool.run(pool.size(), [&](int64_t, int) { sink = multiplyAdds(steps, 0.5f); });
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    const double operations = 2.0 * kWidth * kChains * static_cast<double>(steps) * pool.size();
    if (operations / seconds > best) best = operations / seconds;
  }
  return best;
}

}  // namespace rlhf::RLHF_ISA
