#include "ref/kernels.h"
#include "ref/scalar.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const RmsNormForward& a) {
  const T* weight = in<T>(a.weight);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = in<T>(a.x) + r * a.cols;
    T squares = 0;
    for (int64_t c = 0; c < a.cols; ++c) squares += x[c] * x[c];
    const T rstd = T(1) / std::sqrt(squares / T(a.cols) + T(a.eps));
    out<T>(a.rstd)[r] = rstd;
    for (int64_t c = 0; c < a.cols; ++c) out<T>(a.y)[r * a.cols + c] = x[c] * rstd * weight[c];
  }
}

// With x̂ = x·rstd and g = dy·weight:  dx = rstd·(g − x̂·mean(g·x̂)),  dWeight += dy·x̂.
template <class T>
void run(const RmsNormBackward& a) {
  const T* weight = in<T>(a.weight);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = in<T>(a.x) + r * a.cols;
    const T* dy = in<T>(a.dy) + r * a.cols;
    T* dx = out<T>(a.dx) + r * a.cols;
    const T rstd = in<T>(a.rstd)[r];
    T projection = 0;
    for (int64_t c = 0; c < a.cols; ++c) projection += dy[c] * weight[c] * x[c] * rstd;
    projection /= T(a.cols);
    for (int64_t c = 0; c < a.cols; ++c) {
      const T normalized = x[c] * rstd;
      if (a.dWeight) out<T>(a.dWeight)[c] += dy[c] * normalized;
      const T gradient = rstd * (dy[c] * weight[c] - normalized * projection);
      dx[c] = a.accumulateDx ? dx[c] + gradient : gradient;
    }
  }
}

template <class T>
void run(const LayerNormForward& a) {
  const T* weight = in<T>(a.weight);
  const T* bias = in<T>(a.bias);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = in<T>(a.x) + r * a.cols;
    T mean = 0;
    for (int64_t c = 0; c < a.cols; ++c) mean += x[c];
    mean /= T(a.cols);
    T squares = 0;
    for (int64_t c = 0; c < a.cols; ++c) squares += (x[c] - mean) * (x[c] - mean);
    const T rstd = T(1) / std::sqrt(squares / T(a.cols) + T(a.eps));
    out<T>(a.mean)[r] = mean;
    out<T>(a.rstd)[r] = rstd;
    for (int64_t c = 0; c < a.cols; ++c)
      out<T>(a.y)[r * a.cols + c] = (x[c] - mean) * rstd * weight[c] + bias[c];
  }
}

// With x̂ = (x − mean)·rstd and g = dy·weight:
//   dx = rstd·(g − mean(g) − x̂·mean(g·x̂)),  dWeight += dy·x̂,  dBias += dy.
template <class T>
void run(const LayerNormBackward& a) {
  const T* weight = in<T>(a.weight);
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* x = in<T>(a.x) + r * a.cols;
    const T* dy = in<T>(a.dy) + r * a.cols;
    T* dx = out<T>(a.dx) + r * a.cols;
    const T mean = in<T>(a.mean)[r], rstd = in<T>(a.rstd)[r];
    T meanGradient = 0, projection = 0;
    for (int64_t c = 0; c < a.cols; ++c) {
      const T gradient = dy[c] * weight[c];
      meanGradient += gradient;
      projection += gradient * (x[c] - mean) * rstd;
    }
    meanGradient /= T(a.cols);
    projection /= T(a.cols);
    for (int64_t c = 0; c < a.cols; ++c) {
      const T normalized = (x[c] - mean) * rstd;
      if (a.dWeight) out<T>(a.dWeight)[c] += dy[c] * normalized;
      if (a.dBias) out<T>(a.dBias)[c] += dy[c];
      const T gradient = rstd * (dy[c] * weight[c] - meanGradient - normalized * projection);
      dx[c] = a.accumulateDx ? dx[c] + gradient : gradient;
    }
  }
}

template <class T>
void run(const HeadNormForward& a) {
  const T* weight = in<T>(a.weight);
  for (int64_t head = 0; head < a.rows * a.heads; ++head) {
    T* x = out<T>(a.x) + head / a.heads * a.stride + head % a.heads * a.headDim;
    T squares = 0;
    for (int64_t d = 0; d < a.headDim; ++d) squares += x[d] * x[d];
    const T rstd = T(1) / std::sqrt(squares / T(a.headDim) + T(a.eps));
    if (a.rstd) out<T>(a.rstd)[head] = rstd;
    for (int64_t d = 0; d < a.headDim; ++d) {
      const T normalised = x[d] * rstd;
      if (a.normalised) out<T>(a.normalised)[head * a.headDim + d] = normalised;
      x[d] = normalised * weight[d];
    }
  }
}

// As RmsNormBackward, x̂ being what the forward pass kept.
template <class T>
void run(const HeadNormBackward& a) {
  const T* weight = in<T>(a.weight);
  for (int64_t head = 0; head < a.rows * a.heads; ++head) {
    const T* normalised = in<T>(a.normalised) + head * a.headDim;
    const T rstd = in<T>(a.rstd)[head];
    T* dx = out<T>(a.dx) + head / a.heads * a.stride + head % a.heads * a.headDim;
    T projection = 0;
    for (int64_t d = 0; d < a.headDim; ++d) projection += dx[d] * weight[d] * normalised[d];
    projection /= T(a.headDim);
    for (int64_t d = 0; d < a.headDim; ++d) {
      if (a.dWeight) out<T>(a.dWeight)[d] += dx[d] * normalised[d];
      dx[d] = rstd * (dx[d] * weight[d] - normalised[d] * projection);
    }
  }
}

}  // namespace

RLHF_REF_OP(rmsNormForward, RmsNormForward)
RLHF_REF_OP(rmsNormBackward, RmsNormBackward)
RLHF_REF_OP(layerNormForward, LayerNormForward)
RLHF_REF_OP(layerNormBackward, LayerNormBackward)
RLHF_REF_OP(headNormForward, HeadNormForward)
RLHF_REF_OP(headNormBackward, HeadNormBackward)

}  // namespace rlhf::ref
