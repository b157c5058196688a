#include <algorithm>
#include <atomic>

#include "cpu/amx.h"

// Products in float32 from three bfloat16 parts of each number (kernels/gemm_exact.cc).

namespace rlhf::cpu {
namespace {

// Parts of a step of operands in three.
constexpr int64_t kMiddle = kBfloat16StepElements, kLeast = 2 * kBfloat16StepElements, kExactStep = 3 * kBfloat16StepElements;

#define RLHF_EXACT __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw")))
#define RLHF_EXACT_INLINE RLHF_EXACT inline __attribute__((always_inline))

/// C, in tiles 0 to 3, plus a step's small products, the smallest first. Each shares a factor with the next, so that half of the tiles stay.
/// `between` is called with 8 in eight places, and has one eighth of its work done there beside the tiles'.
template <class Between>
RLHF_EXACT_INLINE void addSmallProductsTall(const uint16_t* a, const uint16_t* b, Between& between) {
  loadRows(a);
  _tile_loadd(6, b + kLeast, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  loadLowerRows(a);
  _tile_dpbf16ps(2, 5, 6);
  between(8);
  _tile_loadd(7, b + kLeast + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
  between(8);
  _tile_loadd(6, b + kMiddle, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 5, 6);
  between(8);
  _tile_loadd(7, b + kMiddle + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
  between(8);
  loadRows(a + kMiddle);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  between(8);
  loadLowerRows(a + kMiddle);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  between(8);
  _tile_loadd(6, b, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 5, 6);
  between(8);
  _tile_loadd(7, b + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
  between(8);
  loadRows(a + kLeast);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  loadLowerRows(a + kLeast);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

/// The same for at most 16 rows, whose C is in the tiles 0 and 1; `between` has a quarter of its work done in each of four places.
template <class Between>
RLHF_EXACT_INLINE void addSmallProductsFlat(const uint16_t* a, const uint16_t* b, Between& between) {
  loadRows(a);
  _tile_loadd(6, b + kLeast, kTileRowBytes);
  _tile_loadd(7, b + kLeast + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  between(4);
  _tile_loadd(2, b + kMiddle, kTileRowBytes);
  _tile_loadd(3, b + kMiddle + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 2);
  _tile_dpbf16ps(1, 4, 3);
  between(4);
  _tile_stream_loadd(5, a + kMiddle, kTileRowBytes);
  _tile_dpbf16ps(0, 5, 2);
  _tile_dpbf16ps(1, 5, 3);
  between(4);
  _tile_loadd(6, b, kTileRowBytes);
  _tile_loadd(7, b + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(0, 5, 6);
  _tile_dpbf16ps(1, 5, 7);
  between(4);
  loadRows(a + kLeast);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
}

RLHF_EXACT_INLINE void zeroTiles(bool flat) {
  _tile_zero(0);
  _tile_zero(1);
  if (flat) return;
  _tile_zero(2);
  _tile_zero(3);
}

template <class Between>
RLHF_EXACT_INLINE void addSmallProducts(const uint16_t* a, const uint16_t* b, bool flat, Between&& between) {
  if (flat)
    addSmallProductsFlat(a, b, between);
  else
    addSmallProductsTall(a, b, between);
}

/// The products of the largest parts, behind the small ones in tiles 0 to 3, and then these to c.
RLHF_EXACT_INLINE void finishExact(const uint16_t* a, const uint16_t* b, int64_t steps, bool flat, float* c) {
  for (int64_t step = 0; step < steps; ++step, a += kExactStep, b += kExactStep) {
    if (!flat) {
      addStep(a, b);
      continue;
    }
    loadRows(a);
    _tile_loadd(6, b, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kHalfElements, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, kResultRowBytes);
  _tile_stored(1, c + kHalf, kResultRowBytes);
  if (flat) return;
  _tile_stored(2, c + kHalf * kBfloat16Tile, kResultRowBytes);
  _tile_stored(3, c + kHalf * kBfloat16Tile + kHalf, kResultRowBytes);
}

/// Each lane's nearest bfloat16 in the upper 16 bits, ties away from zero.
RLHF_EXACT_INLINE __m512i nearestPart(__m512i value) {
  return _mm512_and_si512(_mm512_add_epi32(value, _mm512_set1_epi32(0x8000)), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
}
RLHF_EXACT_INLINE __m512i restOf(__m512i value, __m512i part) {
  return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(part)));
}
/// The upper halves of both, those of `lower` in the lower halves.
RLHF_EXACT_INLINE __m512i pairOf(__m512i lower, __m512i upper) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_maskz_srli_epi32(0xffff, lower, 16), upper);
}

/// Cuts a step of a panel of B in float32 into parts, as ExactParts has those of A (kernels/bfloat16_parts.h), a share at each call; rows that it
/// comes to later are on the way in two stages.
struct StepCutter {
  const float* panel;
  int64_t stride;
  uint16_t* parts;

  RLHF_EXACT_INLINE void operator()(int64_t shares) {
    // The compiler does not know what memory tiles are loaded from: what is cut stays where it stands.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    for (int64_t pair = 0; pair < kHalf / shares; ++pair) cutPair();
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }

 private:
  RLHF_EXACT_INLINE void cutPair() {
    constexpr int64_t kRowsAheadOfFirstLevel = 8, kRowsAheadOfSecondLevel = 32;
    for (int64_t row = 0; row < 2; ++row)
      for (int64_t line = 0; line < kBfloat16Tile; line += 16) {
        __builtin_prefetch(panel + (kRowsAheadOfFirstLevel + row) * stride + line);
        __builtin_prefetch(panel + (kRowsAheadOfSecondLevel + row) * stride + line, 0, 2);
      }
    for (int64_t half = 0; half < 2; ++half) {
      const __m512i lower = _mm512_loadu_si512(panel + half * kHalf), upper = _mm512_loadu_si512(panel + stride + half * kHalf);
      const __m512i lowerPart = nearestPart(lower), upperPart = nearestPart(upper);
      const __m512i lowerRest = restOf(lower, lowerPart), upperRest = restOf(upper, upperPart);
      const __m512i lowerMiddle = nearestPart(lowerRest), upperMiddle = nearestPart(upperRest);
      uint16_t* const to = parts + half * kHalfElements;
      _mm512_storeu_si512(to, pairOf(lowerPart, upperPart));
      _mm512_storeu_si512(to + kMiddle, pairOf(lowerMiddle, upperMiddle));
      _mm512_storeu_si512(to + kLeast, pairOf(restOf(lowerRest, lowerMiddle), restOf(upperRest, upperMiddle)));
    }
    panel += 2 * stride, parts += kBfloat16Tile;
  }
};

/// Has the addition done in so many steps, a share of a step's at each call.
struct StepAdder {
  const float* from;
  float* to;
  int64_t left, perStep;

  RLHF_EXACT_INLINE StepAdder(const AdditionBeside& beside, int64_t steps)
      : from(beside.from), to(beside.to), left(beside.vectors), perStep((beside.vectors + steps - 1) / steps) {}
  RLHF_EXACT_INLINE void operator()(int64_t shares) {
    const int64_t count = std::min(left, (perStep + shares - 1) / shares);
    for (int64_t i = 0; i < count; ++i, from += 16, to += 16) _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(from)));
    left -= count;
  }
};

}  // namespace

RLHF_EXACT void multiplyExact(const uint16_t* a, const uint16_t* b, int64_t steps, int rows, float* c, const AdditionBeside& beside,
                              const Bfloat16Prefetch& prefetch) {
  const bool flat = rows <= kHalf;
  zeroTiles(flat);
  StepAdder adder(beside, steps);
  for (int64_t step = 0; step < steps; ++step) {
    addSmallProducts(a + step * kExactStep, b + step * kExactStep, flat, adder);
    fetch(prefetch, step);
  }
  finishExact(a, b, steps, flat, c);
}

/// A step is cut between the tiles' products of the one before; beside the last one's, numbers are added.
RLHF_EXACT void multiplyExactOfPanel(const uint16_t* a, const float* panel, int64_t stride, uint16_t* parts, int64_t steps, int rows, float* c,
                                     const AdditionBeside& beside, const Bfloat16Prefetch& prefetch) {
  const bool flat = rows <= kHalf;
  zeroTiles(flat);
  StepCutter{panel, stride, parts}(1);
  for (int64_t step = 0; step + 1 < steps; ++step) {
    addSmallProducts(a + step * kExactStep, parts + step * kExactStep, flat,
                     StepCutter{panel + (step + 1) * kBfloat16Tile * stride, stride, parts + (step + 1) * kExactStep});
    fetch(prefetch, step);
  }
  addSmallProducts(a + (steps - 1) * kExactStep, parts + (steps - 1) * kExactStep, flat, StepAdder(beside, 1));
  fetch(prefetch, steps - 1);
  finishExact(a, parts, steps, flat, c);
}

}  // namespace rlhf::cpu
