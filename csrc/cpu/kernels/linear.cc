#include <algorithm>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"
#include "cpu/kernels/vector_math.h"
#include "cpu/kernels/weight_view.h"

namespace rlhf::RLHF_ISA {
namespace {

const float* floats(const void* data) { return static_cast<const float*>(data); }
float* floats(void* data) { return static_cast<float*>(data); }

MatrixView rowMajor(const void* data, int64_t stride) { return {floats(data), stride, 1}; }
MatrixView columnMajor(const void* data, int64_t stride) { return {floats(data), 1, stride}; }

// Results of so many bytes leave the caches before they are read, and are stored past them, so that no line is read only to be written over.
constexpr int64_t kBytesPastCaches = 64 << 20;
// Inputs of activations are read in the backward pass at the earliest.
constexpr int64_t kKeptBytesPastCaches = 4 << 20;
constexpr int64_t kFloatsOfLine = 16;

enum class PastCaches { Nothing, PreActivation, All };

PastCaches storedPastCaches(const LinearForward& f) {
  const int64_t bytes = f.rows * f.yStride * static_cast<int64_t>(sizeof(float));
  const bool sameLines = !f.preActivation || (reinterpret_cast<uintptr_t>(f.preActivation) - reinterpret_cast<uintptr_t>(f.y)) % (kFloatsOfLine * sizeof(float)) == 0;
  if (!sameLines) return PastCaches::Nothing;
  if (f.y != f.residual && bytes >= kBytesPastCaches) return PastCaches::All;
  return f.preActivation && bytes >= kKeptBytesPastCaches ? PastCaches::PreActivation : PastCaches::Nothing;
}

/// What happens to a finished strip of x·Wᵀ + scale·(x·Aᵀ)·Bᵀ on its way to y.
template <Activation activation, PastCaches past>
void finishForward(const LinearForward& f, const Strip& strip) {
  const float* const bias = f.bias ? floats(f.bias) + strip.col : nullptr;
  for (int64_t i = 0; i < strip.rows; ++i) {
    const float* const sums = strip.values + i * strip.stride;
    const int64_t offset = (strip.row + i) * f.yStride + strip.col;
    const float* const residual = f.residual ? floats(f.residual) + offset : nullptr;
    float* const preActivation = f.preActivation ? floats(f.preActivation) + offset : nullptr;
    float* const y = floats(f.y) + offset;
    const auto finish = [&](int64_t c, auto lanes) {
      Vec value = lanes.load(sums + c);
      if (bias) value += lanes.load(bias + c);
      if (preActivation) past == PastCaches::Nothing ? lanes.store(preActivation + c, value) : lanes.storePastCaches(preActivation + c, value);
      value = activate<activation>(value);
      if (residual) value += lanes.load(residual + c);
      past == PastCaches::All ? lanes.storePastCaches(y + c, value) : lanes.store(y + c, value);
    };
    past == PastCaches::Nothing ? forEachVector(strip.cols, finish) : forEachVectorOf(y, strip.cols, finish);
  }
  if (past != PastCaches::Nothing) fencePastCaches();
}

/// out (+)= factor · values, rows `stride` floats apart.
struct AddTo {
  float* out;
  int64_t stride;
  float factor = 1;
  bool accumulate = true;

  void operator()(const Strip& strip) const {
    for (int64_t i = 0; i < strip.rows; ++i) {
      const float* const sums = strip.values + i * strip.stride;
      float* const destination = out + (strip.row + i) * stride + strip.col;
      forEachVector(strip.cols, [&](int64_t c, auto lanes) {
        const Vec value = lanes.load(sums + c) * factor;
        lanes.store(destination + c, accumulate ? lanes.load(destination + c) + value : value);
      });
    }
  }
};

/// out[j][i] += factor · values[i][j]: rows of out, `stride` floats apart, are columns of the product.
struct AddToTransposed {
  float* out;
  int64_t stride;
  float factor;

