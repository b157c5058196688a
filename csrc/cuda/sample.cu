// Draws tokens, a block per row and without a sort: what top-k and top-p keep is found by searching for the smallest logit that they
// do, eight parts of an interval at a time; the draw finds the token at which the running sum of weights passes u·total.

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/prim/block.cuh"
#include "cuda/prim/launch.cuh"

namespace rlhf::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int64_t kLogitsPerThread = 8;  // at least, where there are so many
constexpr int64_t kChunkRows = 512;      // whose adjusted logits are in scratch memory at once
constexpr int kPivots = 7;

struct SampleShared {
  BlockSumsScratch<float, kPivots> pivots;
  double segment[kMaxWarps];  // each warp's sum over its ids
  uint32_t key[kMaxWarps];
  int64_t id[kMaxWarps];
  int64_t found;
};

/// The logits of a row. Each warp has a run of ids of its own, 32 of which its lanes look at together.
struct Row {
  const float* logits;
  int64_t begin, end;  // of this warp's ids

  RLHF_DEVICE Row(const float* logits, int64_t vocab) : logits(logits) {
    const int64_t warps = blockDim.x / 32, length = (vocab + 32 * warps - 1) / (32 * warps) * 32;
    begin = threadIdx.x / 32 * length < vocab ? threadIdx.x / 32 * length : vocab;
    end = begin + length < vocab ? begin + length : vocab;
  }

  /// Calls f(id, logit) for the ids of this thread.
  template <class Function>
  RLHF_DEVICE void forEach(Function&& f) const {
    for (int64_t id = begin + threadIdx.x % 32; id < end; id += 32) f(id, logits[id]);
  }
};

/// A number whose order is that of the logits; 0 and −0 have the same.
RLHF_DEVICE uint32_t keyOf(float logit) {
  const uint32_t bits = bitsOf(logit + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// The logit of a key.
RLHF_DEVICE float logitOf(uint32_t key) { return floatOf(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

/// More than any logit that may be.
constexpr uint32_t kBadKey = 0xffffffffu;

struct Largest {
  uint32_t key;
  int64_t id;

  RLHF_DEVICE void take(uint32_t otherKey, int64_t otherId) {
    if (otherKey > key || (otherKey == key && otherId < id)) key = otherKey, id = otherId;
  }
};

/// The id of the largest logit of the row, ties to the smaller.
RLHF_DEVICE Largest largestOf(Largest own, SampleShared& shared) {
#pragma unroll
  for (int laneMask = 16; laneMask > 0; laneMask /= 2) {
    const uint32_t key = shuffleXor(own.key, laneMask);
    own.take(key, shuffleXor(own.id, laneMask));
  }
  if (threadIdx.x % 32 == 0) shared.key[threadIdx.x / 32] = own.key, shared.id[threadIdx.x / 32] = own.id;
  syncThreads();
  for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) own.take(shared.key[warp], shared.id[warp]);
  return own;
}

/// What top-k and top-p have left: larger keys, and of those equal to the pivot the ids up to lastTie.
struct Candidates {
  uint32_t pivot;
  int64_t lastTie;

  RLHF_DEVICE bool has(int64_t id, float logit) const {
    const uint32_t key = keyOf(logit);
    return key > pivot || (key == pivot && id <= lastTie);
  }
};

struct Pivot {
  uint32_t key;
  float above;  // the sum over larger keys
};

/// The largest key in [low, high] at which the sum of values of candidates with this key or a larger one reaches the goal; `low` if
/// none does. Nothing lies above high.
template <class Value>
RLHF_DEVICE Pivot findPivot(const Row& row, const Candidates& candidates, uint32_t low, uint32_t high, float goal, Value&& valueOf,
                            SampleShared& shared) {
  float above = 0;
  while (low < high) {
    uint32_t pivots[kPivots];
    float sums[kPivots];
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      const uint64_t share = static_cast<uint64_t>(high - low) * static_cast<uint64_t>(j + 1);
      pivots[j] = low + static_cast<uint32_t>((share + kPivots) / (kPivots + 1));
      sums[j] = 0;
    }
    row.forEach([&](int64_t id, float logit) {
      if (!candidates.has(id, logit)) return;
      const uint32_t key = keyOf(logit);
      const float value = valueOf(logit);
#pragma unroll
      for (int j = 0; j < kPivots; ++j) sums[j] += key >= pivots[j] ? value : 0.0f;
    });
    blockSums(sums, shared.pivots);
    bool isAbove = false;
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      if (isAbove) continue;
      if (sums[j] >= goal) {
        low = pivots[j];
      } else {
        high = pivots[j] - 1, above = sums[j], isAbove = true;
      }
    }
  }
  return {low, above};
}

/// The sum of valueOf(id, logit) over the row, and in shared memory over each warp's run.
template <class Value>
RLHF_DEVICE double sumOfRow(const Row& row, Value&& valueOf, SampleShared& shared) {
  double sum = 0;
  row.forEach([&](int64_t id, float logit) { sum += valueOf(id, logit); });
  sum = groupSum(sum);
  if (threadIdx.x % 32 == 0) shared.segment[threadIdx.x / 32] = sum;
  syncThreads();
  double total = 0;
  for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) total += shared.segment[warp];
  syncThreads();  // the next call overwrites what slower threads still read
  return total;
}

