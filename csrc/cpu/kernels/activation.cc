#include "cpu/kernels/parallel.h"
#include "cpu/kernels/requirements.h"
#include "cpu/kernels/table.h"
#include "cpu/kernels/vector_loops.h"
#include "cpu/kernels/vector_math.h"

namespace rlhf::RLHF_ISA {
namespace {

/// An exponential costs about as much as streaming this many elements.
constexpr int64_t kElementsPerExponential = 4;

/// The activation shares its exponential with its derivative.
template <bool activatesAgain>
void differentiate(OpContext& context, const ActivationBackward& a) {
  const float* x = static_cast<const float*>(a.x);
  const float* dy = static_cast<const float*>(a.dy);
  float* dx = static_cast<float*>(a.dx);
  float* y = static_cast<float*>(a.y);
  forEachRange(context, a.count, kElementsPerExponential, [&](int64_t begin, int64_t end) {
    withActivation(a.activation, [&]<Activation activation>() {
      forEachVector(end - begin, [&](int64_t i, auto lanes) {
        const int64_t at = begin + i;
        const Vec input = lanes.load(x + at);
        lanes.store(dx + at, lanes.load(dy + at) * activationDerivative<activation>(input));
        if constexpr (activatesAgain) lanes.store(y + at, activate<activation>(input));
      });
    });
  });
}

template <bool activatesAgain>
void differentiateGated(OpContext& context, const GatedSiluBackward& a) {
  forEachRange(context, a.rows, a.cols * kElementsPerExponential, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* gate = static_cast<const float*>(a.gate) + n * a.inputStride;
      const float* up = static_cast<const float*>(a.up) + n * a.inputStride;
      const float* dy = static_cast<const float*>(a.dy) + n * a.cols;
      float* dGate = static_cast<float*>(a.dGate) + n * a.inputStride;
      float* dUp = static_cast<float*>(a.dUp) + n * a.inputStride;
      float* y = activatesAgain ? static_cast<float*>(a.y) + n * a.cols : nullptr;
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        const Vec g = lanes.load(gate + i), u = lanes.load(up + i), d = lanes.load(dy + i);
        const Vec s = sigmoid(g), silu = g * s;
        lanes.store(dGate + i, d * u * (s + silu * (1.0f - s)));
        lanes.store(dUp + i, d * silu);
        if constexpr (activatesAgain) lanes.store(y + i, silu * u);
      });
    }
  });
}

}  // namespace

void activationForward(OpContext& context, const ActivationForward& a) {
  requireFloat32(a.type, "activationForward");
  const float* x = static_cast<const float*>(a.x);
  float* y = static_cast<float*>(a.y);
  forEachRange(context, a.count, kElementsPerExponential, [&](int64_t begin, int64_t end) {
    withActivation(a.activation, [&]<Activation activation>() {
      forEachVector(end - begin, [&](int64_t i, auto lanes) {
        lanes.store(y + begin + i, activate<activation>(lanes.load(x + begin + i)));
      });
    });
  });
}

void activationBackward(OpContext& context, const ActivationBackward& a) {
  requireFloat32(a.type, "activationBackward");
  a.y ? differentiate<true>(context, a) : differentiate<false>(context, a);
}

void gatedSiluForward(OpContext& context, const GatedSiluForward& a) {
  requireFloat32(a.type, "gatedSiluForward");
  forEachRange(context, a.rows, a.cols * kElementsPerExponential, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* gate = static_cast<const float*>(a.gate) + n * a.inputStride;
      const float* up = static_cast<const float*>(a.up) + n * a.inputStride;
      float* y = static_cast<float*>(a.y) + n * a.cols;
      forEachVector(a.cols, [&](int64_t i, auto lanes) {
        lanes.store(y + i, activate<Activation::Silu>(lanes.load(gate + i)) * lanes.load(up + i));
      });
    }
  });
}

void gatedSiluBackward(OpContext& context, const GatedSiluBackward& a) {
  requireFloat32(a.type, "gatedSiluBackward");
  a.y ? differentiateGated<true>(context, a) : differentiateGated<false>(context, a);
}

}  // namespace rlhf::RLHF_ISA