  void operator()(const Strip& strip) const {
    for (int64_t c = 0; c < strip.cols; ++c) {
      float* const destination = out + (strip.col + c) * stride + strip.row;
      for (int64_t i = 0; i < strip.rows; ++i) destination[i] += strip.values[i * strip.stride + c] * factor;
    }
  }
};

/// out (+)= factor · A·B of one term.
void multiplyInto(OpContext& context, SharedScratch scratch, DType compute, int64_t rows, int64_t cols, const Term& term, AddTo out) {
  Product product{rows, cols, compute, {term, {}}};
  product.destination = out.out;
  product.destinationStride = out.stride;
  gemm(context, scratch, product, out);
}
void multiplyInto(OpContext& context, DType compute, int64_t rows, int64_t cols, const Term& term, AddTo out) {
  multiplyInto(context, SharedScratch(context), compute, rows, cols, term, out);
}

void addColumnSums(OpContext& context, const LinearBackward& g) {
  const int64_t colsPerTask = 16 * kWidth;
  forEachTask(context, ceilDivide(g.outputs, colsPerTask), g.rows * g.outputs >= kElementsPerTask, [&](int64_t task, int) {
    const int64_t begin = task * colsPerTask, cols = std::min(colsPerTask, g.outputs - begin);
    float* const bias = floats(g.dBias) + begin;
    alignas(64) float sums[colsPerTask] = {};
    for (int64_t n = 0; n < g.rows; ++n) {
      const float* const dy = floats(g.dy) + n * g.dyStride + begin;
      forEachVector(cols, [&](int64_t c, auto lanes) { store(sums + c, load(sums + c) + lanes.load(dy + c)); });
    }
    forEachVector(cols, [&](int64_t c, auto lanes) { lanes.store(bias + c, lanes.load(bias + c) + load(sums + c)); });
  });
}

void addWeightGradient(OpContext& context, const LinearBackward& g) {
  if (g.weight.transposed)
    multiplyInto(context, g.weight.compute, g.inputs, g.outputs,
                 {.depth = g.rows, .a = columnMajor(g.x, g.xStride), .b = rowMajor(g.dy, g.dyStride)},
                 {floats(g.dWeight), g.outputs});
  else
    multiplyInto(context, g.weight.compute, g.outputs, g.inputs,
                 {.depth = g.rows, .a = columnMajor(g.dy, g.dyStride), .b = rowMajor(g.x, g.xStride)},
                 {floats(g.dWeight), g.inputs});
}

void addLoraGradients(OpContext& context, const LinearBackward& g) {
  const int64_t rank = g.lora.rank;
  if (g.dA)
    multiplyInto(context, g.weight.compute, rank, g.inputs,
                 {.depth = g.rows,
                  .a = columnMajor(g.loraGradient, rank),
                  .b = g.loraInput ? rowMajor(g.loraInput, g.inputs) : rowMajor(g.x, g.xStride)},
                 {floats(g.dA), g.inputs});
  if (g.dB) {  // its transpose: dy is then B, which is read as it lies, or packed without being turned
    AddToTransposed dB{floats(g.dB), rank, static_cast<float>(g.lora.scale)};
    const Term term{.depth = g.rows, .a = columnMajor(g.loraHidden, rank), .b = rowMajor(g.dy, g.dyStride)};
    gemm(context, SharedScratch(context), {rank, g.outputs, g.weight.compute, {term, {}}}, dB);
  }
}

}  // namespace

size_t packedWeightBytes(DType type, DType compute, int64_t inputs, int64_t outputs, int32_t backward) {
  if (type != DType::F32 && !isBfloat16(compute)) return 0;
  const int64_t depth = backward ? outputs : inputs, cols = backward ? inputs : outputs;
  return static_cast<size_t>(ceilDivide(cols, panelColsOf(compute)) * panelStrideOf(depth, compute)) * sizeof(float);
}

void packWeight(OpContext& context, const PackWeight& p) {
  requireWeight("packWeight", {.type = p.type, .compute = p.compute}, p.packed);
  const int64_t depth = p.backward ? p.outputs : p.inputs, cols = p.backward ? p.inputs : p.outputs;
  const MatrixView b = p.backward ? asItIs(p.weight, p.outputs, p.inputs, p.transposed, p.type)
                                  : transposeOf(p.weight, p.outputs, p.inputs, p.transposed, p.type);
  packColumns(context, b, depth, cols, floats(p.packed), p.compute);
}

void unpackWeight(OpContext& context, const UnpackWeight& p) {
  withPackedOrder(p.type, "unpackWeight", [&]<class Order>(Order) {
    using Element = typename Order::Element;
    const auto* packed = static_cast<const Element*>(p.packed);
    auto* weight = static_cast<Element*>(p.weight);
    // A few panels of columns at a time, each read from end to end while it is in a cache.
    constexpr int64_t kColumns = 64;
    forEachTask(context, ceilDivide(p.outputs, kColumns), p.inputs * p.outputs >= kElementsPerTask, [&](int64_t task, int) {
      const int64_t begin = task * kColumns, end = std::min(begin + kColumns, p.outputs);
      if (p.transposed) {
        for (int64_t k = 0; k < p.inputs; ++k)
          for (int64_t m = begin; m < end; ++m) weight[k * p.outputs + m] = packed[Order::index(k, m, p.inputs)];
      } else {
        for (int64_t m = begin; m < end; ++m)
          for (int64_t k = 0; k < p.inputs; ++k) weight[m * p.inputs + k] = packed[Order::index(k, m, p.inputs)];
      }
    });
  });
}

void linearForward(OpContext& context, const LinearForward& f) {
  requireFloat32(f.type, "linearForward");
  requireWeight("linearForward", f.weight, f.weight.packedForward);
  const int64_t rank = f.lora.rank;
  Product product{f.rows, f.outputs, f.weight.compute, {}};
  product.decoding = f.decoding != 0;
  product.terms[0] = {.depth = f.inputs,
                      .a = rowMajor(f.x, f.xStride),
                      .b = transposeOf(f.weight.data, f.outputs, f.inputs, f.weight.transposed, f.weight.type),
                      .packedB = floats(f.weight.packedForward),
                      .packedBStride = panelStrideOf(f.inputs, f.weight.compute)};
  SharedScratch scratch(context);
  if (rank > 0) {
    Term& main = product.terms[0];
    if (!f.loraInput) main.packedA = packRowsOnce(context, scratch, f.weight.compute, main.a, f.rows, f.inputs);
    multiplyInto(context, scratch, f.weight.compute, f.rows, rank,
                 {.depth = f.inputs,
                  .a = f.loraInput ? rowMajor(f.loraInput, f.inputs) : main.a,
                  .b = transposeOf(f.lora.a, rank, f.inputs, false),
                  .packedA = main.packedA},
                 {floats(f.loraHidden), rank, 1, false});
    product.terms[1] = {.depth = rank,
                        .a = rowMajor(f.loraHidden, rank),
                        .factor = static_cast<float>(f.lora.scale),
                        .b = transposeOf(f.lora.b, f.outputs, rank, false)};
  }
  const PastCaches past = storedPastCaches(f);
  const bool all = past == PastCaches::All;
  if (!all) product.destination = floats(f.y), product.destinationStride = f.yStride;
  // A line that two strips share is read all the same: where rows begin within lines, strips are wide.
  const Columns columns = all && f.yStride % kFloatsOfLine != 0 ? Columns::FixedCuts : Columns::Balanced;
  withActivation(f.activation, [&]<Activation activation>() {
    // A loop for each: one that asks in every vector where to store is slower for all.
    auto store = [&](const Strip& strip) { finishForward<activation, PastCaches::Nothing>(f, strip); };
    auto storeKeptPast = [&](const Strip& strip) { finishForward<activation, PastCaches::PreActivation>(f, strip); };
    auto storeAllPast = [&](const Strip& strip) { finishForward<activation, PastCaches::All>(f, strip); };
    const StripConsumer consumers[] = {store, storeKeptPast, storeAllPast};
    gemm(context, scratch, product, consumers[static_cast<int>(past)], columns);
  });
}

void linearBackward(OpContext& context, const LinearBackward& g) {
  requireFloat32(g.type, "linearBackward");
  requireWeight("linearBackward", g.weight, g.weight.packedBackward);
  const int64_t rank = g.lora.rank;
  const MatrixView dy = rowMajor(g.dy, g.dyStride);
  SharedScratch scratch(context);
  const float* packedDy = nullptr;
  if (rank > 0 && g.dx) packedDy = packRowsOnce(context, scratch, g.weight.compute, dy, g.rows, g.outputs);
  if (rank > 0 && (g.dx || g.dLoraInput || g.dA))
    multiplyInto(context, scratch, g.weight.compute, g.rows, rank,
                 {.depth = g.outputs, .a = dy, .b = rowMajor(g.lora.b, rank), .packedA = packedDy},
                 {floats(g.loraGradient), rank, static_cast<float>(g.lora.scale), false});
  if (g.dx) {
    Product product{g.rows, g.inputs, g.weight.compute, {}};
    product.terms[0] = {.depth = g.outputs,
                        .a = dy,
                        .b = g.weight.packedBackward ? MatrixView{} : backwardOperand("linearBackward", g.weight, g.outputs, g.inputs),
                        .packedB = floats(g.weight.packedBackward),
                        .packedBStride = panelStrideOf(g.outputs, g.weight.compute),
                        .packedA = packedDy};
    if (rank > 0 && !g.dLoraInput)
      product.terms[1] = {.depth = rank, .a = rowMajor(g.loraGradient, rank), .b = rowMajor(g.lora.a, g.inputs)};
    product.destination = floats(g.dx);
    product.destinationStride = g.dxStride;
    AddTo dx{floats(g.dx), g.dxStride, 1, g.accumulateDx != 0};
    gemm(context, scratch, product, dx);
  }
  if (g.dLoraInput)
    multiplyInto(context, g.weight.compute, g.rows, g.inputs,
                 {.depth = rank, .a = rowMajor(g.loraGradient, rank), .b = rowMajor(g.lora.a, g.inputs)},
                 {floats(g.dLoraInput), g.inputs, 1, false});
  if (g.dWeight) addWeightGradient(context, g);
  if (g.dBias) addColumnSums(context, g);
  addLoraGradients(context, g);
}

}  // namespace rlhf::RLHF_ISA
