#pragma once
#include "cpu/bfloat16_kernel.h"
#include "cpu/kernels/widen.h"

namespace rlhf::RLHF_ISA {

/// Each lane's bfloat16, and with kSplit the one nearest to what rounding leaves, in the upper 16 bits.
template <bool kSplit>
struct RoundedParts {
  static constexpr int64_t kCount = cpu::Bfloat16Parts<kSplit>::kCount;
  BitVec part[kCount];

  explicit RoundedParts(Vec value) {
    part[0] = roundToBfloat16(value);
    if constexpr (kSplit) part[1] = roundToBfloat16(value - std::bit_cast<Vec>(part[0]));
  }
  /// The same in less time, of numbers that were computed from products: a NaN with nearly all of its bits set would get lost, but those
  /// of products of bfloat16 have none of the lower 16 set.
  static RoundedParts ofComputed(Vec value) {
    RoundedParts rounded;
    rounded.part[0] = roundComputed(value);
    if constexpr (kSplit) rounded.part[1] = roundComputed(value - std::bit_cast<Vec>(rounded.part[0]));
    return rounded;
  }
  static RoundedParts zero() { return {}; }

 private:
  RoundedParts() : part{} {}
  static BitVec roundComputed(Vec value) {
    const auto bits = std::bit_cast<BitVec>(value);
    return (bits + (((bits >> 16) & 1) + 0x7fffu)) & 0xffff0000u;
  }
};

/// Each lane as the sum of three bfloat16 numbers, in the upper 16 bits, each the nearest to what those before leave: 24 bits are all that float32
/// has, so nothing is lost but below 2^-126. An infinity, or what rounds to one (from 3.39e38 on), becomes NaN.
struct ExactParts {
  static constexpr int64_t kCount = 3;
  BitVec part[kCount];

  explicit ExactParts(Vec value) {
    part[0] = nearest(value);
    const Vec rest = value - std::bit_cast<Vec>(part[0]);
    part[1] = nearest(rest);
    part[2] = std::bit_cast<BitVec>(rest - std::bit_cast<Vec>(part[1]));  // its lower bits count for nothing
  }

 private:
  /// Ties away from zero. A NaN that the addition carries over is one in the rest, and so in the last part.
  static BitVec nearest(Vec value) { return (std::bit_cast<BitVec>(value) + 0x8000u) & 0xffff0000u; }
};

}  // namespace rlhf::RLHF_ISA
