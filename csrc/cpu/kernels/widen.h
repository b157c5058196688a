#pragma once
#include "core/dtype.h"
#include "core/error.h"
#include "cpu/simd.h"

// Weights and caches that are kept in 16 bits, read as float32. Widening is exact, so that products have the bits of the same numbers
// kept as float32.

namespace rlhf::RLHF_ISA {

typedef uint16_t HalfVec __attribute__((vector_size(RLHF_SIMD_WIDTH * 2)));
typedef uint32_t BitVec __attribute__((vector_size(RLHF_SIMD_WIDTH * 4)));

/// The first `count` ≤ kWidth numbers, the rest zero. Nothing beyond them is touched.
inline HalfVec loadHalves(const uint16_t* source, int count) {
  HalfVec bits{};
  std::memcpy(&bits, source, static_cast<size_t>(count) * sizeof(uint16_t));
  return bits;
}

/// Each lane's nearest bfloat16, ties to even, in the upper 16 bits; a NaN stays one.
inline BitVec roundToBfloat16(Vec value) {
  const auto bits = std::bit_cast<BitVec>(value);
  const BitVec rounded = bits + (((bits >> 16) & 1) + 0x7fffu);
  const BitVec quiet = bits | 0x400000u;
  return (value == value ? rounded : quiet) & 0xffff0000u;
}

struct Float32 {
  using Element = float;
  static void storePartial(float* destination, Vec value, int count) { RLHF_ISA::storePartial(destination, value, count); }
  static Vec load(const float* source) { return RLHF_ISA::load(source); }
  static Vec loadPartial(const float* source, int count) { return RLHF_ISA::loadPartial(source, count); }
};

struct Bfloat16 {
  using Element = uint16_t;
  static void store(uint16_t* destination, Vec value) { storePartial(destination, value, kWidth); }
  static void storePartial(uint16_t* destination, Vec value, int count) { storeUpper(destination, roundToBfloat16(value), count); }
  /// The upper 16 bits of the first `count` lanes.
  static void storeUpper(uint16_t* destination, BitVec bits, int count) {
    const HalfVec upper = __builtin_convertvector(bits >> 16, HalfVec);
    std::memcpy(destination, &upper, static_cast<size_t>(count) * sizeof(uint16_t));
  }
  /// The upper 16 bits of all lanes of two vectors, one after the other.
  static void storeUpper(uint16_t* destination, BitVec first, BitVec second) {
    typedef uint16_t Halves __attribute__((vector_size(sizeof(BitVec))));
    const auto upper = [&]<int... I>(std::integer_sequence<int, I...>) {
      return __builtin_shufflevector(std::bit_cast<Halves>(first), std::bit_cast<Halves>(second), (2 * I + 1)...);
    }(std::make_integer_sequence<int, 2 * kWidth>{});
    std::memcpy(destination, &upper, sizeof upper);
  }
  static Vec widen(HalfVec bits) {
#if defined(__AVX512F__)
    // Where GCC 12 converts by itself it takes five instructions.
    const auto wide = std::bit_cast<IntVec>(_mm512_maskz_cvtepu16_epi32(0xffff, std::bit_cast<__m256i>(bits)));
#else
    const IntVec wide = __builtin_convertvector(bits, IntVec);
#endif
    return std::bit_cast<Vec>(wide << 16);
  }
  static Vec load(const uint16_t* source) { return widen(loadHalves(source, kWidth)); }
  static Vec loadPartial(const uint16_t* source, int count) { return widen(loadHalves(source, count)); }
};

struct Float16 {
  using Element = uint16_t;
  static Vec widen(HalfVec bits) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_cvtph_ps(0xffff, std::bit_cast<__m256i>(bits));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtph_ps(std::bit_cast<__m128i>(bits));
#else
    Vec value;
    for (int i = 0; i < kWidth; ++i) value[i] = halfToFloat(bits[i]);
    return value;
#endif
  }
  static Vec load(const uint16_t* source) { return widen(loadHalves(source, kWidth)); }
  static Vec loadPartial(const uint16_t* source, int count) { return widen(loadHalves(source, count)); }
};

/// Calls body with the reader of a type: withReader(type, []<class Reader>(Reader) { … }).
template <class Body>
void withReader(DType type, Body&& body) {
  switch (type) {
    case DType::F32: return body(Float32{});
    case DType::BF16: return body(Bfloat16{});
    case DType::F16: return body(Float16{});
    default:
      throw Error(code::kUnsupported,
                  format("weights of %s are not supported on the CPU, use float32, float16 or bfloat16", dtypeName(type)));
  }
}

}  // namespace rlhf::RLHF_ISA
