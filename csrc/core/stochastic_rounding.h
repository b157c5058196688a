#pragma once
#include "core/philox.h"

// Rounding to bfloat16 that is right in the mean: a number between two of bfloat16 becomes either, the nearer the likelier, so that
// updates too small for the type add up all the same (Zamirai et al., "Revisiting BFloat16 Training", 2020).

namespace rlhf {

/// The random bits of elements 8·group to 8·group + 7 in an update. Tokens and initial weights are
/// drawn from streams below 2⁶³.
RLHF_HOST_DEVICE PhiloxBlock roundingBits(uint64_t seed, uint64_t step, uint64_t group) {
  return philox(seed, (uint64_t{1} << 63) + step, group);
}

/// Those of element 8·group + lane, 16 of them. Choices rather than an index: a GPU has no index into registers.
RLHF_HOST_DEVICE uint32_t roundingNoise(const PhiloxBlock& bits, int lane) {
  const uint32_t first = lane < 2 ? bits.word[0] : bits.word[1], last = lane < 6 ? bits.word[2] : bits.word[3];
  return (lane < 4 ? first : last) >> (lane % 2 * 16) & 0xFFFFu;
}

/// The word of a float32, and the word of what it is rounded to, whose lower half is zero: a carry out of that half rounds away from
/// zero. Infinities stay, and NaN stays NaN.
RLHF_HOST_DEVICE uint32_t stochasticallyRounded(uint32_t word, uint32_t noise) {
  const uint32_t magnitude = word & 0x7FFFFFFFu;
  if (magnitude >= 0x7F800000u) return (magnitude > 0x7F800000u ? word | 0x400000u : word) & 0xFFFF0000u;
  return (word + noise) & 0xFFFF0000u;
}

}  // namespace rlhf
