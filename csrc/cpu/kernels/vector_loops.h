#pragma once
#include <algorithm>

#include "cpu/simd.h"

// Loops over arrays of any length: whole vectors, then one partial vector. A body is written once and gets
// `lanes`, which loads and stores a whole or a partial vector.

namespace rlhf::RLHF_ISA {

struct AllLanes {
  Vec load(const float* source) const { return RLHF_ISA::load(source); }
  void store(float* destination, Vec value) const { RLHF_ISA::store(destination, value); }
  void storePastCaches(float* destination, Vec value) const { RLHF_ISA::storePastCaches(destination, value); }
  /// `value` with 0 in the lanes beyond the array's end.
  Vec keep(Vec value) const { return value; }
};

struct FirstLanes {
  int count;
  Vec load(const float* source) const { return loadPartial(source, count); }
  void store(float* destination, Vec value) const { storePartial(destination, value, count); }
  void storePastCaches(float* destination, Vec value) const { store(destination, value); }
  Vec keep(Vec value) const { return laneIndex() < count ? value : Vec{}; }
};

/// Calls body(index, lanes) for index = 0, kWidth, 2·kWidth, … below `count`.
template <class Body>
inline void forEachVector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i, AllLanes{});
  if (i < count) body(i, FirstLanes{static_cast<int>(count - i)});
}

/// The same, cut so that whole vectors are those of memory, where element 0 is `first`.
template <class Body>
inline void forEachVectorOf(const float* first, int64_t count, Body&& body) {
  const int64_t beyond = reinterpret_cast<uintptr_t>(first) / sizeof(float) % kWidth, ahead = beyond == 0 ? 0 : std::min(kWidth - beyond, count);
  if (ahead > 0) body(0, FirstLanes{static_cast<int>(ahead)});
  forEachVector(count - ahead, [&](int64_t i, auto lanes) { body(ahead + i, lanes); });
}

/// Σ term(index, lanes) over all lanes. Four partial sums hide the latency of the addition; they make
/// rounding errors grow with count / (4·kWidth) and not with count.
template <class Term>
inline float sumVectors(int64_t count, Term&& term) {
  Vec partial[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j) partial[j] += term(i + j * kWidth, AllLanes{});
  for (; i + kWidth <= count; i += kWidth) partial[0] += term(i, AllLanes{});
  if (i < count) {
    const FirstLanes lanes{static_cast<int>(count - i)};
    partial[1] += lanes.keep(term(i, lanes));
  }
  return sum((partial[0] + partial[1]) + (partial[2] + partial[3]));
}

}  // namespace rlhf::RLHF_ISA
