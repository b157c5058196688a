#pragma once
#include <cstdint>

namespace rlhf::simt {

/// How a tile's 16-byte pieces are permuted in shared memory, by the bytes of a row that it reaches over.
enum class Swizzle { None, Bytes128 };

/// What TMA knows of a bfloat16 array: `rows` of `heads` of `cols`, and the box of one head that a copy moves.
struct TensorMap {
  const char* data = nullptr;
  int64_t rows = 0, heads = 1, cols = 0, strideBytes = 0, headBytes = 0;
  int boxCols = 0, boxRows = 0;
  Swizzle swizzle = Swizzle::None;
};

/// Where a box begins.
struct BoxPlace {
  int col, head, row;
};

/// Throws Error where cuTensorMapEncodeTiled would refuse.
TensorMap makeTensorMap(const void* data, int64_t rows, int64_t cols, int64_t stride, int boxCols, int boxRows, Swizzle swizzle);
/// The same of rows of heads that lie side by side.
TensorMap makeHeadMap(const void* data, int64_t rows, int64_t heads, int64_t cols, int64_t stride, int boxCols, int boxRows, Swizzle swizzle);

}  // namespace rlhf::simt
