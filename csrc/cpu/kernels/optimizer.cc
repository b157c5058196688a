#include <bit>
#include <cmath>

#include "core/stochastic_rounding.h"
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

constexpr int64_t kPiece = 256;

/// out = the values rounded stochastically, elements `first` on of an array; `first` is a multiple of 8.
void roundPiece(const AdamW& a, int64_t first, const float* values, uint16_t* out, int64_t count) {
  uint32_t noise[kPiece];
  for (int64_t group = 0; 8 * group < count; ++group) {
    const PhiloxBlock bits = roundingBits(a.seed, static_cast<uint64_t>(a.step), static_cast<uint64_t>(first / 8 + group));
    for (int lane = 0; lane < 8; ++lane) noise[8 * group + lane] = roundingNoise(bits, lane);
  }
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<uint16_t>(stochasticallyRounded(std::bit_cast<uint32_t>(values[i]), noise[i]) >> 16);
}

/// The update of parameters in bfloat16 that have no master weights, elements `begin` to `end`; `begin` is a multiple of 8.
void updateRounding(const AdamW& a, const AdamWConstants& step, int64_t begin, int64_t end) {
  float weights[kPiece];
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t count = std::min(kPiece, end - first);
    uint16_t* const parameter = static_cast<uint16_t*>(a.parameter) + first;
    convertToFloat(parameter, DType::BF16, weights, static_cast<size_t>(count));
    update(step, static_cast<const float*>(a.gradient) + first, weights, static_cast<float*>(a.m) + first,
           static_cast<float*>(a.v) + first, count);
    roundPiece(a, first, weights, parameter, count);
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
  requireFloat32(accumulatorType(a.type), "adamW");
  const AdamWConstants step = adamWConstants(a);
  float* const weights = static_cast<float*>(a.master ? a.master : a.parameter);
  forEachRange(context, a.count, 1, [&](int64_t begin, int64_t end) {
    if (a.type == DType::BF16 && !a.master) return updateRounding(a, step, begin, end);
    update(step, static_cast<const float*>(a.gradient) + begin, weights + begin, static_cast<float*>(a.m) + begin,
           static_cast<float*>(a.v) + begin, end - begin);
    if (a.master)
      convertFromFloat(weights + begin, static_cast<char*>(a.parameter) + static_cast<size_t>(begin) * dtypeSize(a.type), a.type,
                       static_cast<size_t>(end - begin));
  });
}

void narrow(OpContext& context, const Narrow& a) {
  const size_t element = dtypeSize(a.type);
  const auto scale = static_cast<float>(a.scale);
  forEachRange(context, a.count, 1, [&](int64_t begin, int64_t end) {
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
