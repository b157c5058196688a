// The linear layer: bias, activation, residual and a LoRA adapter inside one product, and the gradients of all its inputs.

#include "cuda/hopper/matmul.h"
#include "cuda/kernels.h"
#include "cuda/launch_checks.h"
#include "cuda/linear_epilogue.cuh"
#include "cuda/reduce.cuh"

namespace rlhf::cuda {
namespace {

constexpr int64_t kRowsPerPartial = 64;  // rows that one thread adds up for dBias

int64_t biasPartials(int64_t rows) { return (rows + kRowsPerPartial - 1) / kRowsPerPartial; }

/// partials[slice, c] = Σ of kRowsPerPartial rows of dy.
template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    columnSumKernel(float* partials, const T* dy, int64_t stride, int64_t rows, int64_t cols) {
  const int64_t col = static_cast<int64_t>(blockIdx.y) * kReduceThreads + threadIdx.x;
  if (col >= cols) return;
  const int64_t firstRow = blockIdx.x * kRowsPerPartial;
  const int64_t lastRow = firstRow + kRowsPerPartial < rows ? firstRow + kRowsPerPartial : rows;
  float sum = 0;
  for (int64_t row = firstRow; row < lastRow; ++row) sum += toFloat(dy[row * stride + col]);
  partials[blockIdx.x * cols + col] = sum;
}

/// W as a factor of y = x·Wᵀ: element (m, k), summed over k.
template <class T>
Operand weightForForward(const LinearWeight& weight, int64_t inputs, int64_t outputs) {
  return makeOperand<T>(weight.data, weight.transposed ? outputs : inputs, weight.transposed != 0);
}

/// W as a factor of dx = dy·W: element (k, m), summed over m.
template <class T>
Operand weightForBackward(const LinearWeight& weight, int64_t inputs, int64_t outputs) {
  return makeOperand<T>(weight.data, weight.transposed ? outputs : inputs, weight.transposed == 0);
}

/// multiply where the weight, B of the second pair, may lie either way; A's rows are of k.
template <class T, bool kOuterFirstB, class Epilogue>
void multiplyByWeight(OpContext& context, const MatmulArguments& product, const Epilogue& epilogue) {
  if (product.b[1].summedOuter) {
    multiply<T, Outer<false, kOuterFirstB, true>>(context, product, epilogue);
  } else {
    multiply<T, Outer<false, kOuterFirstB, false>>(context, product, epilogue);
  }
}

template <class T>
void forward(OpContext& context, const LinearForward& a) {
  const Operand x = makeOperand<T>(a.x, a.xStride, false);
  MatmulArguments product;
  product.rows = a.rows;
  product.cols = a.outputs;
  product.a[1] = x;
  product.b[1] = weightForForward<T>(a.weight, a.inputs, a.outputs);
  product.depth[1] = a.inputs;
  if (const int64_t rank = a.lora.rank; rank > 0) {
    MatmulArguments hidden;
    hidden.rows = a.rows;
    hidden.cols = rank;
    hidden.a[1] = a.loraInput ? makeOperand<T>(a.loraInput, a.inputs, false) : x;
    hidden.b[1] = makeOperand<T>(a.lora.a, a.inputs, false);
    hidden.depth[1] = a.inputs;
    multiply<T, Outer<false, false, false>>(context, hidden, StoreEpilogue<T>{static_cast<T*>(a.loraHidden), rank});

    product.a[0] = makeOperand<T>(a.loraHidden, rank, false);
    product.b[0] = makeOperand<T>(a.lora.b, rank, false);
    product.depth[0] = rank;
    product.firstScale = static_cast<float>(a.lora.scale);
  }
  multiplyByWeight<T, false>(context, product,
                             LinearEpilogue<T>{static_cast<const T*>(a.bias), static_cast<const T*>(a.residual),
                                               static_cast<T*>(a.preActivation), a.y, a.wideOutput != 0, a.yStride, a.activation});
}

/// loraGradient = scale·dy·B
template <class T>
void adapterGradient(OpContext& context, const LinearBackward& a) {
  MatmulArguments product;
  product.rows = a.rows;
  product.cols = a.lora.rank;
  product.a[1] = makeOperand<T>(a.dy, a.dyStride, false);
  product.b[1] = makeOperand<T>(a.lora.b, a.lora.rank, true);
  product.depth[1] = a.outputs;
  multiply<T, Outer<false, true, true>>(
      context, product,
      StoreEpilogue<T>{static_cast<T*>(a.loraGradient), a.lora.rank, static_cast<float>(a.lora.scale)});
}

/// dLoraInput = loraGradient·A
template <class T>
void adapterInputGradient(OpContext& context, const LinearBackward& a) {
  MatmulArguments product;
  product.rows = a.rows;
  product.cols = a.inputs;
  product.a[1] = makeOperand<T>(a.loraGradient, a.lora.rank, false);
  product.b[1] = makeOperand<T>(a.lora.a, a.inputs, true);
  product.depth[1] = a.lora.rank;
  multiply<T, Outer<false, true, true>>(context, product, StoreEpilogue<T>{static_cast<T*>(a.dLoraInput), a.inputs});
}

/// dx = dy·W + loraGradient·A, the last term left out where dLoraInput takes it
template <class T>
void inputGradient(OpContext& context, const LinearBackward& a) {
  MatmulArguments product;
  product.rows = a.rows;
  product.cols = a.inputs;
  product.a[1] = makeOperand<T>(a.dy, a.dyStride, false);
  product.b[1] = weightForBackward<T>(a.weight, a.inputs, a.outputs);
  product.depth[1] = a.outputs;
  if (a.lora.rank > 0 && !a.dLoraInput) {
    product.a[0] = makeOperand<T>(a.loraGradient, a.lora.rank, false);
    product.b[0] = makeOperand<T>(a.lora.a, a.inputs, true);
    product.depth[0] = a.lora.rank;
  }
  multiplyByWeight<T, true>(context, product, StoreEpilogue<T>{static_cast<T*>(a.dx), a.dxStride, 1.0f, a.accumulateDx != 0});
}

struct Columns {
  const void* data;
  int64_t stride, count;
};

/// gradient[i, j] += factor·Σ_row left[row, i]·right[row, j]
template <class T>
void parameterGradient(OpContext& context, void* gradient, float factor, int64_t rows, const Columns& left,
                       const Columns& right) {
  MatmulArguments product;
  product.rows = left.count;
  product.cols = right.count;
  product.a[1] = makeOperand<T>(left.data, left.stride, true);
  product.b[1] = makeOperand<T>(right.data, right.stride, true);
  product.depth[1] = rows;
  multiply<T, Outer<true, true, true>>(context, product,
                                       StoreEpilogue<float>{static_cast<float*>(gradient), right.count, factor, true});
}

template <class T>
void biasGradient(OpContext& context, const LinearBackward& a) {
  requireScratch(context, linearScratchBytes(a.rows, a.outputs), "linearBackward");
  auto* partials = static_cast<float*>(context.scratch);
  const int64_t slices = biasPartials(a.rows);
  const dim3 grid(static_cast<uint32_t>(slices),
                  static_cast<uint32_t>((a.outputs + kReduceThreads - 1) / kReduceThreads));
  RLHF_LAUNCH(columnSumKernel<T>, grid, dim3(kReduceThreads), 0, context.stream, partials, static_cast<const T*>(a.dy),
              a.dyStride, a.rows, a.outputs);
  launchAddPartials(context, static_cast<float*>(a.dBias), partials, static_cast<int>(slices), a.outputs);
}

template <class T>
void backward(OpContext& context, const LinearBackward& a) {
  const int64_t rank = a.lora.rank;
  const Columns x{a.x, a.xStride, a.inputs}, dy{a.dy, a.dyStride, a.outputs};
  if (rank > 0 && (a.dx || a.dLoraInput || a.dA)) adapterGradient<T>(context, a);
  if (a.dx) inputGradient<T>(context, a);
  if (a.dLoraInput) adapterInputGradient<T>(context, a);
  if (a.dWeight && a.weight.transposed) parameterGradient<T>(context, a.dWeight, 1.0f, a.rows, x, dy);
  if (a.dWeight && !a.weight.transposed) parameterGradient<T>(context, a.dWeight, 1.0f, a.rows, dy, x);
  if (a.dBias) biasGradient<T>(context, a);
  const Columns loraInput = a.loraInput ? Columns{a.loraInput, a.inputs, a.inputs} : x;
  if (a.dA) parameterGradient<T>(context, a.dA, 1.0f, a.rows, {a.loraGradient, rank, rank}, loraInput);
  if (a.dB)
    parameterGradient<T>(context, a.dB, static_cast<float>(a.lora.scale), a.rows, dy, {a.loraHidden, rank, rank});
}

}  // namespace

size_t linearScratchBytes(int64_t rows, int64_t outputs) {
  return static_cast<size_t>(biasPartials(rows)) * static_cast<size_t>(outputs) * sizeof(float);
}

void linearForward(OpContext& context, const LinearForward& a) {
  requireWeightType(a.weight.type, a.weight.compute, a.type, "linearForward");
  dispatchType(a.type, "linearForward", [&](auto zero) { forward<decltype(zero)>(context, a); });
}

void linearBackward(OpContext& context, const LinearBackward& a) {
  requireWeightType(a.weight.type, a.weight.compute, a.type, "linearBackward");
  dispatchType(a.type, "linearBackward", [&](auto zero) { backward<decltype(zero)>(context, a); });
}

}  // namespace rlhf::cuda
