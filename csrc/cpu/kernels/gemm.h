#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/kernels/pack.h"
#include "ops/context.h"

namespace rlhf::RLHF_ISA {

// Matrix products C = Σ A·B. Every element of C is one chain of multiply-adds in rising k, term after term, so that its bits
// depend on its row of A and its column of B alone: not on the number of rows, the threads, the blocking or the packing.

/// One term of a product: factor·A [rows, depth] times B [depth, cols].
struct Term {
  int64_t depth = 0;
  MatrixView a;
  float factor = 1;
  MatrixView b;                    // read where packedB is null
  const float* packedB = nullptr;  // panels of B (pack.h), `packedBStride` floats apart
  int64_t packedBStride = 0;
};

struct Product {
  int64_t rows = 0, cols = 0;
  // The second term (a low-rank update, whose B is not packed) runs in the accumulators of the first; depth 0: none.
  Term terms[2];
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

/// The widest strip; statistics that are taken by strip may rely on cuts at its multiples (Columns::FixedCuts).
inline constexpr int64_t kStripCols = 256;

/// Whether strips may be narrowed so that all threads get an equal share.
enum class Columns { Balanced, FixedCuts };

/// Packs all of B [depth, cols] into panels depth · kPanelCols floats apart, on all threads.
void packColumns(OpContext& context, const MatrixView& b, int64_t depth, int64_t cols, float* packed);

/// Computes the product and hands every element to `consume` exactly once, as part of a strip, on any thread.
void gemm(OpContext& context, SharedScratch scratch, const Product& product, StripConsumer consume,
          Columns columns = Columns::Balanced);

}  // namespace rlhf::RLHF_ISA
