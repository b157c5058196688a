#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

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

DoubleVec loadDoubles(const double* source) {
  DoubleVec value;
  std::memcpy(&value, source, sizeof value);
  return value;
}
DoubleVec loadDoubles(const float* source) {
  typedef float HalfFloats __attribute__((vector_size(RLHF_SIMD_WIDTH * 2)));
  HalfFloats value;
  std::memcpy(&value, source, sizeof value);
  return __builtin_convertvector(value, DoubleVec);
}

/// Sum of kSumBlock weights, in an order that is the same for every vector width.
constexpr int64_t kSumBlock = 64;
double sumOfBlock(const double* values) {
  double sums[8] = {};
  for (int64_t i = 0; i < kSumBlock; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += values[i + j];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/// What is known of a row's weights e^((logit − largest) / temperature).
struct Weights {
  const double* values;  // zeros up to a whole block
  int64_t count;
  const double* blockSums;    // of each kSumBlock of them
  const double* blockMaxima;
  double total;

  int64_t blocks() const { return ceilDivide(count, kSumBlock); }
};

/// Scratch of one row.
struct SampleScratch {
  double* weights;      // [V], and room for a whole block
  double* blockSums;    // [V / kSumBlock]
  double* blockMaxima;  // [V / kSumBlock]
  int32_t* ids;         // [V]

  static int64_t padded(int64_t vocab) { return ceilDivide(vocab, kSumBlock) * kSumBlock; }
  static int64_t bytes(int64_t vocab) {
    return padded(vocab) * static_cast<int64_t>(sizeof(double) + sizeof(int32_t)) +
           2 * padded(vocab) / kSumBlock * static_cast<int64_t>(sizeof(double));
  }
  SampleScratch(char* memory, int64_t vocab)
      : weights(reinterpret_cast<double*>(memory)),
        blockSums(weights + padded(vocab)),
        blockMaxima(blockSums + padded(vocab) / kSumBlock),
        ids(reinterpret_cast<int32_t*>(blockMaxima + padded(vocab) / kSumBlock)) {}
};

/// Exponentials, their sums and maxima, in one pass. `logits` may be scratch.weights.
template <class Number>
Weights weigh(const Number* logits, int64_t count, double largest, double temperature, const SampleScratch& scratch) {
  const double scale = 1 / temperature;
  Weights weights{scratch.weights, count, scratch.blockSums, scratch.blockMaxima, 0};
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    double* const out = scratch.weights + block * kSumBlock;
    const int64_t size = std::min(kSumBlock, count - block * kSumBlock);
    alignas(64) Number tail[kSumBlock];
    const Number* in = logits + block * kSumBlock;
    if (size < kSumBlock) {
      std::fill(std::copy_n(in, size, tail), tail + kSumBlock, -std::numeric_limits<Number>::infinity());
      in = tail;
    }
    DoubleVec most{};
    for (int64_t i = 0; i < kSumBlock; i += kDoubles) {
      const DoubleVec weight = expOfNonPositive((loadDoubles(in + i) - largest) * scale);
      std::memcpy(out + i, &weight, sizeof weight);
      most = weight > most ? weight : most;
    }
    scratch.blockSums[block] = sumOfBlock(out);
    double maximum = most[0];
    for (int i = 1; i < kDoubles; ++i) maximum = std::max(maximum, most[i]);
    scratch.blockMaxima[block] = maximum;
    weights.total += scratch.blockSums[block];
  }
  return weights;
}

struct Draw {
  int64_t index;
  double probability;
};

/// The index at which `cumulative` and the weights up to it first exceed `target`; the last positive one if rounding keeps them below.
Draw drawFrom(const double* weights, int64_t count, double cumulative, double target, double total) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    cumulative += weights[i];
    if (cumulative > target) break;
  }
  return {last, weights[last] / total};
}

/// The same of a whole row for u · total; blocks are stepped over by their sums.
Draw draw(const Weights& weights, double u) {
  const double target = u * weights.total;
  double before = 0, cumulative = 0;
  int64_t last = 0;
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    if (weights.blockSums[block] <= 0) continue;
    last = block;
    before = cumulative;
    cumulative += weights.blockSums[block];
    if (cumulative > target) break;
  }
  const int64_t begin = last * kSumBlock, size = std::min(kSumBlock, weights.count - begin);
  const Draw drawn = drawFrom(weights.values + begin, size, before, target, weights.total);
  return {begin + drawn.index, drawn.probability};
}

/// The largest of a row's logits. Throws where one is NaN or +∞.
float largestLogit(int64_t row, const float* logits, int64_t count) {
  Vec best = set1(-INFINITY);
  IntVec valid = ~IntVec{};
  int64_t v = 0;
  for (; v + kWidth <= count; v += kWidth) {
    const Vec value = load(logits + v);
    valid &= value < INFINITY;
    best = max(best, value);
  }
  const Vec tail = loadPartial(logits + v, static_cast<int>(count - v), -INFINITY);
  valid &= tail < INFINITY;
  bool allValid = true;
  for (int i = 0; i < kWidth; ++i) allValid &= valid[i] != 0;
  if (!allValid) {
    const int64_t at = std::find_if(logits, logits + count, [](float x) { return !(x < INFINITY); }) - logits;
    throw Error(code::kNonFinite,
                format("sample: logits[%lld, %lld] is NaN or infinite: the model's weights are damaged or have diverged",
                       static_cast<long long>(row), static_cast<long long>(at)));
  }
  return maximum(max(best, tail));
}

[[noreturn]] void refuseEmptyRow(int64_t row) {
  throw Error(code::kArgument, format("sample: row %lld has no token left to draw", static_cast<long long>(row)));
}

