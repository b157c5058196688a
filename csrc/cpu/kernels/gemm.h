#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/error.h"
#include "cpu/kernels/bfloat16.h"
#include "cpu/kernels/pack.h"
#include "ops/context.h"

namespace rlhf::RLHF_ISA {

// Matrix products C = Σ A·B. Every element of C is one chain of sums in rising k, term after term, so that its bits depend on its
// row of A and its column of B alone: not on the number of rows, the threads, the blocking or the packing. In float32 a link of
// the chain is a multiply-add, or the sum over 128 values of k (gemm_exact.cc); in bfloat16 what an instruction adds at a time (bfloat16.h).

/// One term of a product: factor·A [rows, depth] times B [depth, cols].
struct Term {
  int64_t depth = 0;
  MatrixView a;
  float factor = 1;
  MatrixView b;                    // read where packedB is null
  const float* packedB = nullptr;  // panels of B (pack.h; of bfloat16: bfloat16.h), `packedBStride` floats apart
  int64_t packedBStride = 0;
  const float* packedA = nullptr;  // of bfloat16 (optional): packRowsOnce's, for several products with the same A
};

struct Product {
  int64_t rows = 0, cols = 0;
  DType compute = DType::F32;  // BF16, BF16X3: A (times its factor) and B are rounded to bfloat16, or split; sums are float32 all the same
  // The second term (a low-rank update, whose B is not packed) runs in the accumulators of the first; depth 0: none.
  Term terms[2];
  // (optional) Where the consumer writes C, rows `destinationStride` floats apart.
  const float* destination = nullptr;
  int64_t destinationStride = 0;
  bool decoding = false;  // memory sets the pace: float32 is multiplied and added, whatever is faster where more rows use B
};

/// A finished piece of C: rows [row, row + rows), columns [col, col + cols); row i starts at values + i · stride. Columns start at
/// multiples of kPanelCols. `slot` names the thread.
struct Strip {
  int64_t row, rows, col, cols;
  float* values;
  int64_t stride;
  int slot;
};

/// A reference to a callable `void(const Strip&)` that outlives the call.
class StripConsumer {
 public:
  template <class Consumer>
    requires(!std::is_same_v<std::remove_const_t<Consumer>, StripConsumer>)  // copies are copies, no references to references
  StripConsumer(Consumer& consumer)  // NOLINT: implicit by intent
      : self_(&consumer), call_([](void* self, const Strip& strip) { (*static_cast<Consumer*>(self))(strip); }) {}
  void operator()(const Strip& strip) const { call_(self_, strip); }

 private:
  void* self_;
  void (*call_)(void*, const Strip&);
};

/// Scratch memory shared by all threads, handed out from the front.
class SharedScratch {
 public:
  explicit SharedScratch(OpContext& context);
  /// Throws ERR_RLHF_MEMORY where less than that is left.
  float* take(int64_t floats);
  int64_t floatsLeft() const { return floatsLeft_; }

 private:
  float* next_;
  int64_t floatsLeft_;
};

// Calling the other threads costs some ten microseconds, the time of about this many multiply-adds.
inline constexpr int64_t kSharedWork = 1 << 20;

/// The widest strip; statistics that are taken by strip may rely on cuts at its multiples (Columns::FixedCuts).
inline constexpr int64_t kStripCols = 256;

/// Whether strips may be narrowed so that all threads get an equal share.
enum class Columns { Balanced, FixedCuts };

/// Columns of a packed panel of B.
constexpr int64_t panelColsOf(DType compute) { return isBfloat16(compute) ? kBfloat16Tile : kPanelCols; }

/// Floats between packed panels of B [depth, cols].
constexpr int64_t panelStrideOf(int64_t depth, DType compute) {
  return isBfloat16(compute) ? bfloat16Steps(depth) * bfloat16StepFloats(compute) : depth * kPanelCols;
}

/// Panels of B from row `k` and column `col` on, which are multiples of 32.
constexpr int64_t panelOffset(int64_t k, int64_t col, int64_t panelStride, DType compute) {
  return isBfloat16(compute) ? col / kBfloat16Tile * panelStride + k / kBfloat16Tile * bfloat16StepFloats(compute)
                             : col / kPanelCols * panelStride + k * kPanelCols;
}

/// Where element (k, col) of B stands in panels whose depth is B's, counted in elements: of float32, and of bfloat16 (cpu/bfloat16_kernel.h).
struct PackedFloat32 {
  using Element = float;
  static int64_t index(int64_t k, int64_t col, int64_t depth) {
    return panelOffset(k, col / kPanelCols * kPanelCols, panelStrideOf(depth, DType::F32), DType::F32) + col % kPanelCols;
  }
};
struct PackedBfloat16 {
  using Element = uint16_t;
  static int64_t index(int64_t k, int64_t col, int64_t depth) {
    constexpr int64_t kTile = kBfloat16Tile, kHalf = kTile / 2;
    const int64_t block = 2 * panelOffset(k / kTile * kTile, col / kTile * kTile, panelStrideOf(depth, DType::BF16), DType::BF16);
    return block + col % kTile / kHalf * kHalf * kTile + k % kTile / 2 * kTile + col % kHalf * 2 + k % 2;
  }
};

/// The first `rows` rows of a tile of 32 × 32 into a strip, whose rows are `stride` floats apart.
inline void copyTile(const float* tile, int64_t rows, float* strip, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < kBfloat16Tile; c += kWidth) store(strip + r * stride + c, load(tile + r * kBfloat16Tile + c));
}

/// Calls body with the order of packed weights whose products are computed in `type`, their own.
template <class Body>
void withPackedOrder(DType type, const char* op, Body&& body) {
  if (type == DType::F32) return body(PackedFloat32{});
  if (type == DType::BF16) return body(PackedBfloat16{});
  throw Error(code::kUnsupported, format("%s: weights of %s have no packed form on the CPU", op, dtypeName(type)));
}

/// Panels that a thread packs at a time: what lies side by side in memory across them is read one after the other.
inline constexpr int64_t kPanelsPerPackingTask = 4;

/// Packs all of B [depth, cols] into panels panelStrideOf(depth, compute) floats apart, on all threads.
void packColumns(OpContext& context, const MatrixView& b, int64_t depth, int64_t cols, float* packed, DType compute = DType::F32);

/// Packs all of A [rows, depth] for several products in bfloat16, where `scratch` has room for it beside what they take; else null, as where
/// `compute` is another.
const float* packRowsOnce(OpContext& context, SharedScratch& scratch, DType compute, const MatrixView& a, int64_t rows, int64_t depth);

/// The product in bfloat16; gemm() comes here by itself.
void gemmBfloat16(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns);

/// Whether the product is one for gemmDirect.
bool readsOperandsAsTheyLie(const Product& product, const SharedScratch& scratch, Columns columns);

/// The product without packing A, nor B where it lies by rows; the same bits. gemm() comes here by itself.
void gemmDirect(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume);

/// Whether a product in float32 is one for gemmExact: by the sizes of B alone, so that a row's bits do not depend on the others.
bool isExactProduct(const Product& product);

/// The product in float32 from three parts of each number, where the processor multiplies those faster; gemm() comes here by itself.
void gemmExact(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume, Columns columns);

/// Computes the product and hands every element to `consume` exactly once, as part of a strip, on any thread.
void gemm(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume,
          Columns columns = Columns::Balanced);

}  // namespace rlhf::RLHF_ISA