/// Each lane's value added to those of all lanes below it.
RLHF_DEVICE double scanFromBelow(double value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double below = shuffle(value, lane >= distance ? lane - distance : lane);
    if (lane >= distance) value += below;
  }
  return value;
}

/// The first id of this warp's run at which `running` and the values up to it exceed the target; the last with a value if none does.
template <class Value>
RLHF_DEVICE int64_t findInRun(const Row& row, double running, double target, Value&& valueOf) {
  int64_t found = -1;
  for (int64_t first = row.begin; first < row.end; first += 32) {
    const int64_t id = first + threadIdx.x % 32;
    const double value = id < row.end ? valueOf(id, row.logits[id]) : 0;
    const double sum = running + scanFromBelow(value);
    const uint32_t valued = ballot(value > 0), beyond = ballot(value > 0 && sum > target);
    if (beyond) return first + lowestBit(beyond);
    if (valued) found = first + highestBit(valued);
    running = shuffle(sum, 31);
  }
  return found;
}

struct Found {
  int64_t id;
  double total;
};

/// The first id at which the running sum of valueOf(id, logit) exceeds targetOf(total); the last with a value if rounding keeps it below.
template <class Value, class Target>
RLHF_DEVICE Found findByRunningSum(const Row& row, Value&& valueOf, Target&& targetOf, SampleShared& shared) {
  const double total = sumOfRow(row, valueOf, shared), target = targetOf(total);
  uint32_t chosen = 0;
  double sum = 0, start = 0;
  for (uint32_t warp = 0; warp < blockDim.x / 32 && !(sum > target); ++warp) {
    if (shared.segment[warp] > 0) chosen = warp, start = sum;
    sum += shared.segment[warp];
  }
  if (threadIdx.x / 32 == chosen) {
    const int64_t id = findInRun(row, start, target, valueOf);
    if (threadIdx.x % 32 == 0) shared.found = id;
  }
  syncThreads();
  return {shared.found, total};
}

/// Leaves of the candidates those with larger keys than the pivot, and the first `ties` that equal it.
RLHF_DEVICE Candidates keepFrom(const Row& row, const Candidates& candidates, uint32_t pivot, double ties, SampleShared& shared) {
  const auto isTie = [&](int64_t id, float logit) { return keyOf(logit) == pivot && candidates.has(id, logit) ? 1.0 : 0.0; };
  return {pivot, findByRunningSum(row, isTie, [&](double) { return ties - 0.5; }, shared).id};
}

/// Copies a row with the repetition penalty and without the forbidden tokens, where there are such things; sees to bad logits.
RLHF_DEVICE const float* adjust(const Sample& a, int64_t row, float* scratch, bool& isBad) {
  const float* const logits = static_cast<const float*>(a.logits) + row * a.vocab;
  const uint8_t* const seen = a.repetitionPenalty != 1 ? a.seen + row * a.vocab : nullptr;
  const bool forbids = a.forbidden && (!a.forbid || a.forbid[row]);
  const bool copies = seen || forbids;
  float* const adjusted = copies ? scratch + blockIdx.x * a.vocab : nullptr;
  Row(logits, a.vocab).forEach([&](int64_t id, float logit) {
    isBad |= !(logit < INFINITY);
    if (!copies) return;
    if (seen && seen[id]) logit = static_cast<float>(logit > 0 ? logit / a.repetitionPenalty : logit * a.repetitionPenalty);
    adjusted[id] = logit;
  });
  if (!copies) return logits;
  syncThreads();
  if (forbids) {
    for (int64_t i = threadIdx.x; i < a.forbiddenCount; i += blockDim.x)
      if (a.forbidden[i] >= 0 && a.forbidden[i] < a.vocab) adjusted[a.forbidden[i]] = -INFINITY;
    syncThreads();
  }
  return adjusted;
}

