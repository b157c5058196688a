#include <cmath>

#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/simd.h"

namespace rlhf::RLHF_ISA {
namespace {

// A plain loop: the compiler vectorises it, square root included.
void update(const AdamWConstants s, const float* __restrict gradient, float* __restrict parameter,
            float* __restrict m, float* __restrict v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = s.gradientScale * gradient[i];
    const float mean = s.beta1 * m[i] + s.oneMinusBeta1 * g;
    const float square = s.beta2 * v[i] + s.oneMinusBeta2 * (g * g);
    const float denominator = std::sqrt(square) * s.inverseRootCorrection + s.eps;
    parameter[i] = s.decay * parameter[i] - s.stepSize * (mean / denominator);
    m[i] = mean;
    v[i] = square;
  }
}

/// Σ x² of one block. So many partial sums that the compiler fills vectors with them, and several of those hide the
/// latency of the addition.
double squaredNormOfBlock(const float* x, int64_t count) {
  constexpr int kSums = 32;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int j = 0; j < kSums; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  for (int j = 0; i + j < count; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

}  // namespace

void adamW(OpContext& context, const AdamW& a) {
  requireFloat32(a.type, "adamW");
  const AdamWConstants step = adamWConstants(a);
  forEachRange(context, a.count, 1, [&](int64_t begin, int64_t end) {
    update(step, static_cast<const float*>(a.gradient) + begin, static_cast<float*>(a.parameter) + begin,
           static_cast<float*>(a.m) + begin, static_cast<float*>(a.v) + begin, end - begin);
  });
}

void narrow(OpContext& context, const Narrow& a) {
  const size_t element = dtypeSize(a.type);
  const auto scale = static_cast<float>(a.scale);
  forEachRange(context, a.count, 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t kPiece = 256;
    float scaled[kPiece];
    for (int64_t first = begin; first < end; first += kPiece) {
      const int64_t count = std::min(kPiece, end - first);
      for (int64_t i = 0; i < count; ++i) scaled[i] = scale * static_cast<const float*>(a.x)[first + i];
      convertFromFloat(scaled, static_cast<char*>(a.y) + static_cast<size_t>(first) * element, a.type, static_cast<size_t>(count));
    }
  });
}

void squaredNorm(OpContext& context, const SquaredNorm& a) {
  requireFloat32(a.type, "squaredNorm");
  const float* x = static_cast<const float*>(a.x);
  double* const sums = static_cast<double*>(context.scratch);
  const int64_t room = static_cast<int64_t>(cpu::kScratchPerThread / sizeof(double));
  // Blocks of one size whatever the number of threads, and no more of them than have a place in the scratch
  // memory.
  const int64_t block = std::max(kElementsPerTask, ceilDivide(a.count, room)),
                blocks = ceilDivide(a.count, block);
  cpu::pool(context).run(blocks, [&](int64_t index, int) {
    sums[index] = squaredNormOfBlock(x + index * block, std::min(block, a.count - index * block));
  });
  double total = 0;
  for (int64_t index = 0; index < blocks; ++index) total += sums[index];
  a.out[0] = total;
}

}  // namespace rlhf::RLHF_ISA
