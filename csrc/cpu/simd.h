#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// One vector type for every instruction set. csrc/cpu/kernels/*.cc are compiled once per instruction set, with RLHF_ISA naming
// the namespace and compiler flags naming the instructions; the compiler's vector extension does the rest.

#if defined(__AVX512F__)
#define RLHF_SIMD_WIDTH 16
#elif defined(__AVX2__)
#define RLHF_SIMD_WIDTH 8
#else
#define RLHF_SIMD_WIDTH 4
#endif

namespace rlhf::RLHF_ISA {

inline constexpr int kWidth = RLHF_SIMD_WIDTH;
typedef float Vec __attribute__((vector_size(RLHF_SIMD_WIDTH * 4)));
typedef int32_t IntVec __attribute__((vector_size(RLHF_SIMD_WIDTH * 4)));

inline Vec set1(float value) { return Vec{} + value; }

inline Vec load(const float* source) {
  Vec value;
  std::memcpy(&value, source, sizeof value);
  return value;
}
inline void store(float* destination, Vec value) { std::memcpy(destination, &value, sizeof value); }

/// The first `count` < kWidth elements; the rest reads as `fill`.
inline Vec loadPartial(const float* source, int count, float fill = 0) {
  Vec value = set1(fill);
  std::memcpy(&value, source, static_cast<size_t>(count) * sizeof(float));
  return value;
}
inline void storePartial(float* destination, Vec value, int count) {
  std::memcpy(destination, &value, static_cast<size_t>(count) * sizeof(float));
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

/// Horizontal sum and maximum by halving, an order that is the same wherever the data lies.
inline float sum(Vec value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}
inline float maximum(Vec value) {
  float lanes[kWidth];
  store(lanes, value);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

/// e^x, relative error about 1e-7; 0 below −87.3, +inf above 88.7. Range reduction by ln 2 in two parts, then a polynomial of degree 6.
inline Vec exp(Vec x) {
  const Vec clamped = min(max(x, set1(-87.33654f)), set1(88.72283f));
  const Vec magic = set1(12582912.0f);  // 1.5·2²³: adding it rounds to an integer and leaves it in the low bits
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = set1(1.3981999e-3f);
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0000001e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, since n may be 128.
  const IntVec exponent = std::bit_cast<IntVec>(shifted) - std::bit_cast<IntVec>(magic);
  const IntVec low = exponent >> 1, high = exponent - low;
  const Vec scaled = p * std::bit_cast<Vec>((low + 127) << 23) * std::bit_cast<Vec>((high + 127) << 23);
  const Vec flushed = x < -87.33654f ? Vec{} : scaled;
  const Vec bounded = x > 88.72283f ? set1(INFINITY) : flushed;
  return x != x ? x : bounded;
}

}  // namespace rlhf::RLHF_ISA