bool adjusts(const Sample& a, int64_t row) {
  return (a.seen && a.repetitionPenalty != 1) || (a.forbidden && a.forbiddenCount > 0 && (!a.forbid || a.forbid[row]));
}

/// The logits of a row after repetition penalty and exclusion, in double; −∞ for what must not be drawn. Returns the largest.
double adjustLogits(const Sample& a, int64_t row, const float* logits, double* adjusted) {
  for (int64_t v = 0; v < a.vocab; ++v) adjusted[v] = logits[v];
  if (a.seen && a.repetitionPenalty != 1) {
    const uint8_t* seen = a.seen + row * a.vocab;
    for (int64_t v = 0; v < a.vocab; ++v)
      if (seen[v])
        adjusted[v] = adjusted[v] > 0 ? adjusted[v] / a.repetitionPenalty : adjusted[v] * a.repetitionPenalty;
  }
  if (a.forbidden && (!a.forbid || a.forbid[row]))
    for (int64_t i = 0; i < a.forbiddenCount; ++i) adjusted[a.forbidden[i]] = -INFINITY;
  return *std::max_element(adjusted, adjusted + a.vocab);
}

bool limitsCount(const Sample& a) { return a.topK > 0 && a.topK < a.vocab; }

/// A weight that all tokens have which top-k, top-p and min-p leave; above 0.
double leastWeight(const Sample& a, const Weights& weights, double* work) {
  double least = a.minP;
  if (limitsCount(a)) {
    // As many blocks as are wanted have a token of the weight of the last one's largest.
    least = 0;
    if (a.topK <= weights.blocks()) {
      std::copy_n(weights.blockMaxima, weights.blocks(), work);
      std::nth_element(work, work + a.topK - 1, work + weights.blocks(), std::greater<>());
      least = work[a.topK - 1];
    }
  } else if (a.topP < 1) {
    // Lighter tokens weigh less than (1 − topP)·total together, so the rest weighs more than topP·total.
    least = 0.5 * (1 - a.topP) * weights.total / static_cast<double>(weights.count);
  }
  return std::max(least, std::numeric_limits<double>::min());
}

/// The ids of the tokens of at least that weight, in rising order.
int64_t idsFrom(const Weights& weights, double least, int32_t* ids) {
  int64_t count = 0;
  for (int64_t block = 0; block < weights.blocks(); ++block) {
    if (weights.blockMaxima[block] < least) continue;
    const int64_t end = std::min(weights.count, (block + 1) * kSumBlock);
    for (int64_t v = block * kSumBlock; v < end; ++v) {
      ids[count] = static_cast<int32_t>(v);
      count += weights.values[v] >= least;
    }
  }
  return count;
}

/// Moves the ids that top-k, top-p and min-p leave to the front of `ids` and returns how many there are.
/// Sorts no more than it must: ever larger runs of the heaviest tokens, until their probability suffices.
int64_t narrow(const Sample& a, const Weights& all, int32_t* ids, int64_t count) {
  const double* const weights = all.values;
  const auto isBefore = [&](int32_t left, int32_t right) {
    return weights[left] != weights[right] ? weights[left] > weights[right] : left < right;
  };
  double total = all.total;
  if (limitsCount(a)) {
    if (a.topK < count) std::nth_element(ids, ids + a.topK - 1, ids + count, isBefore);
    count = std::min(count, a.topK);
    total = 0;
    for (int64_t i = 0; i < count; ++i) total += weights[ids[i]];
  }
  if (a.topP < 1) {
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

/// The draw among the tokens that top-k, top-p and min-p leave.
Draw drawNarrowed(const Sample& a, const Weights& all, double u, const SampleScratch& scratch) {
  int64_t count = idsFrom(all, leastWeight(a, all, reinterpret_cast<double*>(scratch.ids)), scratch.ids);
  count = narrow(a, all, scratch.ids, count);
  std::sort(scratch.ids, scratch.ids + count);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += scratch.weights[i] = scratch.weights[scratch.ids[i]];  // in place, since ids[i] ≥ i
  const Draw drawn = drawFrom(scratch.weights, count, 0, u * total, total);
  return {scratch.ids[drawn.index], drawn.probability};
}

void sampleRow(const Sample& a, int64_t row, const SampleScratch& scratch) {
  const float* const logits = static_cast<const float*>(a.logits) + row * a.vocab;
  double largest = largestLogit(row, logits, a.vocab);
  const bool adjusted = adjusts(a, row);
  if (adjusted) largest = adjustLogits(a, row, logits, scratch.weights);
  if (largest == -INFINITY) refuseEmptyRow(row);
  float* const logProb = static_cast<float*>(a.logProb) + row;
  if (a.temperature == 0) {
    const int64_t token = adjusted ? std::find(scratch.weights, scratch.weights + a.vocab, largest) - scratch.weights
                                   : std::find(logits, logits + a.vocab, static_cast<float>(largest)) - logits;
    a.token[row] = static_cast<int32_t>(token);
    *logProb = 0;
    return;
  }
  const Weights weights = adjusted ? weigh(scratch.weights, a.vocab, largest, a.temperature, scratch)
                                   : weigh(logits, a.vocab, largest, a.temperature, scratch);
  const PhiloxBlock random =
      philox(a.seed, static_cast<uint64_t>(a.streams[row]), static_cast<uint64_t>(a.positions[row]));
  const double u = uniformDouble(random.word[0], random.word[1]);
  const bool narrowed = limitsCount(a) || a.topP < 1 || a.minP > 0;
  const Draw drawn = narrowed ? drawNarrowed(a, weights, u, scratch) : draw(weights, u);
  a.token[row] = static_cast<int32_t>(drawn.index);
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
