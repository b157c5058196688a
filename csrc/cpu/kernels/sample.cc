#include <cmath>

#include "core/philox.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/simd.h"

// Weights and their sums are in double: what is drawn then depends neither on a vector width nor on how many
// tokens there are.

namespace rlhf::RLHF_ISA {
namespace {

inline constexpr int kDoubles = kWidth / 2;
typedef double DoubleVec __attribute__((vector_size(RLHF_SIMD_WIDTH * 4)));
typedef int64_t LongVec __attribute__((vector_size(RLHF_SIMD_WIDTH * 4)));

/// e^x for x ≤ 0, relative error below 1e-15; 0 below −708. Range reduction by ln 2 in two parts, then
/// Taylor's polynomial of degree 13, whose remainder at ½·ln 2 is 4e-18.
DoubleVec expOfNonPositive(DoubleVec x) {
  const DoubleVec lowest = DoubleVec{} - 708.0;
  const DoubleVec clamped = x > lowest ? x : lowest;
  const DoubleVec magic =
      DoubleVec{} + 0x1.8p52;  // adding it rounds to an integer and leaves it in the low bits
  const DoubleVec shifted = clamped * 1.4426950408889634 + magic;
  const DoubleVec n = shifted - magic;
  const DoubleVec r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  DoubleVec p = DoubleVec{} + 1.0 / 6227020800.0;
  constexpr double kFactorials[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720,
                                    120,       24,       6,       2,      1,     1};
  for (const double factorial : kFactorials) p = p * r + 1.0 / factorial;
  const LongVec exponent = std::bit_cast<LongVec>(shifted) - std::bit_cast<LongVec>(magic);
  const DoubleVec scaled = p * std::bit_cast<DoubleVec>((exponent + 1023) << 52);
  return x < lowest ? DoubleVec{} : scaled;
}

/// weights[i] = e^(weights[i] − largest), in place. Reads and writes up to a whole vector beyond `count`.
void exponentiate(double* weights, int64_t count, double largest) {
  for (int64_t i = 0; i < count; i += kDoubles) {
    DoubleVec x;
    std::memcpy(&x, weights + i, sizeof x);
    x = expOfNonPositive(x - largest);
    std::memcpy(weights + i, &x, sizeof x);
  }
}

/// Sum in an order that depends on `count` alone.
double sumOf(const double* values, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += values[i + j];
  for (int j = 0; i + j < count; ++j) sums[j] += values[i + j];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

struct Draw {
  int64_t index;
  double probability;
};

/// The index at which the running sum of weights first exceeds u · total; the last positive one if rounding
/// keeps it below. Whole blocks are stepped over by their sums.
Draw draw(const double* weights, int64_t count, double u) {
  constexpr int64_t kBlock = 512;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock)
    total += sumOf(weights + begin, std::min(kBlock, count - begin));
  const double target = u * total;
  double cumulative = 0;
  int64_t last = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = std::min(kBlock, count - begin);
    const double blockSum = sumOf(weights + begin, size);
    if (cumulative + blockSum <= target && begin + size < count) {
      cumulative += blockSum;
      continue;
    }
    for (int64_t i = begin; i < begin + size; ++i) {
      if (weights[i] > 0) last = i;
      cumulative += weights[i];
      if (cumulative > target && weights[i] > 0) return {i, weights[i] / total};
    }
  }
  while (last > 0 && weights[last] <= 0) --last;
  return {last, weights[last] / total};
}

/// The logits of a row after repetition penalty and exclusion, in double; −∞ for what must not be drawn.
/// Returns the largest.
double adjustedLogits(const Sample& a, int64_t row, double* adjusted) {
  const float* logits = static_cast<const float*>(a.logits) + row * a.vocab;
  const uint8_t* seen = a.seen && a.repetitionPenalty != 1 ? a.seen + row * a.vocab : nullptr;
  for (int64_t v = 0; v < a.vocab; ++v) adjusted[v] = logits[v];
  if (seen)
    for (int64_t v = 0; v < a.vocab; ++v)
      if (seen[v])
        adjusted[v] = adjusted[v] > 0 ? adjusted[v] / a.repetitionPenalty : adjusted[v] * a.repetitionPenalty;
  bool valid = true;
  for (int64_t v = 0; v < a.vocab; ++v) valid &= logits[v] < INFINITY;
  if (!valid) {
    const int64_t v =
        std::find_if(logits, logits + a.vocab, [](float x) { return !(x < INFINITY); }) - logits;
    throw Error(code::kNonFinite,
                format("sample: logits[%lld, %lld] is NaN or infinite: the model's weights are damaged or have diverged",
                       static_cast<long long>(row), static_cast<long long>(v)));
  }
  if (a.forbidden && (!a.forbid || a.forbid[row]))
    for (int64_t i = 0; i < a.forbiddenCount; ++i) adjusted[a.forbidden[i]] = -INFINITY;
  const double largest = *std::max_element(adjusted, adjusted + a.vocab);
  if (largest == -INFINITY)
    throw Error(code::kArgument,
                format("sample: row %lld has no token left to draw", static_cast<long long>(row)));
  return largest;
}

/// Moves the ids that top-k, top-p and min-p leave to the front of `ids` and returns how many there are.
/// Sorts no more than it must: ever larger runs of the heaviest tokens, until their probability suffices.
int64_t narrow(const Sample& a, const double* weights, int32_t* ids, int64_t count) {
  const auto isBefore = [&](int32_t left, int32_t right) {
    return weights[left] != weights[right] ? weights[left] > weights[right] : left < right;
  };
  if (a.topK > 0 && a.topK < count) {
    std::nth_element(ids, ids + a.topK - 1, ids + count, isBefore);
    count = a.topK;
  }
  if (a.topP < 1) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += weights[ids[i]];
    // Tokens lighter than this weigh less than (1 − topP)·total together, so the rest
    // weighs more than topP·total.
    const double negligible = 0.5 * (1 - a.topP) * total / static_cast<double>(count);
    count = std::partition(ids, ids + count, [&](int32_t id) { return weights[id] >= negligible; }) - ids;
    double cumulative = 0;
    int64_t kept = 0, sorted = 0;
    while (kept < count && (kept == 0 || cumulative < a.topP * total)) {
      if (kept == sorted) {
        const int64_t end = std::min(count, std::max<int64_t>(64, 4 * sorted));
        if (end < count) std::nth_element(ids + sorted, ids + end, ids + count, isBefore);
        std::sort(ids + sorted, ids + end, isBefore);
        sorted = end;
      }
      cumulative += weights[ids[kept++]];
    }
    count = kept;
  }
  if (a.minP > 0)
    count = std::partition(ids, ids + count, [&](int32_t id) { return weights[id] >= a.minP; }) - ids;
  return count;
}

