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
  validateRotary();
  if (!windows.empty() && static_cast<int64_t>(windows.size()) != layers)
    reject("windows", format("a list of %zu", windows.size()), "one per layer, or an empty list");
  for (const int64_t window : windows)
    if (window < 0 || window > INT32_MAX) reject("windows", std::to_string(window), "at least 0");
  validateFamily();
}

void ModelConfig::validateRotary() const {
  const int64_t rotary = 2 * static_cast<int64_t>(inverseFrequencies.size());
  if ((rotary == 0) != (family == Family::Gpt2))
    reject("inverseFrequencies", format("a list of %zu", inverseFrequencies.size()),
           "an empty list for gpt2, which learns its positions, and a frequency per pair elsewhere");
  if (rotary > headDim)
    reject("inverseFrequencies", format("a list of %zu", inverseFrequencies.size()),
           "at most headDim / 2, since rotary positions turn pairs");
  for (const double frequency : inverseFrequencies)
    if (!(frequency >= 0) || !std::isfinite(frequency))
      reject("inverseFrequencies", format("%g", frequency), "numbers of at least 0");
  if (!(rotaryScale > 0) || !std::isfinite(rotaryScale))
    reject("rotaryScale", format("%g", rotaryScale), "a positive number");
}

void ModelConfig::validateFamily() const {
  if (family == Family::Llama) {
    if (activation != Activation::Silu)
      reject("activation", std::to_string(static_cast<int>(activation)),
             "silu, the only gated activation of this build");
  } else {
    if (kvHeads != heads)
      reject("kvHeads", std::to_string(kvHeads), "equal to heads: this family has no grouped queries");
    if (heads * headDim != hidden) reject("headDim", std::to_string(headDim), "hidden / heads");
    if (activation == Activation::None) reject("activation", "none", "gelu_tanh, gelu, tanh, relu or silu");
    if (headNorm) reject("headNorm", "true", "false: this family has no norm of queries and keys");
  }
  if (parallelResidual && family != Family::GptNeoX)
    reject("parallelResidual", "true", "false: only gpt_neox has parallel residuals");
}

}  // namespace rlhf
