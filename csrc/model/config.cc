#include "model/config.h"

#include <cmath>

#include "core/error.h"

namespace rlhf {
namespace {

[[noreturn]] void reject(const char* field, const std::string& value, const char* allowed) {
  throw Error(code::kConfig,
              format("model configuration: %s is %s, expected %s", field, value.c_str(), allowed));
}

void requirePositive(const char* field, int64_t value, int64_t limit) {
  if (value < 1 || value > limit)
    reject(field, std::to_string(value), format("1 to %lld", static_cast<long long>(limit)).c_str());
}

}  // namespace

void ModelConfig::validate() const {
  // Limits far above any model there is; they keep every product of two of these sizes within 64 bits.
  requirePositive("layers", layers, 1 << 16);
  requirePositive("hidden", hidden, 1 << 24);
  requirePositive("heads", heads, 1 << 16);
  requirePositive("kvHeads", kvHeads, 1 << 16);
  requirePositive("headDim", headDim, 1 << 16);
  requirePositive("intermediate", intermediate, 1 << 24);
  requirePositive("vocab", vocab, INT32_MAX);
  requirePositive("maxPositions", maxPositions, INT32_MAX);
  if (heads % kvHeads != 0) reject("kvHeads", std::to_string(kvHeads), "a divisor of heads");
  if (!(normEps > 0) || !std::isfinite(normEps))
    reject("normEps", format("%g", normEps), "a positive number");
  if (family == Family::Llama) {
    if (headDim % 2 != 0)
      reject("headDim", std::to_string(headDim), "an even number, since rotary positions turn pairs");
    if (!(ropeTheta > 0) || !std::isfinite(ropeTheta))
      reject("ropeTheta", format("%g", ropeTheta), "a positive number");
    if (activation != Activation::Silu)
      reject("activation", std::to_string(static_cast<int>(activation)),
             "silu, the only gated activation of this build");
  } else {
    if (kvHeads != heads)
      reject("kvHeads", std::to_string(kvHeads), "equal to heads, since GPT-2 has no grouped queries");
    if (heads * headDim != hidden) reject("headDim", std::to_string(headDim), "hidden / heads");
    if (activation == Activation::None) reject("activation", "none", "gelu_tanh, gelu, tanh, relu or silu");
  }
}

}  // namespace rlhf
