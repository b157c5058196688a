#include <cpuid.h>

#include <atomic>
#include <cstring>

#include "cpu/amx.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Kernels for instructions that not every processor with AVX-512 has: functions name them one by one, so that no other code in this
// file uses them.

namespace rlhf::cpu {
namespace {

/// A step of B, of so many parts, on the way to the first-level cache a kilobyte before tiles are loaded from it: tile loads wait for
/// their lines one after another, and further ahead more is asked for than a core can have on its way. The second-level cache is asked
/// 3 KB ahead, where that is beyond the step.
template <int64_t kParts>
RLHF_PREFETCH inline void fetchStep(const uint16_t* b) {
  constexpr int64_t kBytesAheadOfFirstLevel = 1024, kBytesAheadOfSecondLevel = 3072;
  constexpr int64_t kStepBytes = kParts * kBfloat16StepElements * 2;
  const char* const step = reinterpret_cast<const char*>(b);
#pragma GCC unroll 64
  for (int64_t byte = 0; byte < kStepBytes; byte += 64) {
    __builtin_prefetch(step + byte + kBytesAheadOfFirstLevel);
    if constexpr (kBytesAheadOfSecondLevel > kStepBytes) __builtin_prefetch(step + byte + kBytesAheadOfSecondLevel, 0, 2);
  }
}

/// Palette 1: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, startRow = 0, reserved[14] = {};
  uint16_t bytesPerRow[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

RLHF_AMX void beginTiles() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}

/// Tiles that are not in use cost nothing when threads take turns.
RLHF_AMX void endTiles() { _tile_release(); }

/// The same of split operands, in the order of Bfloat16Parts: each tile is loaded once, where its forerunner was last used.
RLHF_AMX inline void addSplitStep(const uint16_t* a, const uint16_t* b) {
  const uint16_t* const restA = a + kBfloat16StepElements;
  const uint16_t* const restB = b + kBfloat16StepElements;
  addStep(restA, b);
  loadRows(a);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  loadLowerRows(a);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  _tile_loadd(6, restB, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(7, restB + kHalfElements, kTileRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

/// Tiles 0 to 3 are C by quarters. Where B comes from memory it is asked for as it is read, and not what `prefetch` says.
template <bool kSplit, bool kFromMemory>
RLHF_AMX void multiplyTall(const Bfloat16Segment* segments, int segmentCount, float* c, bool accumulate,
                           const Bfloat16Prefetch& prefetch) {
  if (accumulate) {
    _tile_loadd(0, c, kResultRowBytes);
    _tile_loadd(1, c + kHalf, kResultRowBytes);
    _tile_loadd(2, c + kHalf * kBfloat16Tile, kResultRowBytes);
    _tile_loadd(3, c + kHalf * kBfloat16Tile + kHalf, kResultRowBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  int64_t fetched = 0;
  for (int s = 0; s < segmentCount; ++s) {
    const uint16_t* a = segments[s].a;
    const uint16_t* b = segments[s].b;
    for (int64_t step = 0; step < segments[s].steps; ++step) {
      if constexpr (kFromMemory) fetchStep<Bfloat16Parts<kSplit>::kCount>(b);
      if constexpr (kSplit)
        addSplitStep(a, b);
      else
        addStep(a, b);
      if constexpr (!kFromMemory) fetch(prefetch, fetched++);
      a += Bfloat16Parts<kSplit>::kCount * kBfloat16StepElements;
      b += Bfloat16Parts<kSplit>::kCount * kBfloat16StepElements;
    }
  }
  _tile_stored(0, c, kResultRowBytes);
  _tile_stored(1, c + kHalf, kResultRowBytes);
  _tile_stored(2, c + kHalf * kBfloat16Tile, kResultRowBytes);
  _tile_stored(3, c + kHalf * kBfloat16Tile + kHalf, kResultRowBytes);
}

/// C, in the tiles `left` and `right`, plus the product of 16 rows with a step of a panel of B: 4 is A, 5 what rounding left of it. A macro, since
/// the compiler takes the numbers of tiles only as they are written.
#define RLHF_ADD_FLAT_STEP(kSplit, left, right, b)                              \
  do {                                                                          \
    _tile_loadd(6, b, kTileRowBytes);                                           \
    _tile_loadd(7, b + kHalfElements, kTileRowBytes);                           \
    if constexpr (kSplit) {                                                     \
      _tile_dpbf16ps(left, 5, 6);                                               \
      _tile_dpbf16ps(right, 5, 7);                                              \
    }                                                                           \
    _tile_dpbf16ps(left, 4, 6);                                                 \
    _tile_dpbf16ps(right, 4, 7);                                                \
    if constexpr (kSplit) {                                                     \
      _tile_loadd(6, b + kBfloat16StepElements, kTileRowBytes);                 \
      _tile_loadd(7, b + kBfloat16StepElements + kHalfElements, kTileRowBytes); \
      _tile_dpbf16ps(left, 4, 6);                                               \
      _tile_dpbf16ps(right, 4, 7);                                              \
    }                                                                           \
  } while (false)

/// multiplyTall for at most 16 rows, where B is read faster than the tiles are multiplied: by one panel, or by two side by side, whose C is
/// in tiles 0 to 3. Memory gives more where it is read in two places.
template <bool kSplit, int kPanels>
RLHF_AMX void multiplyFlat(const Bfloat16Segment* segments, int segmentCount, float* c, bool accumulate) {
  constexpr int64_t kParts = Bfloat16Parts<kSplit>::kCount;
  float* const second = c + kBfloat16Tile * kBfloat16Tile;
  if (accumulate) {
    _tile_loadd(0, c, kResultRowBytes);
    _tile_loadd(1, c + kHalf, kResultRowBytes);
    if constexpr (kPanels == 2) {
      _tile_loadd(2, second, kResultRowBytes);
      _tile_loadd(3, second + kHalf, kResultRowBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kPanels == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int s = 0; s < segmentCount; ++s) {
    const uint16_t* a = segments[s].a;
    const uint16_t* b = segments[s].b;
    const int64_t next = segments[s].bStride;
    for (int64_t step = 0; step < segments[s].steps; ++step) {
      fetchStep<kParts>(b);
      if constexpr (kPanels == 2) fetchStep<kParts>(b + next);
      _tile_loadd(4, a, kTileRowBytes);
      if constexpr (kSplit) _tile_loadd(5, a + kBfloat16StepElements, kTileRowBytes);
      RLHF_ADD_FLAT_STEP(kSplit, 0, 1, b);
      if constexpr (kPanels == 2) {
        const uint16_t* const neighbour = b + next;
        RLHF_ADD_FLAT_STEP(kSplit, 2, 3, neighbour);
      }
      a += kParts * kBfloat16StepElements;
      b += kParts * kBfloat16StepElements;
    }
  }
  _tile_stored(0, c, kResultRowBytes);
  _tile_stored(1, c + kHalf, kResultRowBytes);
  if constexpr (kPanels == 2) {
    _tile_stored(2, second, kResultRowBytes);
    _tile_stored(3, second + kHalf, kResultRowBytes);
  }
}

template <bool kSplit>
void multiplyWithTiles(const Bfloat16Segment* segments, int segmentCount, int rows, float* c, bool accumulate,
                       const Bfloat16Prefetch& prefetch) {
  if (rows > kHalf)
    multiplyTall<kSplit, false>(segments, segmentCount, c, accumulate, prefetch);
  else
    multiplyFlat<kSplit, 1>(segments, segmentCount, c, accumulate);
}

template <bool kSplit>
void streamThroughTiles(const Bfloat16Segment* segments, int segmentCount, int rows, int panels, float* c) {
  if (rows > kHalf)
    multiplyTall<kSplit, true>(segments, segmentCount, c, false, {});
  else if (panels == 1)
    multiplyFlat<kSplit, 1>(segments, segmentCount, c, false);
  else
    multiplyFlat<kSplit, 2>(segments, segmentCount, c, false);
}

#define RLHF_DOT __attribute__((target("avx512bf16,avx512f")))

/// kRows rows of A by all columns of B: one dot product of a pair adds to each of their sums.
template <bool kSplit, int kRows>
RLHF_DOT void multiplyDots(const Bfloat16Segment* segments, int segmentCount, int row, float* c, bool accumulate,
                           const Bfloat16Prefetch& prefetch) {
  using Parts = Bfloat16Parts<kSplit>;
  __m512 sums[kRows][2];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
    for (int half = 0; half < 2; ++half)
      sums[i][half] = accumulate ? _mm512_loadu_ps(c + (row + i) * kBfloat16Tile + half * kHalf) : _mm512_setzero_ps();
  int64_t fetched = 0;
  for (int s = 0; s < segmentCount; ++s) {
    const uint16_t* a = segments[s].a + row * kBfloat16Tile;
    const uint16_t* b = segments[s].b;
    for (int64_t step = 0; step < segments[s].steps; ++step) {
      for (const auto& [partA, partB] : Parts::kProducts) {
        const uint16_t* const rows = a + partA * kBfloat16StepElements;
        const uint16_t* const cols = b + partB * kBfloat16StepElements;
        for (int64_t p = 0; p < kHalf; ++p) {
          const auto left = (__m512bh)_mm512_loadu_si512(cols + p * kBfloat16Tile);
          const auto right = (__m512bh)_mm512_loadu_si512(cols + kHalfElements + p * kBfloat16Tile);
#pragma GCC unroll 8
          for (int i = 0; i < kRows; ++i) {
            int32_t pair;
            std::memcpy(&pair, rows + i * kBfloat16Tile + 2 * p, sizeof pair);
            const auto factor = (__m512bh)_mm512_set1_epi32(pair);
            sums[i][0] = _mm512_dpbf16_ps(sums[i][0], factor, left);
            sums[i][1] = _mm512_dpbf16_ps(sums[i][1], factor, right);
          }
        }
      }
      fetch(prefetch, fetched++);
      a += Parts::kCount * kBfloat16StepElements;
      b += Parts::kCount * kBfloat16StepElements;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    _mm512_storeu_ps(c + (row + i) * kBfloat16Tile, sums[i][0]);
    _mm512_storeu_ps(c + (row + i) * kBfloat16Tile + kHalf, sums[i][1]);
  }
}

template <bool kSplit>
void multiplyWithDots(const Bfloat16Segment* segments, int segmentCount, int rows, float* c, bool accumulate,
                      const Bfloat16Prefetch& prefetch) {
  static constexpr Bfloat16Prefetch kNone;
  int row = 0;
  for (; row + 8 <= rows; row += 8) multiplyDots<kSplit, 8>(segments, segmentCount, row, c, accumulate, row == 0 ? prefetch : kNone);
  for (; row < rows; ++row) multiplyDots<kSplit, 1>(segments, segmentCount, row, c, accumulate, row == 0 ? prefetch : kNone);
}

/// Linux gives a process the tiles' registers when it asks for them; other systems are not asked.
bool tilesAllowed() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

constexpr Bfloat16Kernel kTileKernel{"amx",
                                     {multiplyWithTiles<false>, streamThroughTiles<false>},
                                     {multiplyWithTiles<true>, streamThroughTiles<true>},
                                     multiplyExact,
                                     multiplyExactOfPanel,
                                     beginTiles,
                                     endTiles};
constexpr Bfloat16Kernel kDotKernel{"dot", {multiplyWithDots<false>, nullptr}, {multiplyWithDots<true>, nullptr}, nullptr, nullptr, nullptr, nullptr};

/// Bits of CPUID's leaf 7: tiles and their bfloat16 products, and dot products.
bool hasTiles() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 22 & 1);
}
bool hasDots() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

std::atomic<const Bfloat16Kernel*>& chosen() {
  static std::atomic<const Bfloat16Kernel*> kernel{amxKernel() ? amxKernel() : dotKernel()};
  return kernel;
}

}  // namespace

const Bfloat16Kernel* amxKernel() {
  static const bool available = hasTiles() && tilesAllowed();
  return available ? &kTileKernel : nullptr;
}

const Bfloat16Kernel* dotKernel() {
  static const bool available = hasDots();
  return available ? &kDotKernel : nullptr;
}

bool chooseBfloat16Kernel(const char* name) {
  for (const Bfloat16Kernel* kernel : {amxKernel(), dotKernel()})
    if (kernel && std::strcmp(kernel->name, name) == 0) return chosen() = kernel, true;
  if (std::strcmp(name, "convert") != 0) return false;
  chosen() = nullptr;
  return true;
}

const Bfloat16Kernel* chosenBfloat16Kernel() { return chosen(); }

}  // namespace rlhf::cpu
