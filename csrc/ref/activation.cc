#include "ref/activation.h"

#include "ref/kernels.h"

namespace rlhf::ref {
namespace {

template <class T>
void run(const ActivationForward& a) {
  for (int64_t i = 0; i < a.count; ++i) out<T>(a.y)[i] = activate(a.activation, in<T>(a.x)[i]);
}

template <class T>
void run(const ActivationBackward& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const T x = in<T>(a.x)[i];
    out<T>(a.dx)[i] = in<T>(a.dy)[i] * activationSlope(a.activation, x);
    if (a.y) out<T>(a.y)[i] = activate(a.activation, x);
  }
}

template <class T>
void run(const GatedSiluForward& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t c = 0; c < a.cols; ++c) {
      const int64_t i = r * a.inputStride + c;
      out<T>(a.y)[r * a.cols + c] = activate(Activation::Silu, in<T>(a.gate)[i]) * in<T>(a.up)[i];
    }
}

template <class T>
void run(const GatedSiluBackward& a) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t c = 0; c < a.cols; ++c) {
      const int64_t i = r * a.inputStride + c;
      const T gate = in<T>(a.gate)[i], up = in<T>(a.up)[i], dy = in<T>(a.dy)[r * a.cols + c];
      out<T>(a.dGate)[i] = dy * up * activationSlope(Activation::Silu, gate);
      out<T>(a.dUp)[i] = dy * activate(Activation::Silu, gate);
      if (a.y) out<T>(a.y)[r * a.cols + c] = activate(Activation::Silu, gate) * up;
    }
}

}  // namespace

RLHF_REF_OP(activationForward, ActivationForward)
RLHF_REF_OP(activationBackward, ActivationBackward)
RLHF_REF_OP(gatedSiluForward, GatedSiluForward)
RLHF_REF_OP(gatedSiluBackward, GatedSiluBackward)

}  // namespace rlhf::ref
