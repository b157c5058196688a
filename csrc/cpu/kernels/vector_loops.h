#pragma once
#include "cpu/simd.h"

// Loops over arrays of any length: whole vectors, then one partial vector. A body is written once and gets
// `lanes`, which loads and stores a whole or a partial vector.

namespace rlhf::RLHF_ISA {

struct AllLanes {
  Vec load(const float* source) const { return RLHF_ISA::load(source); }
  void store(float* destination, Vec value) const { RLHF_ISA::store(destination, value); }
  /// `value` with 0 in the lanes beyond the array's end.
  Vec keep(Vec value) const { return value; }
};

struct FirstLanes {
  int count;
  Vec load(const float* source) const { return loadPartial(source, count); }
  void store(float* destination, Vec value) const { storePartial(destination, value, count); }
  Vec keep(Vec value) const { return laneIndex() < count ? value : Vec{}; }
};

/// Calls body(index, lanes) for index = 0, kWidth, 2·kWidth, … below `count`.
template <class Body>
inline void forEachVector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i, AllLanes{});
  if (i < count) body(i, FirstLanes{static_cast<int>(count - i)});
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
