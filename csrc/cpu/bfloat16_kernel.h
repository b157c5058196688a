#pragma once
#include <cstdint>

namespace rlhf::cpu {

// Products in bfloat16 work on tiles of 32 × 32 numbers of C, in steps of 32 values of k, whatever the instruction set: AMX's tiles,
// four of 16 × 16 numbers at a time, are cut to measure for it. Packed operands hold zeros where the matrix ends.
//
//   A, a panel of 32 rows:    [step][row / 16][row % 16][k % 32]
//   B, a panel of 32 columns: [step][column / 16][k % 32 / 2][column % 16][k % 2]
//
// Split operands, where a number is the sum of two of bfloat16, hold a step of what rounding gives and then one of what it leaves.

inline constexpr int64_t kBfloat16Tile = 32;
inline constexpr int64_t kBfloat16StepElements = kBfloat16Tile * kBfloat16Tile;
inline constexpr int64_t kBfloat16StepFloats = kBfloat16StepElements / 2;  // what a step of a panel takes, in floats

/// What a step of packed operands takes, in steps' elements, and the products of their parts that a step adds: A's times B's, in this order.
template <bool kSplit>
struct Bfloat16Parts;
template <>
struct Bfloat16Parts<false> {
  static constexpr int64_t kCount = 1;
  static constexpr int64_t kProducts[][2] = {{0, 0}};
};
template <>
struct Bfloat16Parts<true> {
  static constexpr int64_t kCount = 2;
  static constexpr int64_t kProducts[][2] = {{1, 0}, {0, 0}, {0, 1}};
};

/// A run of `steps` steps of k of one panel of A and one of B.
struct Bfloat16Segment {
  const uint16_t* a = nullptr;
  const uint16_t* b = nullptr;
  int64_t steps = 0;
  int64_t bStride = 0;  // elements to the next panel of B, where a call takes two
};

/// Memory that a later call will read: each step asks for `linesPerStep` lines from `next` on. And rows of 32 numbers that this call's
/// results go to, `destinationStride` bytes apart: each step asks for `rowsPerStep` of them.
struct Bfloat16Prefetch {
  const char* next = nullptr;
  int64_t linesPerStep = 0;
  const char* destination = nullptr;
  int64_t destinationStride = 0, rowsPerStep = 0;
};

/// c[32][32] = Σ over segments of A·B, or c + that sum with `accumulate`, for the first `rows` rows; what stands in the others afterwards is undefined. Products of two
/// bfloat16 numbers are exact in float32. An element's bits depend on its row of A and its column of B alone,
/// and not on the calls that its sum is cut into.
struct Bfloat16Products {
  void (*multiply)(const Bfloat16Segment* segments, int segmentCount, int rows, float* c, bool accumulate,
                   const Bfloat16Prefetch& prefetch);
  /// c[panels][32][32] = Σ over segments of A by so many neighbouring panels of B, two at most for up to 16 rows and one for more, where B comes from
  /// memory and is used once: it is asked for as it is read. Null: none. The bits are multiply's.
  void (*stream)(const Bfloat16Segment* segments, int segmentCount, int rows, int panels, float* c);
};

/// Work for the time in which tiles are multiplied: to[i] += from[i] for `vectors` vectors of 16 numbers.
struct AdditionBeside {
  const float* from = nullptr;
  float* to = nullptr;
  int64_t vectors = 0;
};

/// c[32][32] = A·B for the first `rows` rows, of operands that lie in three parts a step: the largest, the middle and the least of each number,
/// whose sum it is (Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations"). Of the
/// nine products of parts the three smallest, below 2^-24 of the whole, are left out. Small products are summed before the largest. Sums over more of k
/// than a call's are for the caller to add up, as the next call's work beside: so the cuts of k make the bits, and the error is that of sums of so few terms.
using ExactProduct = void (*)(const uint16_t* a, const uint16_t* b, int64_t steps, int rows, float* c, const AdditionBeside& beside,
                              const Bfloat16Prefetch& prefetch);

/// The same of whole steps of a panel of B in float32, [32 · steps][32], rows `stride` floats apart, whose parts are left in `parts` for other rows. It
/// asks for the rows behind them too.
using ExactProductOfPanel = void (*)(const uint16_t* a, const float* panel, int64_t stride, uint16_t* parts, int64_t steps, int rows, float* c,
                                     const AdditionBeside& beside, const Bfloat16Prefetch& prefetch);

struct Bfloat16Kernel {
  const char* name;
  Bfloat16Products rounded, split;  // of operands as their names say
  ExactProduct exact;               // null where multiply-adds are faster
  ExactProductOfPanel exactOfPanel;
  /// To be called by each thread around its calls of those, for the state that instructions need; null: none.
  void (*begin)();
  void (*end)();
};

/// AMX's tile products, and AVX-512's dot products; null where the processor or the operating system has them not.
const Bfloat16Kernel* amxKernel();
const Bfloat16Kernel* dotKernel();

/// Which of them the AVX-512 kernels use: the best by default. "amx", "dot", or "convert" for neither; false where there is no such.
bool chooseBfloat16Kernel(const char* name);
const Bfloat16Kernel* chosenBfloat16Kernel();

}  // namespace rlhf::cpu
