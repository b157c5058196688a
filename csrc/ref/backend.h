#pragma once
#include <memory>

#include "ops/ops.h"

namespace rlhf {

/// The oracle: every op as its contract says it, one scalar at a time, in float32, float64 or complex128. It needs
/// no scratch memory and has no packed weights.
const Ops& refOps();

/// A device whose memory is the process's own and whose one stream runs everything at once.
std::unique_ptr<Device> createRefDevice();

}  // namespace rlhf
