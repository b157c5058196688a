#pragma once
#include "model/architecture.h"

namespace rlhf {

// Random parameters depend on (seed, index of the parameter in its group, element) alone.

/// Normal(0, std), by Box and Muller's method in float64.
void initialiseNormal(ParameterGroup& group, int parameter, double std, uint64_t seed);
/// Uniform in [−bound, bound).
void initialiseUniform(ParameterGroup& group, int parameter, double bound, uint64_t seed);
void initialiseConstant(ParameterGroup& group, int parameter, double value);

/// Normal(0, std) for matrices, ones for norm weights, zeros for biases. GPT-2's projections back into the
/// residual stream have std / √(2·layers), since 2·layers of them add up there (Radford et al., 2019).
void initialiseBase(const Architecture& architecture, ParameterGroup& base, double std, uint64_t seed);

}  // namespace rlhf
