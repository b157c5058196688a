#pragma once
#include "cpu/bfloat16_kernel.h"
#include "cpu/kernels/widen.h"

namespace rlhf::RLHF_ISA {

/// Each lane's bfloat16, and with kSplit the one nearest to what rounding leaves, in the upper 16 bits.
template <bool kSplit>
struct RoundedParts {
  BitVec part[cpu::Bfloat16Parts<kSplit>::kCount];

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

}  // namespace rlhf::RLHF_ISA