/// Token and its log-probability, written by one thread.
RLHF_DEVICE void give(const Sample& a, int64_t row, int64_t token, double logProb) {
  if (threadIdx.x > 0) return;
  a.token[row] = static_cast<int32_t>(token);
  static_cast<float*>(a.logProb)[row] = static_cast<float>(logProb);
}

/// A row per block, the first being `firstRow`. Token −1 and NaN where a logit is not finite or no token is left.
__global__ void __launch_bounds__(kMaxThreads) sampleKernel(const __grid_constant__ Sample a, float* scratch, int64_t firstRow) {
  RLHF_SHARED_MEMORY(SampleShared, shared);
  const int64_t row = firstRow + blockIdx.x;
  bool isBad = false;
  const Row logits(adjust(a, row, scratch, isBad), a.vocab);
  Largest largest{isBad ? kBadKey : 0, a.vocab};
  logits.forEach([&](int64_t id, float logit) { largest.take(keyOf(logit), id); });
  largest = largestOf(largest, shared);
  if (largest.key >= keyOf(INFINITY) || largest.key <= keyOf(-INFINITY)) return give(a, row, -1, NAN);
  if (a.temperature == 0) return give(a, row, largest.id, 0);

  const float most = logits.logits[largest.id], inverseTemperature = static_cast<float>(1 / a.temperature);
  const auto weightOf = [&](float logit) { return expf((logit - most) * inverseTemperature); };
  Candidates candidates{0, a.vocab};
  if (a.topK > 0 && a.topK < a.vocab) {
    const auto one = [](float) { return 1.0f; };
    const float goal = static_cast<float>(a.topK);
    const Pivot pivot = findPivot(logits, candidates, 0, largest.key, goal, one, shared);
    candidates = keepFrom(logits, candidates, pivot.key, static_cast<double>(goal - pivot.above), shared);
  }
  if (a.topP < 1) {
    const auto weight = [&](int64_t id, float logit) { return candidates.has(id, logit) ? weightOf(logit) : 0.0f; };
    const double goal = a.topP * sumOfRow(logits, weight, shared);
    // What is lighter than this weighs less than (1 − topP)·total together: the pivot lies above.
    const double negligible = a.temperature * log(0.5 * (1 - a.topP) / static_cast<double>(a.vocab));
    const uint32_t low = keyOf(static_cast<float>(most + negligible));
    const Pivot pivot = findPivot(logits, candidates, low, largest.key, static_cast<float>(goal), weightOf, shared);
    const float tie = weightOf(logitOf(pivot.key));
    const double ties = tie > 0 ? ceil((goal - pivot.above) / tie) : 1;
    candidates = keepFrom(logits, candidates, pivot.key, ties > 1 ? ties : 1, shared);
  }
  const PhiloxBlock random = philox(a.seed, static_cast<uint64_t>(a.streams[row]), static_cast<uint64_t>(a.positions[row]));
  const double u = uniformDouble(random.word[0], random.word[1]);
  const float minimum = static_cast<float>(a.minP);
  const auto weight = [&](int64_t id, float logit) {
    const float w = weightOf(logit);
    return candidates.has(id, logit) && w >= minimum ? w : 0.0f;
  };
  const Found drawn = findByRunningSum(logits, weight, [&](double total) { return u * total; }, shared);
  give(a, row, drawn.id, (static_cast<double>(logits.logits[drawn.id]) - most) / a.temperature - log(drawn.total));
}

int threadsFor(int64_t vocab) {
  return static_cast<int>(std::min<int64_t>(kMaxThreads, (vocab + 32 * kLogitsPerThread - 1) / (32 * kLogitsPerThread) * 32));
}

bool adjusts(const Sample& a) { return a.repetitionPenalty != 1 || a.forbiddenCount > 0; }

}  // namespace

size_t sampleScratchBytes(int64_t rows, int64_t vocab) {
  return static_cast<size_t>(std::min(rows, kChunkRows)) * static_cast<size_t>(vocab) * sizeof(float);
}

void sample(OpContext& context, const Sample& a) {
  requireFloatSums(a.type, "sample");
  if (adjusts(a)) requireScratch(context, sampleScratchBytes(a.rows, a.vocab), "sample");
  for (int64_t first = 0; first < a.rows; first += kChunkRows) {
    const dim3 grid(static_cast<uint32_t>(std::min(kChunkRows, a.rows - first)));
    RLHF_LAUNCH(sampleKernel, grid, dim3(static_cast<uint32_t>(threadsFor(a.vocab))), sizeof(SampleShared), context.stream, a,
                static_cast<float*>(context.scratch), first);
  }
}

}  // namespace rlhf::cuda
