#include "ref/activation.h"
#include "ref/kernels.h"

namespace rlhf::ref {
namespace {

/// Where W[m, k] lies in memory.
int64_t weightIndex(const LinearWeight& weight, int64_t m, int64_t k, int64_t inputs, int64_t outputs) {
  return weight.transposed ? k * outputs + m : m * inputs + k;
}

void requirePlainWeight(const char* op, const LinearWeight& weight) {
  if (!weight.data)
    throw Error(code::kArgument, format("%s: weight is null, and ref reads no packed forms", op));
}

template <class T>
void run(const LinearForward& a) {
  requirePlainWeight("linearForward", a.weight);
  const Parameter<T> weight(a.weight.data, a.weight.type);
  const DType compute = a.weight.compute;
  const int64_t rank = a.lora.rank;
  for (int64_t n = 0; n < a.rows; ++n) {
    const T* x = in<T>(a.x) + n * a.xStride;
    const T* loraInput = a.loraInput ? in<T>(a.loraInput) + n * a.inputs : x;
    T* hidden = out<T>(a.loraHidden) + n * rank;
    for (int64_t r = 0; r < rank; ++r) {
      hidden[r] = 0;
      for (int64_t k = 0; k < a.inputs; ++k) hidden[r] += product(loraInput[k], in<T>(a.lora.a)[r * a.inputs + k], compute);
    }
    for (int64_t m = 0; m < a.outputs; ++m) {
      T sum = 0;
      for (int64_t k = 0; k < a.inputs; ++k)
        sum += product(x[k], weight[weightIndex(a.weight, m, k, a.inputs, a.outputs)], compute);
      if (a.bias) sum += in<T>(a.bias)[m];
      for (int64_t r = 0; r < rank; ++r)
        sum += product(T(a.lora.scale) * hidden[r], in<T>(a.lora.b)[m * rank + r], compute);
      const int64_t at = n * a.yStride + m;
      const T residual = a.residual ? in<T>(a.residual)[at] : T(0);
      if (a.preActivation) out<T>(a.preActivation)[at] = sum;
      out<T>(a.y)[at] = activate(a.activation, sum) + residual;
    }
  }
}

/// g = scale · dy · B
template <class T>
void loraGradient(const LinearBackward& a) {
  const int64_t rank = a.lora.rank;
  for (int64_t n = 0; n < a.rows; ++n)
    for (int64_t r = 0; r < rank; ++r) {
      T sum = 0;
      for (int64_t m = 0; m < a.outputs; ++m)
        sum += product(in<T>(a.dy)[n * a.dyStride + m], in<T>(a.lora.b)[m * rank + r], a.weight.compute);
      out<T>(a.loraGradient)[n * rank + r] = T(a.lora.scale) * sum;
    }
}

/// (g · A)[n, k]
template <class T>
T loraInputGradient(const LinearBackward& a, int64_t n, int64_t k) {
  T sum = 0;
  for (int64_t r = 0; r < a.lora.rank; ++r)
    sum += product(in<T>(a.loraGradient)[n * a.lora.rank + r], in<T>(a.lora.a)[r * a.inputs + k], a.weight.compute);
  return sum;
}

/// dx = dy · W + g · A, the last term left out where dLoraInput takes it
template <class T>
void inputGradient(const LinearBackward& a) {
  requirePlainWeight("linearBackward", a.weight);
  const Parameter<T> weight(a.weight.data, a.weight.type);
  for (int64_t n = 0; n < a.rows; ++n)
    for (int64_t k = 0; k < a.inputs; ++k) {
      T sum = 0;
      for (int64_t m = 0; m < a.outputs; ++m)
        sum += product(in<T>(a.dy)[n * a.dyStride + m], weight[weightIndex(a.weight, m, k, a.inputs, a.outputs)], a.weight.compute);
      if (!a.dLoraInput) sum += loraInputGradient<T>(a, n, k);
      T& dx = out<T>(a.dx)[n * a.dxStride + k];
      dx = a.accumulateDx ? dx + sum : sum;
    }
}

/// A matrix of which column i of row n lies at data[n·stride + i].
template <class T>
struct Rows {
  const T* data;
  int64_t stride, cols;
  const T& at(int64_t n, int64_t i) const { return data[n * stride + i]; }
};

/// gradient(i, j) += scale · Σ_n left(n, i) · right(n, j), with element (i, j) at i·rowStep + j·columnStep.
template <class T>
void accumulateOuter(T* gradient, int64_t rowStep, int64_t columnStep, T scale, int64_t rows, Rows<T> left,
                     Rows<T> right, DType compute) {
  for (int64_t i = 0; i < left.cols; ++i)
    for (int64_t j = 0; j < right.cols; ++j) {
      T sum = 0;
      for (int64_t n = 0; n < rows; ++n) sum += product(left.at(n, i), right.at(n, j), compute);
      gradient[i * rowStep + j * columnStep] += scale * sum;
    }
}

template <class T>
void run(const LinearBackward& a) {
  const int64_t rank = a.lora.rank;
  const Rows<T> dy = {in<T>(a.dy), a.dyStride, a.outputs};
  const Rows<T> x = {in<T>(a.x), a.xStride, a.inputs};
  if (rank > 0 && (a.dx || a.dLoraInput || a.dA)) loraGradient<T>(a);
  if (a.dx) inputGradient<T>(a);
  if (a.dLoraInput)
    for (int64_t n = 0; n < a.rows; ++n)
      for (int64_t k = 0; k < a.inputs; ++k)
        out<T>(a.dLoraInput)[n * a.inputs + k] = loraInputGradient<T>(a, n, k);
  if (a.dWeight) {
    const int64_t rowStep = a.weight.transposed ? 1 : a.inputs, columnStep = a.weight.transposed ? a.outputs : 1;
    accumulateOuter<T>(out<T>(a.dWeight), rowStep, columnStep, T(1), a.rows, dy, x, a.weight.compute);
  }
  if (a.dBias)
    for (int64_t m = 0; m < a.outputs; ++m) {
      T sum = 0;
      for (int64_t n = 0; n < a.rows; ++n) sum += dy.data[n * dy.stride + m];
      out<T>(a.dBias)[m] += sum;
    }
  if (a.dA) {
    const Rows<T> gradient = {in<T>(a.loraGradient), rank, rank};
    const Rows<T> input = a.loraInput ? Rows<T>{in<T>(a.loraInput), a.inputs, a.inputs} : x;
    accumulateOuter<T>(out<T>(a.dA), a.inputs, 1, T(1), a.rows, gradient, input, a.weight.compute);
  }
  if (a.dB) {
    const Rows<T> hidden = {in<T>(a.loraHidden), rank, rank};
    accumulateOuter<T>(out<T>(a.dB), rank, 1, T(a.lora.scale), a.rows, dy, hidden, a.weight.compute);
  }
}

}  // namespace

RLHF_REF_OP(linearForward, LinearForward)
RLHF_REF_OP(linearBackward, LinearBackward)

void packWeight(OpContext&, const PackWeight&) {
  throw Error(code::kUnsupported, "packWeight: ref has no packed form, as its packedWeightBytes of 0 says");
}
void unpackWeight(OpContext&, const UnpackWeight&) {
  throw Error(code::kUnsupported, "unpackWeight: ref has no packed form, as its packedWeightBytes of 0 says");
}

}  // namespace rlhf::ref