/// Scratch of one row.
struct SampleScratch {
  double* weights;  // [V], and room for a whole vector
  int32_t* ids;     // [V]

  static int64_t padded(int64_t vocab) { return ceilDivide(vocab, kWidth) * kWidth; }
  static int64_t bytes(int64_t vocab) {
    return padded(vocab) * static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
  }
  SampleScratch(char* memory, int64_t vocab)
      : weights(reinterpret_cast<double*>(memory)),
        ids(reinterpret_cast<int32_t*>(weights + padded(vocab))) {}
};

void sampleRow(const Sample& a, int64_t row, const SampleScratch& scratch) {
  double* const weights = scratch.weights;
  const double largest = adjustedLogits(a, row, weights);
  float* const logProb = static_cast<float*>(a.logProb) + row;
  if (a.temperature == 0) {
    a.token[row] = static_cast<int32_t>(std::find(weights, weights + a.vocab, largest) - weights);
    *logProb = 0;
    return;
  }
  for (int64_t v = 0; v < a.vocab; ++v) weights[v] /= a.temperature;
  std::fill(weights + a.vocab, weights + SampleScratch::padded(a.vocab), -INFINITY);
  exponentiate(weights, a.vocab, largest / a.temperature);

  int64_t count = a.vocab;
  const bool narrowed = (a.topK > 0 && a.topK < a.vocab) || a.topP < 1 || a.minP > 0;
  if (narrowed) {
    count = 0;
    for (int64_t v = 0; v < a.vocab; ++v)
      if (weights[v] > 0) scratch.ids[count++] = static_cast<int32_t>(v);
    count = narrow(a, weights, scratch.ids, count);
    std::sort(scratch.ids, scratch.ids + count);
    for (int64_t i = 0; i < count; ++i) weights[i] = weights[scratch.ids[i]];  // in place, since ids[i] ≥ i
  }
  const PhiloxBlock random =
      philox(a.seed, static_cast<uint64_t>(a.streams[row]), static_cast<uint64_t>(a.positions[row]));
  const Draw drawn = draw(weights, count, uniformDouble(random.word[0], random.word[1]));
  a.token[row] = narrowed ? scratch.ids[drawn.index] : static_cast<int32_t>(drawn.index);
  *logProb = static_cast<float>(std::log(drawn.probability));
}

}  // namespace

void sample(OpContext& context, const Sample& a) {
  requireFloat32(a.type, "sample");
  for (int64_t i = 0; i < a.forbiddenCount; ++i)
    requireIndex("sample", "forbidden", i, a.forbidden[i], a.vocab, code::kTokenRange);
  if (SampleScratch::bytes(a.vocab) > static_cast<int64_t>(cpu::kScratchPerThread))
    throw Error(code::kUnsupported, format("sample: a vocabulary of %lld tokens is not supported on the CPU",
                                           static_cast<long long>(a.vocab)));
  const bool worthSharing = a.rows * a.vocab > kElementsPerTask / 4;
  forEachTask(context, a.rows, worthSharing, [&](int64_t row, int slot) {
    sampleRow(a, row, SampleScratch(cpu::threadScratch(context, slot), a.vocab));
  });
}

}  // namespace rlhf::RLHF_ISA
