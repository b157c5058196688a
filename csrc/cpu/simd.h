#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// One vector type for every instruction set. csrc/cpu/kernels/*.cc are compiled once per instruction set,
// with RLHF_ISA naming the namespace and compiler flags naming the instructions; the compiler's vector
// extension does nearly all of the rest.

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

/// All lanes `value`. (Subtracting zero changes no float, so the compiler drops it; adding zero would turn −0
/// into 0.)
inline Vec set1(float value) { return value - Vec{}; }

inline Vec load(const float* source) {
  Vec value;
  std::memcpy(&value, source, sizeof value);
  return value;
}
inline void store(float* destination, Vec value) { std::memcpy(destination, &value, sizeof value); }

/// A whole vector, which lies in one line, past the caches: the line is not read first. Other threads see it behind fencePastCaches().
inline void storePastCaches(float* destination, Vec value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(destination, (__m512)value);
#elif defined(__AVX2__)
  _mm256_stream_ps(destination, (__m256)value);
#else
  store(destination, value);
#endif
}
inline void fencePastCaches() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

/// 0, 1, 2, …
inline IntVec laneIndex() {
  return []<int... I>(std::integer_sequence<int, I...>) { return IntVec{I...}; }(std::make_integer_sequence<int, kWidth>{});
}

/// The first `count` ≤ kWidth elements; the rest reads as `fill`. Nothing beyond them is touched.
inline Vec loadPartial(const float* source, int count, float fill = 0) {
#if defined(__AVX512F__)
  return (Vec)_mm512_mask_loadu_ps((__m512)set1(fill), static_cast<__mmask16>((1u << count) - 1), source);
#elif defined(__AVX2__)
  const IntVec wanted = laneIndex() < count;
  const Vec value = (Vec)_mm256_maskload_ps(source, (__m256i)wanted);
  return wanted ? value : set1(fill);
#else
  Vec value = set1(fill);
  std::memcpy(&value, source, static_cast<size_t>(count) * sizeof(float));
  return value;
#endif
}
inline void storePartial(float* destination, Vec value, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(destination, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(destination, (__m256i)(laneIndex() < count), (__m256)value);
#else
  std::memcpy(destination, &value, static_cast<size_t>(count) * sizeof(float));
#endif
}

/// Where one operand is NaN the result is the second. (GCC makes a comparison and a blend of the conditional
/// operator.)
inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
inline Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

/// Lane i is lane i ^ distance of `value`.
template <int distance>
inline Vec exchanged(Vec value) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(value, value, (I ^ distance)...);
  }(std::make_integer_sequence<int, kWidth>{});
}

/// Horizontal sum and maximum by halving, an order that is the same wherever the data lies.
inline float sum(Vec value) {
  if constexpr (kWidth >= 16) value += exchanged<8>(value);
  if constexpr (kWidth >= 8) value += exchanged<4>(value);
  value += exchanged<2>(value);
  value += exchanged<1>(value);
  return value[0];
}
inline float maximum(Vec value) {
  if constexpr (kWidth >= 16) value = value > exchanged<8>(value) ? value : exchanged<8>(value);
  if constexpr (kWidth >= 8) value = value > exchanged<4>(value) ? value : exchanged<4>(value);
  value = value > exchanged<2>(value) ? value : exchanged<2>(value);
  value = value > exchanged<1>(value) ? value : exchanged<1>(value);
  return value[0];
}

/// a0, b0, a1, b1, … of the lower halves, and of the upper halves.
inline Vec interleaveLow(Vec a, Vec b) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * kWidth)...);
  }(std::make_integer_sequence<int, kWidth>{});
}
inline Vec interleaveHigh(Vec a, Vec b) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (kWidth / 2 + I / 2 + (I % 2) * kWidth)...);
  }(std::make_integer_sequence<int, kWidth>{});
}

/// Transposes a square block. Each interleaving moves one bit of the row number into the lane number, one back.
inline void transpose(Vec (&rows)[kWidth]) {
#pragma GCC unroll 4
  for (int moved = 1; moved < kWidth; moved *= 2) {
    Vec next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleaveLow(rows[i], rows[i + kWidth / 2]);
      next[2 * i + 1] = interleaveHigh(rows[i], rows[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

/// e^x, relative error below 1.5e-7; 0 below −87.3, +inf above 88.8, NaN for NaN. Range reduction by ln 2 in
/// two parts, then a polynomial of degree 7 (the coefficients of Moshier's Cephes).
inline Vec exp(Vec x) {
  const Vec clamped = min(set1(89.0f), max(set1(-88.0f), x));
  const Vec magic =
      set1(12582912.0f);  // 1.5·2²³: adding it rounds to an integer and leaves it in the low bits
  const Vec shifted = clamped * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = set1(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, (__m512)set1(-87.33654f), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
  // 2^n in two factors, since n may be 128.
  const IntVec exponent = std::bit_cast<IntVec>(shifted) - std::bit_cast<IntVec>(magic);
  const IntVec low = exponent >> 1, high = exponent - low;
  const Vec scaled = p * std::bit_cast<Vec>((low + 127) << 23) * std::bit_cast<Vec>((high + 127) << 23);
  return x < -87.33654f ? Vec{} : scaled;
#endif
}

/// 2^x for x < 128, relative error below 1e-7 and exact where x is whole; 0 below −126, NaN for NaN. The polynomial is a fit by
/// iterated weighted least squares, good to 2e-9.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec r = x - n;
#else
  const Vec magic = set1(12582912.0f);
  const Vec clamped = max(set1(-127.0f), x), shifted = clamped + magic;
  const Vec r = clamped - (shifted - magic);
#endif
  Vec p = set1(1.53533620e-4f);
  p = p * r + 1.33988750e-3f;
  p = p * r + 9.61843692e-3f;
  p = p * r + 5.55033237e-2f;
  p = p * r + 2.40226477e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, (__m512)set1(-126.0f), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
  const IntVec exponent = std::bit_cast<IntVec>(shifted) - std::bit_cast<IntVec>(magic);
  const Vec scaled = p * std::bit_cast<Vec>((exponent + 127) << 23);
  return x < -126.0f ? Vec{} : scaled;
#endif
}

/// The least whole number that is not below x; −∞ and NaN stay what they are.
inline Vec ceil(Vec x) {
  const Vec magic = set1(12582912.0f);
  const Vec nearest = (x + magic) - magic;
  const Vec above = nearest < x ? nearest + 1.0f : nearest;
  return x > -4194304.0f && x < 4194304.0f ? above : x;  // others have no half left, or nearly
}

}  // namespace rlhf::RLHF_ISA
