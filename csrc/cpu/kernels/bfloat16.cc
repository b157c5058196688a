#include "cpu/kernels/bfloat16.h"

#include <algorithm>

#include "cpu/kernels/bfloat16_parts.h"
#include "cpu/kernels/parallel.h"

namespace rlhf::RLHF_ISA {
namespace {

using cpu::Bfloat16Kernel;
using cpu::Bfloat16Parts;

constexpr int64_t kHalfTile = kBfloat16Tile / 2;
static_assert(kHalfTile % kWidth == 0);

/// A block of half a panel and one step: 16 rows (or columns) by 16 pairs of neighbours in k, the earlier one in the lower bits.
using Pairs = uint32_t[kHalfTile][kHalfTile];

void transposePairs(const Pairs& source, Pairs& destination) {
  for (int64_t r = 0; r < kHalfTile; r += kWidth)
    for (int64_t c = 0; c < kHalfTile; c += kWidth) {
      Vec block[kWidth];
      for (int i = 0; i < kWidth; ++i) std::memcpy(&block[i], &source[r + i][c], sizeof(Vec));
      transpose(block);
      for (int i = 0; i < kWidth; ++i) std::memcpy(&destination[c + i][r], &block[i], sizeof(Vec));
    }
}

/// 32 values of one line, zeros after the first `depth`, a part of them `partStride` elements after the one before.
template <class Reader, class Parts>
void cutLine(const typename Reader::Element* values, int depth, float factor, uint16_t* line, int64_t partStride) {
  const auto cut = [&](int k) {
    const int count = std::clamp(depth - k, 0, kWidth);
    return Parts((count == kWidth ? Reader::load(values + k) : Reader::loadPartial(values + k, count)) * factor);
  };
  for (int k = 0; k < kBfloat16Tile; k += 2 * kWidth) {
    const Parts first = cut(k), second = cut(k + kWidth);
    for (int64_t part = 0; part < Parts::kCount; ++part) Bfloat16::storeUpper(line + part * partStride + k, first.part[part], second.part[part]);
  }
}

/// pairs[part][i][p] from line i of `lines`, whose values of k lie side by side.
template <class Reader, class Parts>
void readAlongDepth(const typename Reader::Element* source, int64_t lineStride, int lines, int depth, float factor, Pairs* pairs) {
  constexpr int64_t kBytesAhead = 512;
  for (int i = 0; i < kHalfTile; ++i) {
    const auto* ahead = reinterpret_cast<const char*>(source + i * lineStride) + kBytesAhead;
    for (size_t byte = 0; byte < kBfloat16Tile * sizeof *source; byte += 64) __builtin_prefetch(ahead + byte, 0, 2);
    cutLine<Reader, Parts>(source + i * lineStride, i < lines ? depth : 0, factor, reinterpret_cast<uint16_t*>(pairs[0][i]),
                              sizeof(Pairs) / sizeof(uint16_t));
  }
}

/// pairs[part][p][i] where the values of `lines` lines lie side by side for each k. The next step's are on their way meanwhile: no
/// prefetcher of the processor sees a pattern in a line from here and a line from there.
template <class Reader, class Parts>
void readAcross(const typename Reader::Element* source, int64_t depthStride, int lines, int depth, float factor, Pairs* pairs) {
  for (int64_t k = kBfloat16Tile; k < 2 * kBfloat16Tile; ++k) __builtin_prefetch(source + k * depthStride, 0, 2);
  for (int p = 0; p < kHalfTile; ++p)
    for (int i = 0; i < kHalfTile; i += kWidth) {
      const int count = std::clamp(lines - i, 0, kWidth);
      const auto cut = [&](int k) {
        if (k >= depth || count == 0) return Parts(Vec{});
        const auto* values = source + k * depthStride + i;
        return Parts((count == kWidth ? Reader::load(values) : Reader::loadPartial(values, count)) * factor);
      };
      const auto lower = cut(2 * p), upper = cut(2 * p + 1);
      for (int64_t part = 0; part < Parts::kCount; ++part) {
        const BitVec pair = lower.part[part] >> 16 | (upper.part[part] & 0xffff0000u);
        std::memcpy(&pairs[part][p][i], &pair, sizeof pair);
      }
    }
}

/// How a block of pairs lies in a packed panel: by line, as in A, or by pair, as in B.
enum class Order { ByLine, ByPair };

/// Packs `lines` rows of A or columns of B, `lineStride` elements apart, of `depth` values of k, `depthStride` elements apart.
template <class Reader, Order order, class Parts>
void packPanels(const typename Reader::Element* source, int64_t lineStride, int64_t depthStride, int64_t lines, int64_t depth,
                float factor, float* packed, int64_t panelStride) {
  const bool alongDepth = depthStride == 1;
  constexpr int64_t kStepFloats = Parts::kCount * kBfloat16StepFloats;
  const int64_t panels = (lines + kBfloat16Tile - 1) / kBfloat16Tile, steps = bfloat16Steps(depth);
  // What lies side by side is read one after the other.
  for (int64_t block = 0; block < panels * steps; ++block) {
    const int64_t panel = alongDepth ? block / steps : block % panels, step = alongDepth ? block % steps : block / panels;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t line = panel * kBfloat16Tile + half * kHalfTile, k = step * kBfloat16Tile;
      const auto* from = source + line * lineStride + k * depthStride;
      const auto count = static_cast<int>(std::clamp<int64_t>(lines - line, 0, kHalfTile));
      const auto deep = static_cast<int>(std::min(kBfloat16Tile, depth - k));
      float* const to = packed + panel * panelStride + step * kStepFloats + half * kHalfTile * kHalfTile;
      alignas(64) Pairs pairs[Parts::kCount], turned;
      if (alongDepth)
        readAlongDepth<Reader, Parts>(from, lineStride, count, deep, factor, pairs);
      else
        readAcross<Reader, Parts>(from, depthStride, count, deep, factor, pairs);
      const bool turn = alongDepth != (order == Order::ByLine);
      for (int64_t part = 0; part < Parts::kCount; ++part) {
        if (turn) transposePairs(pairs[part], turned);
        std::memcpy(to + part * kBfloat16StepFloats, turn ? turned : pairs[part], sizeof turned);
      }
    }
  }
}

/// Rows of A whose values of k lie side by side are read from end to end, one after the other, as memory likes it, while the next one is on its way.
template <class Parts>
void packRows(const float* source, int64_t rowStride, int64_t rows, int64_t depth, float factor, float* packed,
              int64_t panelStride) {
  const auto lineOf = [&](int64_t row) {
    return reinterpret_cast<uint16_t*>(packed + row / kBfloat16Tile * panelStride) + row % kBfloat16Tile * kBfloat16Tile;
  };
  for (int64_t row = 0; row < rows; ++row) {
    uint16_t* line = lineOf(row);
    for (int64_t k = 0; k < depth; k += kBfloat16Tile, line += Parts::kCount * kBfloat16StepElements) {
      const float* const next = source + (row + 1) * rowStride + k;
      for (int64_t ahead = 0; ahead < kBfloat16Tile; ahead += 16) __builtin_prefetch(next + ahead, 0, 2);
      const auto count = static_cast<int>(std::min(kBfloat16Tile, depth - k));
      cutLine<Float32, Parts>(source + row * rowStride + k, count, factor, line, kBfloat16StepElements);
    }
  }
  for (int64_t row = rows; row % kBfloat16Tile != 0; ++row)
    for (int64_t part = 0; part < bfloat16Steps(depth) * Parts::kCount; ++part) std::fill_n(lineOf(row) + part * kBfloat16StepElements, kBfloat16Tile, uint16_t{0});
}

template <class Parts>
void packA(const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride) {
  const auto* source = static_cast<const float*>(a.data);
  if (a.colStride == 1)
    packRows<Parts>(source, a.rowStride, rows, depth, factor, packed, panelStride);
  else
    packPanels<Float32, Order::ByLine, Parts>(source, a.rowStride, a.colStride, rows, depth, factor, packed, panelStride);
}

template <class Parts>
void packB(const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride) {
  withReader(b.type, [&]<class Reader>(Reader) {
    const auto* source = static_cast<const typename Reader::Element*>(b.data);
    packPanels<Reader, Order::ByPair, Parts>(source, b.colStride, b.rowStride, cols, depth, 1.0f, packed, panelStride);
  });
}

}  // namespace

void packBfloat16A(DType compute, const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride) {
  (compute == DType::BF16X3 ? packA<RoundedParts<true>> : packA<RoundedParts<false>>)(a, rows, depth, factor, packed, panelStride);
}

void packBfloat16B(DType compute, const MatrixView& b, int64_t depth, int64_t cols, float* packed, int64_t panelStride) {
  (compute == DType::BF16X3 ? packB<RoundedParts<true>> : packB<RoundedParts<false>>)(b, depth, cols, packed, panelStride);
}

void packExactA(const MatrixView& a, int64_t rows, int64_t depth, float factor, float* packed, int64_t panelStride) {
  packA<ExactParts>(a, rows, depth, factor, packed, panelStride);
}

const Bfloat16Kernel& bfloat16Kernel() {
#if defined(__AVX512F__)
  if (const Bfloat16Kernel* kernel = cpu::chosenBfloat16Kernel()) return *kernel;
#endif
  return wideningKernel();
}

}  // namespace rlhf::RLHF_ISA
